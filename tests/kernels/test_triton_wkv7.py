"""WKV-7 in Triton against the float64 reference: outputs, state and all gradients."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from kernel_cases import cotangents, random_reset, reset_at, strided, wkv7_inputs
from tolerances import KERNEL, assert_close
from torch.nn.functional import normalize
from triton_cases import GPU, check, every_device, every_dtype, results

from doxastic.kernels.triton import tuned
from doxastic.kernels.triton import wkv7 as module
from doxastic.kernels.triton.tuned import Blocks, Config
from doxastic.kernels.wkv7 import wkv7

F32 = torch.float32
truth = partial(wkv7, backend="reference")


def kernel(chunk: int = 16, span: int | None = None, values: int = 64, groups: int = 0):
    """Return the kernels with small chunks, so that few steps make several."""
    serial = Blocks(chunk, values, 4, 1)
    config = Config(serial, serial, Blocks(span or chunk, values, 4, 1))
    return partial(module.wkv7, config=config, groups=groups)


@every_device
@pytest.mark.parametrize("probability", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("steps", [1, 15, 16, 17, 33])
def test_matches_reference_for_every_length_and_reset_rate(device, steps, probability):
    inputs = wkv7_inputs(B=1, T=steps, H=2, K=16, V=16)
    check(kernel(), truth, inputs, device, reset=random_reset(1, steps, probability))


@every_device
@pytest.mark.parametrize(
    ("steps", "chunk", "span"),
    [(31, 16, 32), (31, 32, 32), (65, 32, 32), (65, 16, 64), (65, 64, 64)],
)
def test_matches_reference_for_every_chunk(device, steps, chunk, span):
    inputs = wkv7_inputs(B=1, T=steps, H=1, K=16, V=16)
    check(kernel(chunk, span), truth, inputs, device, reset=random_reset(1, steps, 0.05))


@every_device
@pytest.mark.parametrize(
    "steps", [(), (0,), (15,), (16,), (32,), (0, 1, 15, 16, 17, 31, 32)], ids=str
)
def test_matches_reference_with_resets_at_the_edges(device, steps):
    inputs = wkv7_inputs(B=2, T=33, H=1, K=16, V=16)
    check(kernel(), truth, inputs, device, reset=reset_at(2, 33, steps))


@every_device
def test_no_reset_tensor_means_no_reset(device):
    check(kernel(), truth, wkv7_inputs(B=1, T=33, K=16, V=16), device, reset=None)


@every_device
@pytest.mark.parametrize(
    ("keys", "values", "block"),
    [(1, 1, 16), (5, 7, 16), (24, 40, 16), (32, 16, 16), (16, 64, 32), (64, 64, 64)],
)
def test_matches_reference_for_every_width(device, keys, values, block):
    inputs = wkv7_inputs(B=1, T=17, H=2, K=keys, V=values)
    check(kernel(values=block), truth, inputs, device, reset=random_reset(1, 17, 0.05))


@every_device
@pytest.mark.parametrize(("queries", "values"), [(1, 12), (3, 12), (2, 24)])
def test_several_queries_match_reference(device, queries, values):
    inputs = wkv7_inputs(B=1, T=21, H=1, K=8, V=values, queries=queries)
    check(kernel(values=16), truth, inputs, device, reset=random_reset(1, 21, 0.1))


@every_device
@pytest.mark.parametrize(("steps", "groups", "values"), [(33, 3, 24), (64, 2, 16)])
def test_sequences_cut_into_groups_match_reference(device, steps, groups, values):
    inputs = wkv7_inputs(B=1, T=steps, H=1, K=16, V=values)
    cut = kernel(values=16, groups=groups)
    check(cut, truth, inputs, device, reset=random_reset(1, steps, 0.03))


@every_device
@every_dtype
@pytest.mark.parametrize("keys", [32, 64])
def test_every_dtype_matches_reference(device, dtype, keys):
    inputs = wkv7_inputs(B=1, T=40, H=1, K=keys, V=32)
    check(kernel(32), truth, inputs, device, dtype, reset=random_reset(1, 40, 0.05))


@every_device
def test_the_dtype_of_every_input_is_its_own(device):
    inputs = wkv7_inputs(B=1, T=20, K=16, V=16)
    single = ("state", "w", "r")
    given = {n: x.to(F32 if n in single else torch.float16) for n, x in inputs.items()}
    check(kernel(), truth, given, device, torch.float16, single)
    found = results(kernel(), {name: x.to(device) for name, x in given.items()})
    assert {n: found[f"d{n}"].dtype for n in given} == {n: x.dtype for n, x in given.items()}


@every_device
@pytest.mark.parametrize("chunk", [16, 64])
def test_matches_reference_at_the_worst_decay_of_rwkv7(device, chunk):
    inputs = wkv7_inputs(B=1, T=65, K=16, V=16, decay=-0.6065306597)
    check(kernel(chunk), truth, inputs, device, reset=random_reset(1, 65, 0.05))


@every_device
@pytest.mark.parametrize(
    ("decay", "dtype"),
    [
        (-0.7, F32),
        (-4.0, F32),
        (-4.0, torch.bfloat16),
        (-20.0, F32),
        (-1e4, F32),
        (-float("inf"), F32),
    ],
)
def test_matches_reference_however_fast_the_decay(device, decay, dtype):
    inputs = wkv7_inputs(B=1, T=18, H=1, K=16, V=16, decay=decay)
    check(kernel(), truth, inputs, device, dtype, reset=random_reset(1, 18, 0.05))


@every_device
def test_matches_reference_where_slow_and_fast_decays_meet(device):
    inputs = wkv7_inputs(B=1, T=40, H=2, K=16, V=16)
    random = torch.Generator().manual_seed(3)
    fast = torch.rand(inputs["w"].shape, generator=random) < 0.1
    inputs["w"] = torch.where(fast, inputs["w"] * 1e3, inputs["w"])
    check(kernel(), truth, inputs, device, reset=random_reset(1, 40, 0.05))


@every_device
@pytest.mark.parametrize("chunk", [16, 64])
def test_matches_reference_when_all_keys_are_equal(device, chunk):
    """Without decay, and everything removed, a series for the inverse would lose all digits."""
    inputs = wkv7_inputs(B=1, T=65, H=1, K=16, V=16, decay=0.0)
    key = normalize(torch.ones_like(inputs["a"]), dim=-1).float().double()
    inputs |= {"a": -key, "b": key}
    check(kernel(chunk), truth, inputs, device)


@every_device
@pytest.mark.parametrize("cut", [1, 16, 20])
def test_two_calls_equal_one(device, cut):
    inputs, reset = wkv7_inputs(B=1, T=33, K=16, V=16), random_reset(1, 33, 0.05).to(device)
    inputs = {name: x.to(device, F32) for name, x in inputs.items()}
    call = kernel()

    def halves(state, **sequences):
        first = {name: x[:, :cut] for name, x in sequences.items()}
        second = {name: x[:, cut:] for name, x in sequences.items()}
        y1, state = call(**first, state=state, reset=reset[:, :cut])
        y2, state = call(**second, state=state, reset=reset[:, cut:])
        return torch.cat((y1, y2), 1), state

    whole = results(partial(call, reset=reset), inputs)
    for name, x in results(halves, inputs).items():
        assert_close(name, x, whole[name], KERNEL[F32])


@every_device
def test_non_contiguous_inputs_are_understood(device):
    inputs, reset = wkv7_inputs(B=2, T=20, K=16, V=16), random_reset(2, 20, 0.1).to(device)
    inputs = {name: x.to(device, F32) for name, x in inputs.items()}
    expected = results(partial(kernel(), reset=reset), inputs)
    actual = results(partial(kernel(), reset=reset.t().contiguous().t()), strided(inputs))
    for name, x in expected.items():
        assert torch.equal(actual[name], x), name


@every_device
def test_no_state_means_zeros_and_one_output_is_enough(device):
    inputs = {n: x.to(device, F32) for n, x in wkv7_inputs(B=1, T=20, K=16, V=16).items()}
    zeros = torch.zeros_like(inputs.pop("state"))
    k = inputs["k"].requires_grad_()
    for index in (0, 1):
        output = kernel()(**inputs)[index]
        given = kernel()(**inputs, state=zeros)
        assert torch.equal(output, given[index])
        (alone,) = torch.autograd.grad(output.sum(), k)
        both = [
            torch.ones_like(x) if i == index else torch.zeros_like(x) for i, x in enumerate(given)
        ]
        assert torch.equal(alone, torch.autograd.grad(given, k, both)[0])


@every_device
@pytest.mark.parametrize("at", [3, 16, 21])
@pytest.mark.parametrize("decay", [None, -5.0])
def test_no_gradient_crosses_a_reset(device, at, decay):
    inputs = wkv7_inputs(B=1, T=33, K=16, V=16, decay=decay)
    leaves = {n: x.to(device, F32).requires_grad_() for n, x in inputs.items()}
    reset = torch.zeros(1, 33, dtype=torch.bool, device=device)
    reset[:, at] = True
    y, state = kernel()(**leaves, reset=reset)
    after = (y[:, at:], state)
    gradients = torch.autograd.grad(after, list(leaves.values()), cotangents(after))
    *sequences, dstate = gradients
    assert not dstate.any()
    assert not any(g[:, :at].any() for g in sequences)
    assert all(g[:, at:].any() for g in sequences)
    assert not sequences[1][:, at].any()


@every_device
@pytest.mark.parametrize("at", [0, 16])
def test_a_reset_at_the_start_of_a_chunk_stops_an_old_state_that_is_not_finite(device, at):
    inputs = {n: x.to(device, F32) for n, x in wkv7_inputs(B=1, T=20, K=16, V=16).items()}
    reset = torch.zeros(1, 20, dtype=torch.bool, device=device)
    reset[:, at] = True
    clean = kernel()(**inputs, reset=reset)
    inputs["state"] = torch.full_like(inputs["state"], float("nan"))
    y, state = kernel()(**inputs, reset=reset)
    assert torch.equal(y[:, at:], clean[0][:, at:])
    assert torch.equal(state, clean[1])


@every_device
def test_an_entry_that_is_not_finite_does_not_stay_unseen(device):
    inputs = {n: x.to(device, F32) for n, x in wkv7_inputs(B=1, T=20, K=16, V=16).items()}
    inputs["w"][0, 7, 0, 3] = float("nan")
    y, state = kernel()(**inputs)
    assert y[0, 7:, 0].isnan().any() and state[0, 0].isnan().any()
    assert y[0, :, 1].isfinite().all() and state[0, 1].isfinite().all()


@every_device
def test_operators_pass_opcheck(device):
    inputs = [
        x.to(device, F32) for x in wkv7_inputs(B=1, T=18, H=1, K=16, V=16, queries=2).values()
    ]
    reset = random_reset(1, 18, 0.1).to(device)
    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.library.opcheck(module._forward, (*leaves, reset, True, [], 0))
    y, final, stored = module._forward(*inputs, reset, True, [], 0)
    gradients = (y.clone(), final.clone())
    torch.library.opcheck(module._backward, (*gradients, *inputs[:6], reset, stored, [], 0))


@every_device
def test_it_compiles_into_one_graph(device):
    inputs = {n: x.to(device, F32) for n, x in wkv7_inputs(B=1, T=18, K=16, V=16).items()}
    reset = random_reset(1, 18, 0.1).to(device)

    def model(**inputs):
        return wkv7(**inputs, reset=reset, backend="triton")

    expected = results(model, inputs)
    for name, x in results(
        torch.compile(model, fullgraph=True, backend="aot_eager"), inputs
    ).items():
        assert torch.equal(x, expected[name]), name


@every_device
def test_autocast_changes_nothing(device):
    inputs = {n: x.to(device, F32) for n, x in wkv7_inputs(B=1, T=18, K=16, V=16).items()}
    expected = results(kernel(), inputs)
    with torch.autocast(device, torch.bfloat16):
        actual = results(kernel(), inputs)
    for name, x in expected.items():
        assert torch.equal(actual[name], x), name


@every_device
def test_second_derivatives_are_an_error(device):
    inputs = {n: x.to(device, F32) for n, x in wkv7_inputs(B=1, T=4, K=16, V=16).items()}
    k = inputs["k"].requires_grad_()
    y, _ = kernel()(**inputs)
    (dk,) = torch.autograd.grad(y.square().sum(), k, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(dk.sum(), k)


@every_device
def test_an_empty_batch_is_no_error(device):
    inputs = {n: x[:0].to(device, F32) for n, x in wkv7_inputs(T=4, K=16, V=16).items()}
    found = results(kernel(), inputs)
    assert found["output 0"].shape == (0, 4, 2, 16)


@every_device
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"v": torch.zeros(1, 4, 2, 16).double()}, "v is torch.float64; backend 'triton' takes"),
        ({"reset": torch.zeros(1, 5, dtype=torch.bool)}, "expected [B, T] = [1, 4] torch.bool"),
        ({"v": torch.zeros(1, 0, 2, 16)}, "v has shape [1, 0, 2, 16]; expected [B, T, H, V] with"),
        ({"b": torch.zeros(1, 4, 2, 15)}, "b has shape [1, 4, 2, 15]; expected [B, T, H, K]"),
        ({"r": torch.zeros(1, 4, 2, 16, device="meta")}, "r is on meta; expected"),
    ],
)
def test_errors_name_what_is_wrong(device, options, message):
    inputs = {n: x.to(device, F32) for n, x in wkv7_inputs(B=1, T=4, K=16, V=16).items()}
    options = {n: x if x.is_meta else x.to(device) for n, x in options.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        wkv7(**{**inputs, **options}, backend="triton")


def test_too_many_keys_are_an_error():
    inputs = {n: x.float() for n, x in wkv7_inputs(B=1, T=2, K=129, V=16).items()}
    with pytest.raises(ValueError, match=r"k has 129 keys; backend 'triton' takes at most 128"):
        wkv7(**inputs, backend="triton")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(*(Blocks(24, 16, 4, 1),) * 3), "forward is Blocks(steps=24"),
        (Config(Blocks(32, 16, 4, 1), *(Blocks(16, 16, 4, 1),) * 2), "gradient.steps is 16"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_an_error(config, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tuned.check(config)


def test_every_row_of_the_table_is_possible():
    for (name, keys, values, precision), config in tuned.TABLE.items():
        tuned.check(config)
        assert name.startswith("sm_")
        assert {keys, values} <= {16, 32, 64, 128}
        assert precision in ("bf16", "tf32", "tf32x3")


def test_tensors_on_the_cpu_are_an_error_outside_the_interpreter():
    script = """
