"""The fused token shift against the composed one in float64, and against its equation."""

from __future__ import annotations

import re

import pytest
import torch
from kernel_cases import (
    cotangents,
    random_reset,
    reset_at,
    shift_inputs,
    strided,
    with_gradients,
)
from tolerances import KERNEL, SAME, assert_close

from doxastic.kernels import token_shift as module
from doxastic.kernels.token_shift import shift_mix

F32, F64 = torch.float32, torch.float64


def check(inputs, reset):
    truth = with_gradients(shift_mix, inputs, F64, reset=reset)
    actual = with_gradients(shift_mix, inputs, F32, reset=reset)
    for name, expected in truth.items():
        assert_close(name, actual[name], expected, KERNEL[F32])


@pytest.fixture
def no_fallback(monkeypatch):
    def refuse(*args):
        raise AssertionError("the composed operations ran")

    monkeypatch.setattr(module, "_composed", refuse)


def test_float32_on_the_cpu_is_fused(no_fallback):
    inputs = {name: x.float() for name, x in shift_inputs().items()}
    shift_mix(**inputs, reset=random_reset(2, 21, 0.1))
    with pytest.raises(AssertionError, match="composed operations ran"):
        shift_mix(**shift_inputs(), reset=random_reset(2, 21, 0.1))


@pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
def test_every_step_mixes_its_input_with_the_one_before(dtype):
    x = torch.arange(1.0, 5.0, dtype=dtype).reshape(1, 4, 1).expand(1, 4, 16)
    previous, reset = torch.full((1, 16), -3.0, dtype=dtype), reset_at(2, 4, [2])[:1]
    mix = torch.tensor([[0.0], [1.0], [0.5]], dtype=dtype).expand(3, 16)
    current, before, half = shift_mix(x, previous, reset, mix)
    assert torch.equal(current, x)
    assert before[0, :, 0].tolist() == [-3.0, 1.0, 0.0, 3.0]
    assert half[0, :, 0].tolist() == [-1.0, 1.5, 1.5, 3.5]


def test_outputs_may_be_changed_in_place():
    leaves = {name: x.float().requires_grad_() for name, x in shift_inputs().items()}
    reset, values = random_reset(2, 21, 0.1), list(leaves.values())
    expected = torch.autograd.grad(
        sum(3 * x.sum() for x in shift_mix(**leaves, reset=reset)), values
    )
    changed = [x.mul_(3) for x in shift_mix(**leaves, reset=reset)]
    actual = torch.autograd.grad(sum(x.sum() for x in changed), values)
    for name, x, y in zip(leaves, actual, expected, strict=True):
        assert_close(name, x, y, SAME[F32])


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 15, 17, 33])
def test_fused_equals_composed_for_every_length_and_reset_rate(steps, probability):
    check(shift_inputs(T=steps), random_reset(2, steps, probability))


@pytest.mark.parametrize("mixes", [1, 6])
@pytest.mark.parametrize("width", [16, 32, 80])
def test_fused_equals_composed_for_every_width_and_number_of_mixes(width, mixes):
    check(shift_inputs(C=width, G=mixes), random_reset(2, 21, 0.1))


@pytest.mark.parametrize("width", [1, 6, 33])
def test_widths_that_do_not_fill_vectors_are_composed(width):
    check(shift_inputs(C=width), random_reset(2, 21, 0.1))


@pytest.mark.parametrize("steps", [(0,), (1,), (20,), (0, 1, 2, 20)], ids=str)
def test_fused_equals_composed_with_resets_at_the_edges(steps):
    check(shift_inputs(B=3), reset_at(3, 21, steps))


def test_non_contiguous_inputs_are_understood():
    inputs, reset = shift_inputs(B=3), random_reset(3, 21, 0.1)
    expected = with_gradients(shift_mix, inputs, F32, reset=reset)
    actual = with_gradients(shift_mix, strided(inputs), F32, reset=reset.t().contiguous().t())
    for name in expected:
        assert_close(name, actual[name], expected[name], SAME[F32])


