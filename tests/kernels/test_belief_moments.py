"""The fused belief of decayed moments against the composed one in float64."""

from __future__ import annotations

import re

import pytest
import torch
from kernel_cases import (
    belief_inputs,
    cotangents,
    random_reset,
    reset_at,
    strided,
    with_gradients,
)
from tolerances import KERNEL, SAME, assert_close

from doxastic.kernels import belief_moments as module
from doxastic.kernels.belief_moments import (
    LOG_WEIGHT_LIMIT,
    belief_features,
    belief_moments,
    belief_moments_features,
)

F32, F64 = torch.float32, torch.float64


def check(inputs, reset):
    truth = with_gradients(belief_moments_features, inputs, F64, reset=reset)
    actual = with_gradients(belief_moments_features, inputs, F32, reset=reset)
    for name, expected in truth.items():
        assert_close(name, actual[name], expected, KERNEL[F32])


@pytest.fixture
def no_fallback(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("the composed operations ran")

    monkeypatch.setattr(module, "belief_moments", refuse)


def test_float32_on_the_cpu_is_fused(no_fallback):
    inputs = {name: x.float() for name, x in belief_inputs().items()}
    belief_moments_features(**inputs, reset=random_reset(2, 21, 0.1))
    with pytest.raises(AssertionError, match="composed operations ran"):
        belief_moments_features(**belief_inputs(), reset=random_reset(2, 21, 0.1))


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 15, 17, 33])
def test_fused_equals_composed_for_every_length_and_reset_rate(steps, probability):
    check(belief_inputs(T=steps), random_reset(2, steps, probability))


@pytest.mark.parametrize("width", [16, 32, 48])
def test_fused_equals_composed_for_every_width(width):
    check(belief_inputs(M=width), random_reset(2, 21, 0.1))


@pytest.mark.parametrize("width", [1, 6, 33])
def test_widths_that_do_not_fill_vectors_are_composed(width):
    check(belief_inputs(M=width), random_reset(2, 21, 0.1))


@pytest.mark.parametrize("steps", [(0,), (1,), (20,), (0, 1, 2, 20)], ids=str)
def test_fused_equals_composed_with_resets_at_the_edges(steps):
    check(belief_inputs(B=3), reset_at(3, 21, steps))


def test_nothing_seen_is_a_valid_state():
    inputs = belief_inputs()
    inputs["state"] = torch.zeros_like(inputs["state"])
    check(inputs, random_reset(2, 21, 0.1))


def test_features_are_those_of_the_belief():
    inputs, reset = belief_inputs(), random_reset(2, 21, 0.1)
    features, state = belief_moments_features(**inputs, reset=reset)
    mean, variance, evidence, last = belief_moments(**inputs, reset=reset)
    assert torch.equal(features, belief_features(mean, variance, evidence))
    assert torch.equal(state, last)


def test_log_weights_count_up_to_their_limit_and_have_no_gradient_beyond():
    inputs = belief_inputs()
    M = inputs["prior"].numel()
    inputs["raw"][:, :, M : 2 * M] = 3.0 * LOG_WEIGHT_LIMIT
    inputs["raw"][:, ::2, M : 2 * M] = -3.0 * LOG_WEIGHT_LIMIT
    check(inputs, random_reset(2, 21, 0.1))
    actual = with_gradients(belief_moments_features, inputs, F32, reset=random_reset(2, 21, 0.1))
    assert not actual["draw"][:, :, M : 2 * M].any()


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_features_and_gradients_are_finite_for_large_and_small_values(scale):
    inputs = belief_inputs(T=200)
    inputs["raw"] *= scale
    actual = with_gradients(belief_moments_features, inputs, F32, reset=random_reset(2, 200, 0.01))
    assert all(x.isfinite().all() for x in actual.values())


def test_a_value_that_is_not_a_number_is_seen_until_the_reset():
    inputs = {name: x.float() for name, x in belief_inputs().items()}
    reset = reset_at(3, 21, [10])[:2]
    expected, _ = belief_moments_features(**inputs, reset=reset)
    inputs["raw"][:, 5, :16] = float("nan")
    actual, _ = belief_moments_features(**inputs, reset=reset)
    mean, log_variance, log_evidence, ratio = actual.chunk(4, -1)
    for x in (mean, log_variance, ratio):
        assert x[:, 5:10].isnan().all()
    assert log_evidence.isfinite().all()
    for part in (slice(0, 5), slice(10, 21)):
        assert torch.equal(actual[:, part], expected[:, part])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_does_not_pass_a_reset(value):
    leaves = {name: x.float().requires_grad_() for name, x in belief_inputs().items()}
    leaves["state"] = torch.full((2, 3, 16), value, requires_grad=True)
    reset = reset_at(3, 21, [0])[:2]
    outputs = belief_moments_features(**leaves, reset=reset)
    gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents(outputs))
    assert all(x.isfinite().all() for x in (*outputs, *gradients))


