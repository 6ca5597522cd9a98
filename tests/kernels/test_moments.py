"""Every backend of `weighted_moments` against the float64 reference and by hand."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import cotangents, moments_inputs, random_reset, reset_at, with_gradients
from tolerances import KERNEL, SAME, assert_close

from doxastic.kernels.moments import weighted_moments

F32, F64 = torch.float32, torch.float64
BACKENDS = [("chunked", F32), ("chunked", F64), ("cpu", F32), ("reference", F32)]
IDS = ["chunked-f32", "chunked-f64", "cpu-f32", "reference-f32"]
every_backend = pytest.mark.parametrize(("backend", "dtype"), BACKENDS, ids=IDS)


def check(backend, dtype, inputs, reset):
    truth = with_gradients(weighted_moments, inputs, F64, reset=reset, backend="reference")
    actual = with_gradients(weighted_moments, inputs, dtype, reset=reset, backend=backend)
    for name, expected in truth.items():
        assert_close(name, actual[name], expected, KERNEL[dtype])


@every_backend
@pytest.mark.parametrize("probability", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 15, 16, 17, 63, 65])
def test_matches_reference_for_every_length_and_reset_rate(backend, dtype, steps, probability):
    check(backend, dtype, moments_inputs(T=steps), random_reset(2, steps, probability))


@every_backend
@pytest.mark.parametrize("width", [1, 5, 16, 33])
def test_matches_reference_for_every_width(backend, dtype, width):
    check(backend, dtype, moments_inputs(B=1, T=20, M=width), random_reset(1, 20, 0.1))


@every_backend
@pytest.mark.parametrize("steps", [(), (0,), (15,), (16,), (47,), (0, 1, 16, 47)], ids=str)
def test_matches_reference_with_resets_at_the_edges(backend, dtype, steps):
    check(backend, dtype, moments_inputs(B=3, T=48), reset_at(3, 48, steps))


@every_backend
def test_no_reset_tensor_means_no_reset(backend, dtype):
    check(backend, dtype, moments_inputs(T=20), None)


@every_backend
def test_no_state_means_nothing_was_seen(backend, dtype):
    inputs = moments_inputs(T=20)
    inputs["state"] = torch.zeros_like(inputs["state"])
    check(backend, dtype, inputs, None)
    zeros = {name: x.to(dtype) for name, x in inputs.items()}
    expected = weighted_moments(**zeros, backend=backend)
    zeros.pop("state")
    for x, y in zip(weighted_moments(**zeros, backend=backend), expected, strict=True):
        assert_close("output", x, y, SAME[dtype])


@every_backend
def test_moments_are_those_of_the_weighted_sample(backend, dtype):
    inputs = {name: x.to(dtype) for name, x in moments_inputs(T=12).items()}
    inputs.pop("state")
    mean, spread, evidence, state = weighted_moments(**inputs, backend=backend)
    age = inputs["log_decay"].double().cumsum(1)
    weight = (age[:, -1:] - age + inputs["log_weight"].double()).exp()
    value, total = inputs["value"].double(), weight.sum(1)
    expected = (weight * value).sum(1) / total
    variance = (weight * (value - expected.unsqueeze(1)).square()).sum(1) / total
    assert_close("evidence", evidence[:, -1], total, KERNEL[dtype])
    assert_close("mean", mean[:, -1], expected, KERNEL[dtype])
    assert_close("spread", spread[:, -1], variance, KERNEL[dtype])
    assert torch.equal(state, torch.stack((evidence[:, -1], mean[:, -1], spread[:, -1]), 1))


@every_backend
def test_equal_weights_without_decay_give_the_sample_moments(backend, dtype):
    value = torch.tensor([1.0, 3.0, 8.0], dtype=dtype).reshape(1, 3, 1)
    zeros = torch.zeros_like(value)
    mean, spread, evidence, _ = weighted_moments(value, zeros, zeros, backend=backend)
    expected = (("mean", mean, (1, 2, 4)), ("spread", spread, (0, 1, 26 / 3)))
    for name, x, numbers in (*expected, ("evidence", evidence, (1, 2, 3))):
        assert_close(name, x, torch.tensor(numbers, dtype=F64).reshape(1, 3, 1), SAME[dtype])


@every_backend
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_spread_of_a_constant_is_never_negative_and_negligible(backend, dtype, offset):
    value = torch.full((2, 200, 8), 1.0 / 3.0 + offset, dtype=dtype)
    other = moments_inputs(T=200)
    log_weight, log_decay = other["log_weight"].to(dtype), other["log_decay"].to(dtype)
    _, spread, _, _ = weighted_moments(value, log_weight, log_decay, backend=backend)
    assert (spread >= 0).all()
    # A rounding error of the mean, squared; a difference of squares would leave eps itself.
    assert (spread <= (8 * torch.finfo(dtype).eps * value).square()).all()


@every_backend
def test_strong_decay_forgets_without_overflow(backend, dtype):
    inputs = {name: x.to(dtype) for name, x in moments_inputs(T=40).items()}
    inputs["log_decay"] = torch.full_like(inputs["log_decay"], -60.0)
    mean, spread, evidence, _ = weighted_moments(**inputs, backend=backend)
    assert_close("mean", mean, inputs["value"], SAME[dtype])
    assert_close("evidence", evidence, inputs["log_weight"].exp(), SAME[dtype])
    assert spread.isfinite().all()


@every_backend
@pytest.mark.parametrize("cut", [1, 16, 20])
def test_two_calls_equal_one(backend, dtype, cut):
    inputs, reset = moments_inputs(T=33), random_reset(2, 33, 0.05)

    def halves(state, reset, **sequences):
        first = {name: x[:, :cut] for name, x in sequences.items()}
        second = {name: x[:, cut:] for name, x in sequences.items()}
        *left, state = weighted_moments(**first, state=state, reset=reset[:, :cut], backend=backend)
        *right, state = weighted_moments(
            **second, state=state, reset=reset[:, cut:], backend=backend
        )
        return *(torch.cat(pair, 1) for pair in zip(left, right, strict=True)), state

    whole = with_gradients(weighted_moments, inputs, dtype, reset=reset, backend=backend)
    parts = with_gradients(halves, inputs, dtype, reset=reset)
    for name, expected in whole.items():
        assert_close(name, parts[name], expected, KERNEL[dtype])


@every_backend
def test_non_contiguous_inputs_are_understood(backend, dtype):
    inputs, reset = moments_inputs(B=3, T=20), random_reset(3, 20, 0.1)
    strided = {name: x.transpose(0, 1).contiguous().transpose(0, 1) for name, x in inputs.items()}
    expected = with_gradients(weighted_moments, inputs, dtype, reset=reset, backend=backend)
    actual = with_gradients(
        weighted_moments, strided, dtype, reset=reset.t().contiguous().t(), backend=backend
    )
    for name in expected:
        assert_close(name, actual[name], expected[name], SAME[dtype])


@every_backend
@pytest.mark.parametrize("at", [3, 16, 21])
def test_no_gradient_crosses_a_reset(backend, dtype, at):
    leaves = {name: x.to(dtype).requires_grad_() for name, x in moments_inputs(T=40).items()}
    reset = torch.zeros(2, 40, dtype=torch.bool)
    reset[:, at] = True
    *outputs, state = weighted_moments(**leaves, reset=reset, backend=backend)
    after = (*(x[:, at:] for x in outputs), state)
    *sequences, dstate = torch.autograd.grad(after, list(leaves.values()), cotangents(after))
    assert not dstate.any()
    assert not any(g[:, :at].any() for g in sequences)
    assert all(g[:, at:].any() for g in sequences)


@every_backend
def test_a_reset_equals_a_fresh_start(backend, dtype):
    inputs = {name: x.to(dtype) for name, x in moments_inputs(T=40).items()}
    reset = torch.zeros(2, 40, dtype=torch.bool)
    reset[:, 21] = True
    whole = weighted_moments(**inputs, reset=reset, backend=backend)
    fresh = {name: x[:, 21:] for name, x in inputs.items() if name != "state"}
    for x, y in zip(whole, weighted_moments(**fresh, backend=backend), strict=True):
        assert_close("output", x[:, 21:] if x.shape[1] == 40 else x, y, SAME[dtype])


@every_backend
def test_nothing_before_a_change_depends_on_it(backend, dtype):
    inputs = {name: x.to(dtype) for name, x in moments_inputs(T=40).items()}
    changed = {name: x.clone() for name, x in inputs.items()}
    changed["value"][:, 21] += 1.0
    changed["log_weight"][:, 21] += 1.0
    before = weighted_moments(**inputs, backend=backend)
    after = weighted_moments(**changed, backend=backend)
    for x, y in zip(before[:3], after[:3], strict=True):
        assert torch.equal(x[:, :21], y[:, :21])
        assert (x[:, 21] != y[:, 21]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("backend", ["reference", "chunked", "cpu"])
def test_half_precision_is_computed_and_returned_in_float32(backend, dtype):
    inputs = moments_inputs(T=20)
    state = inputs.pop("state").float()
    low = {name: x.to(dtype) for name, x in inputs.items()}
    exact = {name: x.float() for name, x in low.items()}
    expected = weighted_moments(**exact, state=state, backend="reference")
    for x, y in zip(weighted_moments(**low, state=state, backend=backend), expected, strict=True):
        assert x.dtype == F32
        assert_close("output", x, y, KERNEL[F32])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_first_and_second_derivatives_match_finite_differences(backend):
    inputs = [x.requires_grad_() for x in moments_inputs(B=1, T=7, M=2).values()]
    reset = reset_at(2, 7, [4])[:1]

    def function(value, log_weight, log_decay, state):
        return weighted_moments(
            value, log_weight, log_decay, state=state, reset=reset, backend=backend
        )

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@every_backend
def test_the_gradient_of_log_weights_keeps_its_digits_for_large_values(backend, dtype):
    inputs, reset = moments_inputs(B=8, T=1), torch.ones(8, 1, dtype=torch.bool)
    inputs["value"] *= 50.0
    truth = with_gradients(weighted_moments, inputs, F64, reset=reset, backend="reference")
    actual = with_gradients(weighted_moments, inputs, dtype, reset=reset, backend=backend)
    name = "dlog_weight"
    assert_close(name, actual[name], truth[name], KERNEL[dtype])


@every_backend
@pytest.mark.parametrize("gone", [-200.0, float("-inf")])
def test_an_endless_log_decay_forgets_even_overwhelming_evidence(backend, dtype, gone):
    inputs = {name: x.to(dtype) for name, x in moments_inputs(T=9).items()}
    inputs["log_weight"][:, :4] = 80.0
    inputs["log_weight"][:, 4:] = -8.0
    inputs["log_decay"][:, 4] = gone
    *outputs, state = weighted_moments(**inputs, backend=backend)
    after = (*(x[:, 4:] for x in outputs), state)
    later = {name: x[:, 4:] for name, x in inputs.items() if name != "state"}
    for x, y in zip(after, weighted_moments(**later, backend=backend), strict=True):
        assert_close("output", x, y, SAME[dtype])


@every_backend
def test_no_gradient_crosses_an_endless_log_decay(backend, dtype):
    leaves = {name: x.to(dtype) for name, x in moments_inputs(T=9).items()}
    leaves["log_decay"][:, 4] = float("-inf")
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    *outputs, state = weighted_moments(**leaves, backend=backend)
    after = (*(x[:, 4:] for x in outputs), state)
    *sequences, dstate = torch.autograd.grad(after, list(leaves.values()), cotangents(after))
    assert not dstate.any()
    assert not any(x[:, :4].any() for x in sequences)
    assert all(x[:, 4:].isfinite().all() for x in sequences)


def test_threads_do_not_change_a_bit():
    inputs, reset = moments_inputs(B=8, T=64, M=64), random_reset(8, 64, 0.05)
    single = with_gradients(weighted_moments, inputs, F32, reset=reset, backend="cpu")
    torch.set_num_threads(2)
    try:
        double = with_gradients(weighted_moments, inputs, F32, reset=reset, backend="cpu")
    finally:
        torch.set_num_threads(1)
    for name, expected in single.items():
        assert torch.equal(double[name], expected), name
