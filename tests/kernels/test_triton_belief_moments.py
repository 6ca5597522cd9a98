"""The belief of decayed moments in Triton against the composed one in float64."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import belief_inputs, cotangents, random_reset, reset_at, strided
from tolerances import KERNEL, assert_close
from triton_cases import GPU, check, every_device, every_dtype, results

from doxastic.kernels import belief_moments as public
from doxastic.kernels.triton import belief_moments as module

F32 = torch.float32
kernel, truth = module.belief_moments_features, public.belief_moments_features


@every_device
@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 17, 33])
def test_matches_composed_for_every_length_and_reset_rate(device, steps, probability):
    reset = random_reset(2, steps, probability)
    check(kernel, truth, belief_inputs(T=steps, M=8), device, reset=reset)


@every_device
@pytest.mark.parametrize(("batch", "width"), [(1, 1), (3, 5), (2, 33)])
def test_matches_composed_for_every_width(device, batch, width):
    inputs, reset = belief_inputs(B=batch, T=9, M=width), random_reset(batch, 9, 0.2)
    check(kernel, truth, inputs, device, reset=reset)


@every_device
@pytest.mark.parametrize("steps", [(0,), (8,), (0, 1, 7, 8)], ids=str)
def test_matches_composed_with_resets_at_the_edges(device, steps):
    check(kernel, truth, belief_inputs(B=3, T=9, M=5), device, reset=reset_at(3, 9, steps))


@every_device
@every_dtype
def test_half_precision_is_computed_in_float32(device, dtype):
    inputs, reset = belief_inputs(T=9, M=8), random_reset(2, 9, 0.2)
    check(kernel, truth, inputs, device, dtype, reset=reset)
    check(kernel, truth, inputs, device, dtype, single=("state", "prior"), reset=reset)


@pytest.mark.parametrize("device", [GPU])
@every_dtype
def test_matches_composed_at_real_sizes(device, dtype):
    inputs, reset = belief_inputs(B=64, T=256, M=64), random_reset(64, 256, 0.02)
    check(kernel, truth, inputs, device, dtype, reset=reset)


@every_device
def test_the_clamp_of_the_log_weights_stops_their_gradient(device):
    inputs = belief_inputs(B=1, T=4, M=2)
    inputs["raw"][..., 2:4] = torch.tensor([[8.5, -8.5], [7.9, -7.9], [8.0, -8.0], [0.0, 0.0]])
    check(kernel, truth, inputs, device, reset=random_reset(1, 4, 0.0))
    given = {name: x.to(device, F32) for name, x in inputs.items()}
    draw = results(kernel, given, reset=random_reset(1, 4, 0.0).to(device))["draw"]
    assert not draw[0, 0, 2:4].any() and draw[0, 1:, 2:4].all()


@every_device
def test_tensors_are_read_however_they_are_laid_out(device):
    inputs = {name: x.to(device, F32) for name, x in belief_inputs(B=3, T=4, M=5).items()}
    reset = random_reset(3, 4, 0.2).to(device)
    expected = results(kernel, inputs, reset=reset)
    crossed = results(kernel, strided(inputs), reset=reset.t().contiguous().t())
    inputs["raw"] = torch.cat([inputs["raw"]] * 2, -1)[..., 15:]
    inputs["state"] = torch.cat([inputs["state"].flatten(1)] * 2, 1)[:, 15:].unflatten(1, (3, 5))
    sliced = results(kernel, inputs, reset=reset)
    for name, x in expected.items():
        assert torch.equal(crossed[name], x) and torch.equal(sliced[name], x), name


@every_device
@pytest.mark.parametrize("output", [0, 1], ids=["features", "state"])
def test_gradients_of_one_output_alone_are_understood(device, output):
    def alone(function):
        return lambda **arguments: function(**arguments)[output : output + 1]

    def reached(function, inputs, reset):
        leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        outputs = alone(function)(**leaves, reset=reset)
        wanted = (leaves["raw"], leaves["state"])
        return torch.autograd.grad(outputs, wanted, cotangents(outputs))

    inputs, reset = belief_inputs(T=5, M=8), random_reset(2, 5, 0.2)
    expected = reached(truth, inputs, reset)
    given = {name: x.to(device, F32) for name, x in inputs.items()}
    for x, y in zip(reached(kernel, given, reset.to(device)), expected, strict=True):
        assert_close("gradient", x.cpu(), y, KERNEL[F32])


@every_device
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_does_not_pass_a_reset(device, value):
    inputs = {name: x.to(device, F32) for name, x in belief_inputs(T=3, M=5).items()}
    reset = reset_at(3, 3, [0])[:2].to(device)
    expected = results(kernel, inputs, reset=reset)
    inputs["state"] = torch.full_like(inputs["state"], value)
    actual = results(kernel, inputs, reset=reset)
    assert all(torch.equal(actual[name], x) for name, x in expected.items())


@every_device
def test_the_public_function_launches_where_it_can(device, monkeypatch):
    monkeypatch.setattr(public, "can_fuse", lambda *_: False)
    monkeypatch.setattr(public, "can_launch", lambda *_: True)
    monkeypatch.setattr(public, "belief_moments", None)
    inputs = {name: x.to(device, F32) for name, x in belief_inputs(T=3, M=5).items()}
    reset = random_reset(2, 3, 0.2).to(device)
    expected = kernel(**inputs, reset=reset)
    for x, y in zip(truth(**inputs, reset=reset), expected, strict=True):
        assert torch.equal(x, y)


@every_device
def test_operators_pass_opcheck(device):
    inputs = [x.to(device, F32) for x in belief_inputs(T=3, M=5).values()]
    reset = random_reset(2, 3, 0.2).to(device)
    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.library.opcheck(module.belief_forward, (*leaves, reset))
    features, final, moments = module.belief_forward(*inputs, reset)
    arguments = (features.clone(), final.clone(), *inputs, reset, moments)
    torch.library.opcheck(module.belief_backward, arguments)