def test_non_contiguous_inputs_are_understood():
    inputs, reset = belief_inputs(B=3), random_reset(3, 21, 0.1)
    expected = with_gradients(belief_moments_features, inputs, F32, reset=reset)
    actual = with_gradients(
        belief_moments_features, strided(inputs), F32, reset=reset.t().contiguous().t()
    )
    for name in expected:
        assert_close(name, actual[name], expected[name], SAME[F32])


def test_expanded_gradients_are_understood():
    leaves = {name: x.float().requires_grad_() for name, x in belief_inputs().items()}
    features, state = belief_moments_features(**leaves, reset=random_reset(2, 21, 0.1))
    wanted = list(leaves.values())
    summed = torch.autograd.grad((features.sum(), state.sum()), wanted, retain_graph=True)
    ones = (torch.ones_like(features), torch.ones_like(state))
    dense = torch.autograd.grad((features, state), wanted, ones)
    for name, x, z in zip(leaves, summed, dense, strict=True):
        assert torch.equal(x, z), name


@pytest.mark.parametrize("at", [0, 3, 20])
def test_exactly_no_gradient_crosses_a_reset(at):
    leaves = {name: x.float().requires_grad_() for name, x in belief_inputs().items()}
    reset = torch.zeros(2, 21, dtype=torch.bool)
    reset[:, at] = True
    features, state = belief_moments_features(**leaves, reset=reset)
    after = (features[:, at:], state)
    inputs = [leaves["raw"], leaves["state"]]
    draw, dstate = torch.autograd.grad(after, inputs, cotangents(after))
    assert not dstate.any()
    assert not draw[:, :at].any()
    # The value and its log-weight; the reset step itself has nothing to decay.
    assert draw[:, at:, :32].all()


def test_second_derivatives_are_an_error_in_float32_and_exist_in_float64():
    for dtype in (F32, F64):
        leaves = {name: x.to(dtype).requires_grad_() for name, x in belief_inputs(T=3).items()}
        features, _ = belief_moments_features(**leaves, reset=random_reset(2, 3, 0.1))
        (draw,) = torch.autograd.grad(features.square().sum(), leaves["raw"], create_graph=True)
        if dtype == F32:
            with pytest.raises(RuntimeError, match="once_differentiable"):
                draw.sum().backward()
        else:
            assert torch.autograd.grad(draw.sum(), leaves["raw"])[0].any()


def test_the_gradient_of_log_weights_keeps_its_digits_for_large_values():
    inputs, M = belief_inputs(B=8, T=1), 16
    inputs["raw"][:, :, :M] *= 50.0
    reset = torch.ones(8, 1, dtype=torch.bool)
    truth = with_gradients(belief_moments_features, inputs, F64, reset=reset)["draw"]
    actual = with_gradients(belief_moments_features, inputs, F32, reset=reset)["draw"]
    middle = slice(M, 2 * M)
    assert_close("dlog_weight", actual[..., middle], truth[..., middle], KERNEL[F32])


def test_threads_do_not_change_a_bit():
    inputs, reset = belief_inputs(B=8, T=64, M=32), random_reset(8, 64, 0.05)
    single = with_gradients(belief_moments_features, inputs, F32, reset=reset)
    torch.set_num_threads(2)
    try:
        double = with_gradients(belief_moments_features, inputs, F32, reset=reset)
    finally:
        torch.set_num_threads(1)
    for name, expected in single.items():
        assert torch.equal(double[name], expected), name


WRONG = [
    ("raw", torch.zeros(2, 48), "raw has shape [2, 48]; expected [B, T, 3 M]"),
    ("raw", torch.zeros(2, 21, 47), "raw has shape [2, 21, 47]; expected [B, T, 3 M]"),
    ("prior", torch.ones(1, 16), "prior has shape [1, 16]; expected [M]"),
    ("state", torch.zeros(2, 3, 15), "state has shape [2, 3, 15]; expected [B, 3, M] = [2, 3, 16]"),
    ("state", torch.zeros(2, 3, 16).double(), "state is torch.float64; expected torch.float32"),
    ("reset", torch.zeros(2, 21).int(), "expected [B, T] = [2, 21] torch.bool"),
]


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_wrong_arguments_are_named(name, wrong, message):
    inputs = {key: x.float() for key, x in belief_inputs().items()}
    inputs["reset"] = torch.zeros(2, 21, dtype=torch.bool)
    with pytest.raises(ValueError, match=re.escape(message)):
        belief_moments_features(**{**inputs, name: wrong})