import torch
from doxastic.kernels.wkv7 import wkv7
x = torch.zeros(1, 2, 1, 16)
try:
    wkv7(x, x, x, x, x, x, backend="triton")
except ValueError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"PATH": "", "TRITON_INTERPRET": "0"},
    )
    assert "backend 'triton' takes CUDA tensors; v is on cpu" in run.stdout, run.stderr
    assert "TRITON_INTERPRET=1" in run.stdout


@pytest.mark.gpu
def test_it_is_what_cuda_tensors_get():
    inputs = {n: x.to("cuda", F32) for n, x in wkv7_inputs(B=1, T=40, K=64, V=64).items()}
    for x, y in zip(wkv7(**inputs), wkv7(**inputs, backend="triton"), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("device", [GPU])
@every_dtype
@pytest.mark.parametrize(
    ("B", "T", "H", "K", "V"),
    [(2, 259, 3, 64, 64), (1, 130, 2, 128, 128), (64, 128, 4, 32, 32), (3, 65, 2, 16, 80)],
)
@pytest.mark.parametrize("probability", [0.0, 0.02])
def test_the_table_matches_reference_at_real_sizes(device, dtype, B, T, H, K, V, probability):
    inputs = wkv7_inputs(B, T, H, K, V)
    reset = random_reset(B, T, probability)
    check(partial(wkv7, backend="triton"), truth, inputs, device, dtype, reset=reset)


@pytest.mark.parametrize("device", [GPU])
@every_dtype
def test_long_sequences_cut_into_groups_match_reference(device, dtype):
    inputs = wkv7_inputs(1, 2048, 1, 64, 64)
    cut = partial(module.wkv7, groups=16)
    check(cut, truth, inputs, device, dtype, reset=random_reset(1, 2048, 0.002))


@pytest.mark.gpu
def test_other_lengths_and_batches_compile_nothing():
    from doxastic.kernels.triton.wkv7_forward import forward_kernel

    def call(batch, steps):
        inputs = wkv7_inputs(batch, steps, 2, 32, 32)
        wkv7(**{n: x.to("cuda", F32) for n, x in inputs.items()}, backend="triton")

    call(2, 33)
    compiled = sum(len(kernels[0]) for kernels in forward_kernel.device_caches.values())
    for batch, steps in ((1, 1), (16, 16), (3, 100), (1, 64)):
        call(batch, steps)
    assert compiled == sum(len(kernels[0]) for kernels in forward_kernel.device_caches.values())
