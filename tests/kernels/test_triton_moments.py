"""Decayed moments in Triton against the float64 reference."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from kernel_cases import cotangents, moments_inputs, random_reset, reset_at, strided
from tolerances import KERNEL, SAME, assert_close
from triton_cases import GPU, check, every_device, every_dtype, results

from doxastic.kernels.moments import weighted_moments
from doxastic.kernels.triton import moments as module

F32 = torch.float32
truth = partial(weighted_moments, backend="reference")
kernel = partial(weighted_moments, backend="triton")


@every_device
@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 17, 33])
def test_matches_reference_for_every_length_and_reset_rate(device, steps, probability):
    check(kernel, truth, moments_inputs(T=steps), device, reset=random_reset(2, steps, probability))


@every_device
@pytest.mark.parametrize(("batch", "width"), [(1, 1), (3, 5), (2, 33)])
def test_matches_reference_for_every_width(device, batch, width):
    inputs = moments_inputs(B=batch, T=9, M=width)
    check(kernel, truth, inputs, device, reset=random_reset(batch, 9, 0.2))


@every_device
@pytest.mark.parametrize("steps", [(0,), (16,), (0, 1, 15, 16)], ids=str)
def test_matches_reference_with_resets_at_the_edges(device, steps):
    check(kernel, truth, moments_inputs(B=3, T=17), device, reset=reset_at(3, 17, steps))


@every_device
def test_the_gradient_of_log_weights_keeps_its_digits_for_large_values(device):
    inputs = moments_inputs(B=8, T=1)
    inputs["value"] *= 50.0
    check(kernel, truth, inputs, device, reset=torch.ones(8, 1, dtype=torch.bool))


@every_device
@every_dtype
def test_half_precision_is_computed_in_float32(device, dtype):
    inputs = moments_inputs(T=9)
    check(kernel, truth, inputs, device, dtype, reset=random_reset(2, 9, 0.2))
    given = {n: x.to(device, F32 if n == "state" else dtype) for n, x in inputs.items()}
    assert all(x.dtype == F32 for x in kernel(**given))


@pytest.mark.parametrize("device", [GPU])
@every_dtype
def test_matches_reference_at_real_sizes(device, dtype):
    inputs = moments_inputs(B=64, T=512, M=64)
    check(kernel, truth, inputs, device, dtype, reset=random_reset(64, 512, 0.02))


@every_device
def test_slices_and_strided_tensors_are_read_where_they_are(device):
    inputs, reset = moments_inputs(B=3, T=5), random_reset(3, 5, 0.2).to(device)
    inputs = {name: x.to(device, F32) for name, x in inputs.items()}
    wide = torch.cat([inputs[name] for name in ("value", "log_weight", "log_decay")], -1)

    def sliced(wide, state):
        return kernel(*wide.chunk(3, -1), state=state, reset=reset)

    expected = results(kernel, inputs, reset=reset)
    actual = results(sliced, {"wide": wide, "state": inputs["state"]})
    thirds = zip(("dvalue", "dlog_weight", "dlog_decay"), actual["dwide"].chunk(3, -1), strict=True)
    crossed = results(kernel, strided(inputs), reset=reset.t().contiguous().t())
    for name, x in (*thirds, *((f"output {i}", actual[f"output {i}"]) for i in range(4))):
        assert torch.equal(x, expected[name]), name
        assert torch.equal(crossed[name], expected[name]), name


@every_device
def test_no_state_and_no_reset_mean_nothing_seen_and_no_reset(device):
    inputs = {name: x.to(device, F32) for name, x in moments_inputs(T=5).items()}
    inputs.pop("state")
    zeros = torch.zeros(2, 3, 8, device=device)
    never = torch.zeros(2, 5, dtype=torch.bool, device=device)
    expected = kernel(**inputs, state=zeros, reset=never)
    for x, y in zip(kernel(**inputs), expected, strict=True):
        assert torch.equal(x, y)


@every_device
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_does_not_pass_a_reset(device, value):
    inputs = {name: x.to(device, F32) for name, x in moments_inputs(T=3).items()}
    reset = reset_at(3, 3, [0])[:2].to(device)
    expected = results(kernel, inputs, reset=reset)
    inputs["state"] = torch.full_like(inputs["state"], value)
    actual = results(kernel, inputs, reset=reset)
    assert all(torch.equal(actual[name], x) for name, x in expected.items())
    assert not actual["dstate"].any()


@every_device
def test_strong_decay_and_no_evidence_stay_finite(device):
    inputs = {name: x.to(device, F32) for name, x in moments_inputs(T=4).items()}
    inputs["log_decay"].fill_(-200.0)
    mean, spread, _, _ = kernel(**inputs)
    assert_close("mean", mean, inputs["value"], SAME[F32])
    assert not spread.any()
    inputs["log_weight"].fill_(-200.0)
    assert all(x.isfinite().all() for x in kernel(**inputs))


@every_device
def test_gradients_of_one_output_alone_are_understood(device):
    inputs, reset = moments_inputs(T=5), random_reset(2, 5, 0.2)

    def spread(call, inputs, reset):
        leaves = [x.detach().requires_grad_() for x in inputs.values()]
        outputs = call(*leaves[:3], state=leaves[3], reset=reset)[1:2]
        return torch.autograd.grad(outputs, leaves, cotangents(outputs))

    expected = spread(truth, inputs, reset)
    given = {name: x.to(device, F32) for name, x in inputs.items()}
    for x, y in zip(spread(kernel, given, reset.to(device)), expected, strict=True):
        assert_close("gradient", x.cpu(), y, KERNEL[F32])


@every_device
@pytest.mark.parametrize("width", [16, 5])
def test_operators_pass_opcheck(device, width):
    inputs = [x.to(device, F32) for x in moments_inputs(T=3, M=width).values()]
    reset = random_reset(2, 3, 0.2).to(device)
    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.library.opcheck(module.moments_forward, (*leaves, reset))
    *outputs, final = module.moments_forward(*inputs, reset)
    gradients = [x.clone() for x in (*outputs, final)]
    torch.library.opcheck(module.moments_backward, (*gradients, *inputs, reset, *outputs))


@every_device
def test_other_dtypes_are_named(device):
    inputs = {name: x.to(device) for name, x in moments_inputs(T=2).items()}
    with pytest.raises(ValueError, match=re.escape("value is torch.float64; backend 'triton'")):
        kernel(**inputs)


@every_device
def test_an_empty_batch_is_an_empty_result(device):
    inputs = {name: x[:0].to(device, F32) for name, x in moments_inputs(T=2).items()}
    outputs = results(kernel, inputs)
    assert outputs["output 0"].shape == (0, 2, 8) and outputs["dstate"].shape == (0, 3, 8)
