"""The fused time mix against the composed one in float64: outputs, states and all gradients."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from kernel_cases import (
    TIME_MIX,
    cotangents,
    random_reset,
    reset_at,
    strided,
    time_mix_inputs,
    with_gradients,
)
from tolerances import KERNEL, NORMALISED, SAME, assert_close

from doxastic.kernels import time_mix as module
from doxastic.kernels.cpu.time_mix import CACHED

F32, F64 = torch.float32, torch.float64
# Large, so that the group norm is well conditioned and a wrong digit shows.
time_mix = partial(module.time_mix, norm_eps=0.1)


def check(inputs, reset):
    truth = with_gradients(time_mix, inputs, F64, reset=reset)
    actual = with_gradients(time_mix, inputs, F32, reset=reset)
    for name, expected in truth.items():
        assert_close(name, actual[name], expected, KERNEL[F32])


@pytest.fixture
def no_fallback(monkeypatch):
    def refuse(*args):
        raise AssertionError("the composed operations ran")

    monkeypatch.setattr(module, "_composed", refuse)


def test_float32_on_the_cpu_is_fused(no_fallback):
    inputs = {name: x.float() for name, x in time_mix_inputs().items()}
    time_mix(**inputs, reset=random_reset(2, 21, 0.1))
    with pytest.raises(AssertionError, match="composed operations ran"):
        time_mix(**time_mix_inputs(), reset=random_reset(2, 21, 0.1))


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 15, 17, 33])
def test_fused_equals_composed_for_every_length_and_reset_rate(steps, probability):
    check(time_mix_inputs(T=steps), random_reset(2, steps, probability))


@pytest.mark.parametrize("steps", [300, 700])
def test_fused_equals_composed_where_a_row_is_done_in_parts(steps):
    # Two heads of three at a time, then one.
    assert CACHED // (steps * 16) == (2 if steps == 300 else 0)
    check(time_mix_inputs(T=steps, H=3, K=16), random_reset(2, steps, 0.02))


@pytest.mark.parametrize(("heads", "size"), [(1, 16), (3, 16), (1, 32), (2, 32), (1, 64)])
def test_fused_equals_composed_for_every_width(heads, size):
    check(time_mix_inputs(H=heads, K=size), random_reset(2, 21, 0.1))


@pytest.mark.parametrize("size", [3, 6, 33])
def test_heads_that_do_not_fill_vectors_are_composed(size):
    check(time_mix_inputs(H=3, K=size), random_reset(2, 21, 0.1))


@pytest.mark.parametrize("steps", [(0,), (15,), (16,), (20,), (0, 1, 15, 16, 20)], ids=str)
def test_fused_equals_composed_with_resets_at_the_edges(steps):
    check(time_mix_inputs(B=3), reset_at(3, 21, steps))


@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
def test_fused_equals_composed_with_the_norm_of_rwkv7(probability):
    official = partial(module.time_mix, norm_eps=16e-5)
    inputs, reset = time_mix_inputs(T=33), random_reset(2, 33, probability)
    truth = with_gradients(official, inputs, F64, reset=reset)
    actual = with_gradients(official, inputs, F32, reset=reset)
    for name, expected in truth.items():
        assert_close(name, actual[name], expected, NORMALISED[F32])


def test_a_zero_key_is_as_finite_as_in_the_composed_form():
    inputs = time_mix_inputs()
    inputs["k"][:, 3] = 0.0
    actual = with_gradients(time_mix, inputs, F32, reset=random_reset(2, 21, 0.1))
    assert all(x.isfinite().all() for x in actual.values())
    truth = with_gradients(time_mix, inputs, F64, reset=random_reset(2, 21, 0.1))
    for i in range(2):
        assert_close("output", actual[f"output {i}"], truth[f"output {i}"], KERNEL[F32])


def test_non_contiguous_inputs_are_understood():
    inputs, reset = time_mix_inputs(B=3), random_reset(3, 21, 0.1)
    expected = with_gradients(time_mix, inputs, F32, reset=reset)
    actual = with_gradients(time_mix, strided(inputs), F32, reset=reset.t().contiguous().t())
    for name in expected:
        assert_close(name, actual[name], expected[name], SAME[F32])


def test_expanded_gradients_are_understood():
    leaves = {name: x.float().requires_grad_() for name, x in time_mix_inputs().items()}
    y, state = time_mix(**leaves, reset=random_reset(2, 21, 0.1))
    wanted = list(leaves.values())
    summed = torch.autograd.grad((y.sum(), state.sum()), wanted, retain_graph=True)
    dense = torch.autograd.grad((y, state), wanted, (torch.ones_like(y), torch.ones_like(state)))
    for name, x, z in zip(leaves, summed, dense, strict=True):
        assert torch.equal(x, z), name


@pytest.mark.parametrize("output", [0, 1], ids=["y", "state"])
def test_gradients_of_one_output_alone_are_understood(output):
    def alone(**arguments):
        return (time_mix(**arguments)[output],)

    inputs, reset = time_mix_inputs(), random_reset(2, 21, 0.1)
    leaves = {name: x.float().requires_grad_() for name, x in inputs.items()}
    outputs = alone(**leaves, reset=reset)
    actual = torch.autograd.grad(
        outputs, list(leaves.values()), cotangents(outputs), allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip
    precise = {name: x.requires_grad_() for name, x in inputs.items()}
    outputs = alone(**precise, reset=reset)
    expected = torch.autograd.grad(
        outputs, list(precise.values()), cotangents(outputs), allow_unused=True,
        materialize_grads=True,
    )  # fmt: skip
    for name, x, y in zip(leaves, actual, expected, strict=True):
        assert_close(name, x, y, KERNEL[F32])


@pytest.mark.parametrize("at", [0, 3, 16, 20])
def test_exactly_no_gradient_crosses_a_reset(at):
    leaves = {name: x.float().requires_grad_() for name, x in time_mix_inputs().items()}
    reset = torch.zeros(2, 21, dtype=torch.bool)
    reset[:, at] = True
    y, state = time_mix(**leaves, reset=reset)
    after = (y[:, at:], state)
    inputs = [leaves["state"], *(leaves[name] for name in TIME_MIX)]
    dstate, *gradients = torch.autograd.grad(after, inputs, cotangents(after))
    assert not dstate.any()
    for name, gradient in zip(TIME_MIX, gradients, strict=True):
        assert not gradient[:, :at].any(), name
        # The reset step itself has nothing to decay.
        assert gradient[:, at:].any() or (name, at) == ("decay", 20), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_does_not_pass_a_reset(value):
    inputs = {name: x.float() for name, x in time_mix_inputs().items()}
    reset = torch.zeros(2, 21, dtype=torch.bool)
    reset[:, 0] = True
    expected = time_mix(**inputs, reset=reset)
    inputs["state"] = torch.full_like(inputs["state"], value)
    for x, y in zip(time_mix(**inputs, reset=reset), expected, strict=True):
        assert torch.equal(x, y)


def test_the_arguments_are_left_as_they_were():
    inputs = {name: x.float() for name, x in time_mix_inputs().items()}
    before = {name: x.clone() for name, x in inputs.items()}
    with_gradients(time_mix, inputs, F32, reset=random_reset(2, 21, 0.1))
    assert all(torch.equal(inputs[name], x) for name, x in before.items())


def test_second_derivatives_are_an_error_in_float32_and_exist_in_float64():
    for dtype in (F32, F64):
        leaves = {name: x.to(dtype).requires_grad_() for name, x in time_mix_inputs(T=3).items()}
        y, _ = time_mix(**leaves, reset=random_reset(2, 3, 0.1))
        (dk,) = torch.autograd.grad(y.square().sum(), leaves["k"], create_graph=True)
        if dtype == F32:
            with pytest.raises(RuntimeError, match="once_differentiable"):
                dk.sum().backward()
        else:
            second = torch.autograd.grad(dk.sum(), leaves["k"])[0]
            assert second.isfinite().all() and second.any()


@pytest.mark.parametrize(("batch", "heads"), [(8, 4), (3, 5)])
def test_threads_do_not_change_a_bit(batch, heads):
    # The second is parted in the middle of a row.
    inputs, reset = time_mix_inputs(B=batch, T=64, H=heads), random_reset(batch, 64, 0.05)
    single = with_gradients(time_mix, inputs, F32, reset=reset)
    torch.set_num_threads(2)
    try:
        double = with_gradients(time_mix, inputs, F32, reset=reset)
    finally:
        torch.set_num_threads(1)
    for name, expected in single.items():
        assert torch.equal(double[name], expected), name


def test_outputs_may_be_changed_in_place():
    inputs, reset = time_mix_inputs(), random_reset(2, 21, 0.1)
    leaves = {name: x.float().requires_grad_() for name, x in inputs.items()}
    outputs = time_mix(**leaves, reset=reset)
    expected = torch.autograd.grad(sum(3 * x.sum() for x in outputs), list(leaves.values()))
    changed = [x.mul_(3) for x in time_mix(**leaves, reset=reset)]
    actual = torch.autograd.grad(sum(x.sum() for x in changed), list(leaves.values()))
    for name, x, y in zip(leaves, actual, expected, strict=True):
        assert_close(name, x, y, SAME[F32])


@pytest.mark.parametrize("dtypes", [(F32, torch.bfloat16), (F32, F64), (F64, F32)], ids=str)
def test_parameters_of_another_dtype_are_promoted(dtypes):
    inputs, reset = time_mix_inputs(), random_reset(2, 21, 0.1)
    given = {
        name: x.to(dtypes[0] if name in (*TIME_MIX, "state") else dtypes[1])
        for name, x in inputs.items()
    }
    expected = time_mix(**{name: x.double() for name, x in given.items()}, reset=reset)
    for i, x in enumerate(time_mix(**given, reset=reset)):
        assert x.dtype == torch.promote_types(*dtypes) or i
        assert_close(f"output {i}", x, expected[i], KERNEL[F32])


WRONG = [
    ("r", torch.zeros(2, 32), "r has shape [2, 32]; expected [B, T, C]"),
    ("decay", torch.zeros(2, 20, 32), "decay has shape [2, 20, 32]; expected [B, T, C]"),
    ("gate", torch.zeros(2, 21, 16), "gate has shape [2, 21, 16]; expected [B, T, C]"),
    ("v", torch.zeros(2, 21, 32).long(), "v is torch.int64; expected a floating dtype"),
    ("k", torch.zeros(2, 21, 32, device="meta"), "k is on meta; expected cpu"),
    ("r_k", torch.zeros(32), "r_k has shape [32]; expected [H, K]"),
    ("r_k", torch.zeros(3, 16), "r_k has shape [3, 16]; expected [H, K] = [2, 16]"),
    ("r_k", torch.zeros(1, 20), "r_k has shape [1, 20]; expected [H, K] with H K = C = 32"),
    ("k_k", torch.zeros(31), "k_k has shape [31]; expected [C] = [32]"),
    ("norm_bias", torch.zeros(1), "norm_bias has shape [1]; expected [C] = [32]"),
    ("state", torch.zeros(1, 2, 16, 16), "state has shape [1, 2, 16, 16]; expected [B, H, V, K]"),
    ("state", torch.zeros(2, 2, 16, 16).double(), "state is torch.float64; expected torch.float32"),
    ("reset", torch.zeros(2, 21), "expected [B, T] = [2, 21] torch.bool"),
]


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_wrong_arguments_are_named(name, wrong, message):
    inputs = {key: x.float() for key, x in time_mix_inputs().items()}
    inputs["reset"] = torch.zeros(2, 21, dtype=torch.bool)
    with pytest.raises(ValueError, match=re.escape(message)):
        time_mix(**{**inputs, name: wrong})
