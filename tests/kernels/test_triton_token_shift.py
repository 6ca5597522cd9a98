"""Token shift in Triton against the composed one in float64."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import cotangents, random_reset, reset_at, shift_inputs, strided
from tolerances import KERNEL, assert_close
from triton_cases import GPU, check, every_device, every_dtype, results

from doxastic.kernels import token_shift as public
from doxastic.kernels.triton import token_shift as module

F32 = torch.float32


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Let every program take several tiles, so that its loop and the sum over parts are seen."""
    monkeypatch.setattr(module, "PROGRAMS", 2)


@every_device
@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 17, 33])
def test_matches_composed_for_every_length_and_reset_rate(device, steps, probability):
    reset = random_reset(2, steps, probability)
    check(module.shift_mix, public.shift_mix, shift_inputs(T=steps), device, reset=reset)


@every_device
@pytest.mark.parametrize(("width", "mixes"), [(1, 1), (5, 6), (130, 2), (32, 9)])
def test_matches_composed_for_every_width_and_number_of_mixes(device, width, mixes):
    inputs = shift_inputs(T=5, C=width, G=mixes)
    check(module.shift_mix, public.shift_mix, inputs, device, reset=random_reset(2, 5, 0.2))


@every_device
@pytest.mark.parametrize("steps", [(0,), (1,), (16,), (0, 1, 2, 16)], ids=str)
def test_matches_composed_with_resets_at_the_edges(device, steps):
    inputs, reset = shift_inputs(B=3, T=17), reset_at(3, 17, steps)
    check(module.shift_mix, public.shift_mix, inputs, device, reset=reset)


@every_device
@every_dtype
def test_half_precision_is_computed_in_float32(device, dtype):
    inputs, reset = shift_inputs(T=9), random_reset(2, 9, 0.2)
    check(module.shift_mix, public.shift_mix, inputs, device, dtype, reset=reset)


@pytest.mark.parametrize("device", [GPU])
@every_dtype
def test_matches_composed_at_real_sizes(device, dtype, monkeypatch):
    monkeypatch.undo()
    inputs, reset = shift_inputs(B=64, T=256, C=256, G=6), random_reset(64, 256, 0.02)
    check(module.shift_mix, public.shift_mix, inputs, device, dtype, reset=reset)


@every_device
def test_mixes_have_the_promoted_dtype_and_gradients_their_own(device):
    inputs = {name: x.to(device, torch.bfloat16) for name, x in shift_inputs(T=3).items()}
    inputs["mix"] = inputs["mix"].to(F32)
    actual = results(module.shift_mix, inputs, reset=random_reset(2, 3, 0.2).to(device))
    assert actual["output 0"].dtype == actual["dmix"].dtype == F32
    assert actual["dx"].dtype == actual["dprevious"].dtype == torch.bfloat16


@every_device
def test_tensors_are_read_however_they_are_laid_out(device):
    inputs = {name: x.to(device, F32) for name, x in shift_inputs(B=3, T=5).items()}
    reset = random_reset(3, 5, 0.2).to(device)
    expected = results(module.shift_mix, inputs, reset=reset)
    crossed = results(module.shift_mix, strided(inputs), reset=reset.t().contiguous().t())
    assert all(torch.equal(crossed[name], x) for name, x in expected.items())
    wide = torch.cat([torch.ones_like(inputs["x"]), inputs["x"]], -1)
    inputs["x"] = wide[..., 32:]
    sliced = results(module.shift_mix, inputs, reset=reset)
    assert all(torch.equal(sliced[name], x) for name, x in expected.items())


@every_device
def test_gradients_of_one_mix_alone_are_understood(device):
    inputs, reset = shift_inputs(T=5), random_reset(2, 5, 0.2)

    def second(function):
        return lambda **arguments: function(**arguments)[1:2]

    check(second(module.shift_mix), second(public.shift_mix), inputs, device, reset=reset)


@every_device
@pytest.mark.parametrize("at", [0, 3, 7])
def test_exactly_no_gradient_crosses_a_reset(device, at):
    leaves = {n: x.to(device, F32).requires_grad_() for n, x in shift_inputs(T=8).items()}
    reset = torch.zeros(2, 8, dtype=torch.bool, device=device)
    reset[:, at] = True
    after = [y[:, at:] for y in module.shift_mix(**leaves, reset=reset)]
    wanted = [leaves["x"], leaves["previous"]]
    dx, dprevious = torch.autograd.grad(after, wanted, cotangents(after))
    assert not dprevious.any() and not dx[:, :at].any()
    assert dx[:, at:].any()


@every_device
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_input_that_is_not_finite_does_not_pass_a_reset(device, value):
    inputs = {name: x.to(device, F32) for name, x in shift_inputs(T=3).items()}
    inputs["previous"].fill_(value)
    reset = reset_at(3, 3, [0])[:2].to(device)
    assert all(x.isfinite().all() for x in results(module.shift_mix, inputs, reset=reset).values())


@every_device
def test_operators_pass_opcheck(device):
    x, previous, mix = (z.to(device, F32) for z in shift_inputs(T=3, C=5).values())
    reset = random_reset(2, 3, 0.2).to(device)
    leaves = [z.clone().requires_grad_() for z in (x, previous, mix)]
    torch.library.opcheck(module.shift_forward, (*leaves[:2], reset, leaves[2]))
    outputs = [y.clone() for y in module.shift_forward(x, previous, reset, mix)]
    torch.library.opcheck(module.shift_backward, (outputs, x, previous, reset, mix))


@every_device
def test_the_public_function_launches_where_it_can(device, monkeypatch):
    monkeypatch.setattr(public, "can_fuse", lambda *_: False)
    monkeypatch.setattr(public, "can_launch", lambda *_: True)
    monkeypatch.setattr(public, "_composed", None)
    inputs = {name: x.to(device, F32) for name, x in shift_inputs(T=3).items()}
    reset = random_reset(2, 3, 0.2).to(device)
    expected = module.shift_mix(**inputs, reset=reset)
    for x, y in zip(public.shift_mix(**inputs, reset=reset), expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.gpu
def test_cuda_tensors_are_launched_and_float64_ones_composed(monkeypatch):
    inputs = {name: x.cuda() for name, x in shift_inputs(T=3).items()}
    reset = random_reset(2, 3, 0.2).cuda()
    expected = public.shift_mix(**inputs, reset=reset)
    monkeypatch.setattr(public, "_composed", None)
    actual = public.shift_mix(**{n: x.float() for n, x in inputs.items()}, reset=reset)
    for x, y in zip(actual, expected, strict=True):
        assert_close("mix", x, y, KERNEL[F32])
