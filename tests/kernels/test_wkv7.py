"""Every backend of `wkv7` against the float64 reference: outputs, state and all gradients."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import cotangents, random_reset, reset_at, with_gradients, wkv7_inputs
from tolerances import KERNEL, SAME, WORST_DECAY, assert_close

from doxastic.kernels.wkv7 import wkv7

F32, F64 = torch.float32, torch.float64
BACKENDS = [("chunked", F32), ("chunked", F64), ("cpu", F32), ("reference", F32)]
IDS = ["chunked-f32", "chunked-f64", "cpu-f32", "reference-f32"]
every_backend = pytest.mark.parametrize(("backend", "dtype"), BACKENDS, ids=IDS)


def check(backend, dtype, inputs, reset, tolerances=KERNEL):
    truth = with_gradients(wkv7, inputs, F64, reset=reset, backend="reference")
    actual = with_gradients(wkv7, inputs, dtype, reset=reset, backend=backend)
    for name, expected in truth.items():
        assert_close(name, actual[name], expected, tolerances[dtype])


@every_backend
@pytest.mark.parametrize("probability", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 15, 16, 17, 63, 65])
def test_matches_reference_for_every_length_and_reset_rate(backend, dtype, steps, probability):
    inputs = wkv7_inputs(T=steps)
    check(backend, dtype, inputs, random_reset(2, steps, probability))


@every_backend
@pytest.mark.parametrize("steps", [17, 32])
@pytest.mark.parametrize(
    ("keys", "values"), [(16, 16), (32, 32), (16, 24), (32, 8), (7, 5), (1, 1), (17, 33)]
)
def test_matches_reference_for_every_width(backend, dtype, steps, keys, values):
    inputs = wkv7_inputs(B=1, T=steps, H=3, K=keys, V=values)
    check(backend, dtype, inputs, random_reset(1, steps, 0.05))


@every_backend
@pytest.mark.parametrize(
    "steps", [(), (0,), (15,), (16,), (17,), (47,), (0, 1, 15, 16, 17, 31, 32, 47)], ids=str
)
def test_matches_reference_with_resets_at_the_edges(backend, dtype, steps):
    check(backend, dtype, wkv7_inputs(B=3, T=48), reset_at(3, 48, steps))


@every_backend
@pytest.mark.parametrize("steps", [17, 40])
def test_no_reset_tensor_means_no_reset(backend, dtype, steps):
    check(backend, dtype, wkv7_inputs(T=steps), None)


@every_backend
def test_matches_reference_at_the_worst_decay(backend, dtype):
    inputs = wkv7_inputs(T=65, K=16, V=16, decay=-0.6065306597)
    check(backend, dtype, inputs, random_reset(2, 65, 0.05), WORST_DECAY)


@pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("probability", [0.0, 0.2])
def test_several_queries_match_reference(dtype, queries, probability):
    inputs = wkv7_inputs(T=21, K=8, V=12, queries=queries)
    check("chunked", dtype, inputs, random_reset(2, 21, probability))


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_several_queries_equal_single_ones(backend):
    inputs = wkv7_inputs(T=21, queries=3)
    together, state = wkv7(**inputs, backend=backend)
    for q, r in enumerate(inputs["r"].unbind(3)):
        alone, state_alone = wkv7(**{**inputs, "r": r}, backend=backend)
        assert_close("y", together[:, :, :, q], alone, SAME[F64])
        assert_close("state", state, state_alone, SAME[F64])


@every_backend
def test_no_state_means_zeros(backend, dtype):
    inputs = {name: x.to(dtype) for name, x in wkv7_inputs(T=20).items()}
    zeros = torch.zeros_like(inputs.pop("state"))
    without = wkv7(**inputs, backend=backend)
    given = wkv7(**inputs, state=zeros, backend=backend)
    for name, x, y in zip(("y", "state"), without, given, strict=True):
        assert_close(name, x, y, SAME[dtype])


@every_backend
@pytest.mark.parametrize("cut", [1, 15, 16, 20])
def test_two_calls_equal_one(backend, dtype, cut):
    inputs, reset = wkv7_inputs(T=33), random_reset(2, 33, 0.05)

    def halves(state, reset, **sequences):
        first = {name: x[:, :cut] for name, x in sequences.items()}
        second = {name: x[:, cut:] for name, x in sequences.items()}
        y1, state = wkv7(**first, state=state, reset=reset[:, :cut], backend=backend)
        y2, state = wkv7(**second, state=state, reset=reset[:, cut:], backend=backend)
        return torch.cat((y1, y2), 1), state

    whole = with_gradients(wkv7, inputs, dtype, reset=reset, backend=backend)
    parts = with_gradients(halves, inputs, dtype, reset=reset)
    for name, expected in whole.items():
        assert_close(name, parts[name], expected, KERNEL[dtype])


@every_backend
def test_non_contiguous_inputs_are_understood(backend, dtype):
    inputs, reset = wkv7_inputs(B=3, T=20), random_reset(3, 20, 0.1)
    strided = {name: x.transpose(0, 1).contiguous().transpose(0, 1) for name, x in inputs.items()}
    assert not any(x.is_contiguous() for x in strided.values())
    expected = with_gradients(wkv7, inputs, dtype, reset=reset, backend=backend)
    actual = with_gradients(wkv7, strided, dtype, reset=reset.t().contiguous().t(), backend=backend)
    for name in expected:
        assert_close(name, actual[name], expected[name], SAME[dtype])


@every_backend
def test_expanded_inputs_and_gradients_are_understood(backend, dtype):
    inputs = {name: x.to(dtype) for name, x in wkv7_inputs(T=20).items()}
    inputs["w"] = torch.full((1, 1, 1, 1), -0.1, dtype=dtype).expand(2, 20, 2, 8)
    k = inputs["k"].clone().requires_grad_()
    y, _ = wkv7(**{**inputs, "k": k}, backend=backend)
    (summed,) = torch.autograd.grad(y.sum(), k, retain_graph=True)
    (dense,) = torch.autograd.grad(y, k, torch.ones_like(y))
    assert_close("dk", summed, dense, SAME[dtype])


@every_backend
def test_a_reset_equals_a_fresh_start(backend, dtype):
    inputs = {name: x.to(dtype) for name, x in wkv7_inputs(T=40).items()}
    reset = torch.zeros(2, 40, dtype=torch.bool)
    reset[:, 21] = True
    whole, state = wkv7(**inputs, reset=reset, backend=backend)
    fresh = {name: x[:, 21:] for name, x in inputs.items() if name != "state"}
    y, fresh_state = wkv7(**fresh, backend=backend)
    assert_close("y", whole[:, 21:], y, SAME[dtype])
    assert_close("state", state, fresh_state, SAME[dtype])


@every_backend
@pytest.mark.parametrize("at", [3, 16, 21])
def test_no_gradient_crosses_a_reset(backend, dtype, at):
    leaves = {name: x.to(dtype).requires_grad_() for name, x in wkv7_inputs(T=40).items()}
    reset = torch.zeros(2, 40, dtype=torch.bool)
    reset[:, at] = True
    y, state = wkv7(**leaves, reset=reset, backend=backend)
    after = (y[:, at:], state)
    gradients = torch.autograd.grad(after, list(leaves.values()), cotangents(after))
    *sequences, dstate = gradients
    assert not dstate.any()
    assert not any(g[:, :at].any() for g in sequences)
    assert all(g[:, at:].any() for g in sequences)


@every_backend
def test_nothing_before_a_change_depends_on_it(backend, dtype):
    inputs = {name: x.to(dtype) for name, x in wkv7_inputs(T=40).items()}
    changed = {name: x.clone() for name, x in inputs.items()}
    for name in ("r", "k", "v", "a", "b"):
        changed[name][:, 21] += 1.0
    y, _ = wkv7(**inputs, backend=backend)
    y_changed, _ = wkv7(**changed, backend=backend)
    assert torch.equal(y[:, :21], y_changed[:, :21])
    assert (y[:, 21:] != y_changed[:, 21:]).any(-1).all()


@every_backend
def test_rows_and_heads_do_not_mix(backend, dtype):
    inputs = {name: x.to(dtype) for name, x in wkv7_inputs(B=3, T=20).items()}
    order = torch.tensor([2, 0, 1])
    y, state = wkv7(**inputs, backend=backend)
    y2, state2 = wkv7(**{name: x[order] for name, x in inputs.items()}, backend=backend)
    assert_close("y", y2, y[order], SAME[dtype])
    assert_close("state", state2, state[order], SAME[dtype])


@every_backend
def test_without_decay_and_removal_the_state_is_a_cumulative_sum(backend, dtype):
    inputs = {name: x.to(dtype) for name, x in wkv7_inputs(T=40).items()}
    for name in ("w", "a", "b", "state"):
        inputs[name] = torch.zeros_like(inputs[name])
    sums = torch.einsum("bthv,bthk->bthvk", inputs["v"], inputs["k"]).cumsum(1)
    y, state = wkv7(**inputs, backend=backend)
    assert_close("y", y, torch.einsum("bthvk,bthk->bthv", sums, inputs["r"]), SAME[dtype])
    assert_close("state", state, sums[:, -1], SAME[dtype])


@every_backend
def test_without_decay_it_is_the_delta_rule(backend, dtype):
    """With a = -k, b = beta k and key beta k, it is S <- S + beta (v - S k) k^T (DeltaNet)."""
    inputs = {name: x.to(dtype) for name, x in wkv7_inputs(T=40).items()}
    key = -inputs["a"]
    beta = torch.rand(2, 40, 2, 1).to(dtype)
    inputs |= {"w": torch.zeros_like(key), "b": beta * key, "k": beta * key}
    y, state = wkv7(**inputs, backend=backend)
    S = inputs["state"]
    for t in range(40):
        k, v = key[:, t], inputs["v"][:, t]
        error = v - torch.einsum("bhvk,bhk->bhv", S, k)
        S = S + torch.einsum("bhv,bhk->bhvk", beta[:, t] * error, k)
    assert_close("state", state, S, SAME[dtype])
    last = torch.einsum("bhvk,bhk->bhv", S, inputs["r"][:, -1])
    assert_close("y", y[:, -1], last, SAME[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("backend", ["reference", "chunked", "cpu"])
def test_half_precision_is_computed_in_float32(backend, dtype):
    inputs = wkv7_inputs(T=40, K=16, V=16)
    state = inputs.pop("state").float()
    low = {name: x.to(dtype).requires_grad_() for name, x in inputs.items()}
    y, last = wkv7(**low, state=state, backend=backend)
    assert y.dtype == dtype
    assert last.dtype == torch.float32
    exact = {name: x.detach().float() for name, x in low.items()}
    y32, last32 = wkv7(**exact, state=state, backend="reference")
    assert_close("state", last, last32, KERNEL[F32])
    assert_close("y", y, y32, KERNEL[dtype])
    y.float().square().sum().backward()
    assert all(x.grad.dtype == dtype and x.grad.isfinite().all() for x in low.values())


def test_the_second_use_of_an_output_does_not_change_gradients():
    inputs = {name: x.float() for name, x in wkv7_inputs(T=20).items()}
    k = inputs["k"].requires_grad_()
    _, state = wkv7(**inputs, backend="cpu")
    (only_state,) = torch.autograd.grad(state.sum(), k)
    y, state = wkv7(**inputs, backend="cpu")
    (both,) = torch.autograd.grad((y, state), k, (torch.zeros_like(y), torch.ones_like(state)))
    assert torch.equal(only_state, both)


def test_threads_do_not_change_a_bit():
    inputs, reset = wkv7_inputs(B=8, T=64, K=32, V=32), random_reset(8, 64, 0.05)
    single = with_gradients(wkv7, inputs, F32, reset=reset, backend="cpu")
    torch.set_num_threads(2)
    try:
        double = with_gradients(wkv7, inputs, F32, reset=reset, backend="cpu")
    finally:
        torch.set_num_threads(1)
    for name, expected in single.items():
        assert torch.equal(double[name], expected), name
