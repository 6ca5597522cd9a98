"""`wkv7_step` against `wkv7`, and its in-place form."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import random_reset, with_gradients, wkv7_inputs
from tolerances import KERNEL, SAME, assert_close

from doxastic.kernels.wkv7 import wkv7, wkv7_step

F32, F64 = torch.float32, torch.float64
every_backend = pytest.mark.parametrize(
    ("backend", "dtype"),
    [("chunked", F32), ("chunked", F64), ("cpu", F32), ("reference", F32)],
    ids=["chunked-f32", "chunked-f64", "cpu-f32", "reference-f32"],
)


def steps(state, reset, backend, inplace=False, **sequences):
    outputs = []
    for t in range(reset.shape[1]):
        inputs = {name: x[:, t] for name, x in sequences.items()}
        y, state = wkv7_step(
            **inputs, state=state, reset=reset[:, t], backend=backend, inplace=inplace
        )
        outputs.append(y)
    return torch.stack(outputs, 1), state


@every_backend
@pytest.mark.parametrize(("keys", "values"), [(8, 8), (16, 32), (7, 5)])
def test_a_sequence_equals_repeated_steps(backend, dtype, keys, values):
    inputs = {name: x.to(dtype) for name, x in wkv7_inputs(T=20, K=keys, V=values).items()}
    reset = random_reset(2, 20, 0.1)
    expected = wkv7(**inputs, reset=reset, backend=backend)
    actual = steps(**inputs, reset=reset, backend=backend)
    for name, x, y in zip(("y", "state"), actual, expected, strict=True):
        assert_close(name, x, y, KERNEL[dtype])


@every_backend
def test_gradients_through_steps_equal_those_of_the_sequence(backend, dtype):
    inputs, reset = wkv7_inputs(T=5), random_reset(2, 5, 0.2)
    expected = with_gradients(wkv7, inputs, dtype, reset=reset, backend=backend)
    actual = with_gradients(steps, inputs, dtype, reset=reset, backend=backend)
    for name in expected:
        assert_close(name, actual[name], expected[name], KERNEL[dtype])


@every_backend
@pytest.mark.parametrize("width", [16, 5])
def test_inplace_writes_the_same_state_over_the_old_one(backend, dtype, width):
    inputs = {name: x.to(dtype) for name, x in wkv7_inputs(T=4, K=width, V=width).items()}
    reset = random_reset(2, 4, 0.3)
    expected = steps(**inputs, reset=reset, backend=backend)
    state = inputs.pop("state").clone()
    y, last = steps(**inputs, state=state, reset=reset, backend=backend, inplace=True)
    assert last is state
    assert_close("y", y, expected[0], SAME[dtype])
    assert_close("state", state, expected[1], SAME[dtype])


@every_backend
@pytest.mark.parametrize("width", [16, 5])
def test_autograd_notices_that_the_state_was_overwritten(backend, dtype, width):
    inputs = {name: x.to(dtype) for name, x in wkv7_inputs(T=1, K=width, V=width).items()}
    state = inputs.pop("state")
    factor = torch.ones_like(state, requires_grad=True)
    product = (factor * state).sum()
    inputs = {name: x[:, 0] for name, x in inputs.items()}
    with torch.no_grad():
        wkv7_step(**inputs, state=state, backend=backend, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@every_backend
def test_inplace_works_in_inference_mode(backend, dtype):
    with torch.inference_mode():
        inputs = {name: x.to(dtype) for name, x in wkv7_inputs(T=2, K=16, V=16).items()}
        reset = torch.zeros(2, 2, dtype=torch.bool)
        expected = steps(**inputs, reset=reset, backend=backend)
        actual = steps(**inputs, reset=reset, backend=backend, inplace=True)
    for name, x, y in zip(("y", "state"), actual, expected, strict=True):
        assert torch.equal(x, y), name


@every_backend
def test_without_inplace_the_old_state_stays(backend, dtype):
    inputs = {name: x.to(dtype)[:, 0] for name, x in wkv7_inputs(T=1).items() if name != "state"}
    state = torch.ones(2, 2, 8, 8, dtype=dtype)
    _, new = wkv7_step(**inputs, state=state, backend=backend)
    assert (state == 1).all()
    assert not torch.equal(new, state)


@every_backend
def test_no_state_and_no_reset_mean_zeros_and_none(backend, dtype):
    inputs = {name: x.to(dtype)[:, 0] for name, x in wkv7_inputs(T=1).items() if name != "state"}
    y, state = wkv7_step(**inputs, backend=backend)
    assert_close("state", state, inputs["v"].unsqueeze(-1) * inputs["k"].unsqueeze(-2), SAME[dtype])
    assert_close("y", y, (state @ inputs["r"].unsqueeze(-1)).squeeze(-1), SAME[dtype])


@every_backend
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("width", [16, 5])
def test_a_state_that_is_not_finite_does_not_pass_a_reset(backend, dtype, value, width):
    inputs = {name: x.to(dtype) for name, x in wkv7_inputs(B=3, T=1, K=width, V=width).items()}
    state = inputs.pop("state")
    inputs = {name: x[:, 0] for name, x in inputs.items()}
    reset = torch.tensor([True, False, True])
    expected = wkv7_step(**inputs, state=state, reset=reset, backend=backend)
    poisoned = state.masked_fill(reset[:, None, None, None], value)
    actual = wkv7_step(**inputs, state=poisoned, reset=reset, backend=backend)
    for name, x, y in zip(("y", "state"), actual, expected, strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_several_queries_equal_single_ones(backend):
    inputs = {name: x[:, 0] for name, x in wkv7_inputs(T=1, queries=3).items() if name != "state"}
    y, _ = wkv7_step(**inputs, backend=backend)
    for q, r in enumerate(inputs["r"].unbind(2)):
        assert_close("y", y[:, :, q], wkv7_step(**{**inputs, "r": r})[0], SAME[F64])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_half_precision_keeps_a_float32_state(backend, dtype):
    inputs = {name: x.to(dtype)[:, 0] for name, x in wkv7_inputs(T=1).items() if name != "state"}
    y, state = wkv7_step(**inputs, backend=backend)
    assert (y.dtype, state.dtype) == (dtype, F32)