def test_expanded_gradients_are_understood():
    leaves = {name: x.float().requires_grad_() for name, x in shift_inputs().items()}
    outputs = shift_mix(**leaves, reset=random_reset(2, 21, 0.1))
    wanted = list(leaves.values())
    summed = torch.autograd.grad([y.sum() for y in outputs], wanted, retain_graph=True)
    dense = torch.autograd.grad(outputs, wanted, [torch.ones_like(y) for y in outputs])
    for name, x, z in zip(leaves, summed, dense, strict=True):
        assert torch.equal(x, z), name


def test_gradients_of_one_mix_alone_are_understood():
    inputs, reset = shift_inputs(), random_reset(2, 21, 0.1)

    def alone(**arguments):
        return shift_mix(**arguments)[1:2]

    truth = with_gradients(alone, inputs, F64, reset=reset)
    actual = with_gradients(alone, inputs, F32, reset=reset)
    for name, expected in truth.items():
        assert_close(name, actual[name], expected, KERNEL[F32])


@pytest.mark.parametrize("at", [0, 3, 20])
def test_exactly_no_gradient_crosses_a_reset(at):
    leaves = {name: x.float().requires_grad_() for name, x in shift_inputs().items()}
    reset = torch.zeros(2, 21, dtype=torch.bool)
    reset[:, at] = True
    after = [y[:, at:] for y in shift_mix(**leaves, reset=reset)]
    inputs = [leaves["x"], leaves["previous"]]
    dx, dprevious = torch.autograd.grad(after, inputs, cotangents(after))
    assert not dprevious.any()
    assert not dx[:, :at].any()
    assert dx[:, at:].any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_previous_input_that_is_not_finite_does_not_pass_a_reset(value):
    leaves = {name: x.float().requires_grad_() for name, x in shift_inputs().items()}
    leaves["previous"] = torch.full((2, 32), value, requires_grad=True)
    reset = torch.zeros(2, 21, dtype=torch.bool)
    reset[:, 0] = True
    outputs = shift_mix(**leaves, reset=reset)
    gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents(outputs))
    assert all(x.isfinite().all() for x in (*outputs, *gradients))


def test_second_derivatives_are_an_error_in_float32_and_exist_in_float64():
    for dtype in (F32, F64):
        leaves = {name: x.to(dtype).requires_grad_() for name, x in shift_inputs().items()}
        outputs = shift_mix(**leaves, reset=random_reset(2, 21, 0.1))
        loss = torch.stack(outputs).square().sum()
        (dx,) = torch.autograd.grad(loss, leaves["x"], create_graph=True)
        if dtype == F32:
            with pytest.raises(RuntimeError, match="once_differentiable"):
                dx.sum().backward()
        else:
            assert torch.autograd.grad(dx.sum(), leaves["mix"])[0].any()


def test_threads_do_not_change_a_bit():
    inputs, reset = shift_inputs(B=8, T=64, C=256, G=6), random_reset(8, 64, 0.05)
    single = with_gradients(shift_mix, inputs, F32, reset=reset)
    torch.set_num_threads(2)
    try:
        double = with_gradients(shift_mix, inputs, F32, reset=reset)
    finally:
        torch.set_num_threads(1)
    for name, expected in single.items():
        assert torch.equal(double[name], expected), name


WRONG = [
    ("x", torch.zeros(2, 32), "x has shape [2, 32]; expected [B, T, C]"),
    ("previous", torch.zeros(2, 16), "previous has shape [2, 16]; expected [B, C] = [2, 32]"),
    ("previous", torch.zeros(1, 32), "previous has shape [1, 32]; expected [B, C] = [2, 32]"),
    ("mix", torch.zeros(32), "mix has shape [32]; expected [G, C]"),
    ("mix", torch.zeros(3, 16), "mix has shape [3, 16]; expected [G, C] = [3, 32]"),
    ("mix", torch.zeros(3, 32).int(), "mix is torch.int32; expected a floating dtype"),
    ("reset", torch.zeros(2, 20, dtype=torch.bool), "reset is [2, 20] torch.bool on cpu"),
]


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_wrong_arguments_are_named(name, wrong, message):
    inputs = {key: x.float() for key, x in shift_inputs().items()}
    inputs["reset"] = torch.zeros(2, 21, dtype=torch.bool)
    with pytest.raises(ValueError, match=re.escape(message)):
        shift_mix(**{**inputs, name: wrong})
