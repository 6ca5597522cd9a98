"""Single steps in Triton, of WKV-7 alone and with the time mix around it, without gradients."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from kernel_cases import random_reset, time_mix_inputs, wkv7_inputs
from tolerances import KERNEL, assert_close
from triton_cases import GPU, every_device, every_dtype

from doxastic.kernels import time_mix as mixing
from doxastic.kernels.triton import step
from doxastic.kernels.wkv7 import wkv7_step

F32 = torch.float32
kernel = partial(wkv7_step, backend="triton")
truth = partial(wkv7_step, backend="reference")
mix_truth = partial(mixing.time_mix, norm_eps=0.1)
mix_kernel = partial(step.time_mix_step, norm_eps=0.1)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def step_inputs(B=3, H=2, K=8, V=8, queries=None):
    inputs = wkv7_inputs(B, 1, H, K, V, queries=queries)
    return {name: x if name == "state" else x[:, 0] for name, x in inputs.items()}


def rounded(inputs, dtype, device="cpu"):
    return {n: x.to(device, F32 if n == "state" else dtype) for n, x in inputs.items()}


def check(function, reference, inputs, device, dtype, reset):
    given = rounded(inputs, dtype)
    expected = reference(**{name: x.double() for name, x in given.items()}, reset=reset)
    y, state = function(**rounded(inputs, dtype, device), reset=reset.to(device))
    assert (y.dtype, state.dtype) == (dtype, F32)
    assert_close("y", y.cpu(), expected[0], KERNEL[dtype])
    # The state is a sum of products of rounded numbers, itself not rounded.
    assert_close("state", state.cpu(), expected[1], KERNEL[F32])


SHAPES = [(8, 8, None), (16, 32, None), (64, 33, 3), (7, 5, 2), (1, 1, None)]


@every_device
@pytest.mark.parametrize(("keys", "values", "queries"), SHAPES)
def test_step_matches_reference_for_every_width(device, keys, values, queries):
    inputs = step_inputs(K=keys, V=values, queries=queries)
    check(kernel, truth, inputs, device, F32, torch.tensor([True, False, False]))


@every_device
@every_dtype
def test_step_computes_half_precision_in_float32(device, dtype):
    reset = torch.tensor([False, True, False])
    check(kernel, truth, step_inputs(K=16), device, dtype, reset)


@pytest.mark.parametrize("device", [GPU])
@every_dtype
@pytest.mark.parametrize("width", [32, 64, 128])
def test_step_matches_reference_at_real_sizes(device, dtype, width):
    inputs = step_inputs(B=256, H=4, K=width, V=width)
    check(kernel, truth, inputs, device, dtype, random_reset(256, 1, 0.1)[:, 0])


@every_device
def test_step_writes_over_the_state_on_request_only(device):
    inputs = rounded(step_inputs(K=7, V=20), F32, device)
    before = inputs["state"].clone()
    y, new = kernel(**inputs)
    assert torch.equal(inputs["state"], before)
    again, state = kernel(**inputs, inplace=True)
    assert state is inputs["state"]
    assert torch.equal(state, new) and torch.equal(again, y)


@every_device
@pytest.mark.parametrize("inference", [False, True])
def test_overwriting_the_state_is_counted_as_a_change_of_it(device, inference):
    with torch.inference_mode(inference):
        inputs = rounded(step_inputs(), F32, device)
        state = inputs.pop("state").clone()
        kernel(**inputs, state=state, inplace=True)
    if not inference:
        assert state._version == 1


@every_device
def test_step_without_state_and_reset_starts_from_zeros(device):
    inputs = rounded(step_inputs(), F32, device)
    state = torch.zeros_like(inputs.pop("state"))
    never = torch.zeros(3, dtype=torch.bool, device=device)
    expected = kernel(**inputs, state=state, reset=never)
    for x, y in zip(kernel(**inputs), expected, strict=True):
        assert torch.equal(x, y)


@every_device
def test_step_reads_tensors_however_they_are_laid_out(device):
    inputs = rounded(step_inputs(), F32, device)
    turned = {n: x.transpose(0, 1).contiguous().transpose(0, 1) for n, x in inputs.items()}
    for x, y in zip(kernel(**turned), kernel(**inputs), strict=True):
        assert torch.equal(x, y)


@every_device
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_does_not_pass_a_reset(device, value):
    reset = torch.tensor([True, False, True], device=device)
    inputs, mixed = step_inputs(), time_mix_inputs(B=3, T=1, K=4)
    for function, given, shape in ((kernel, inputs, (-1,)), (mix_kernel, mixed, (-1, 1))):
        given = rounded(given, F32, device)
        expected = function(**given, reset=reset.view(shape))
        given["state"] = given["state"].masked_fill(reset[:, None, None, None], value)
        for x, y in zip(function(**given, reset=reset.view(shape)), expected, strict=True):
            assert torch.equal(x, y)


@every_device
def test_step_names_dtypes_it_cannot_take(device):
    inputs = {name: x.to(device) for name, x in step_inputs().items()}
    with pytest.raises(ValueError, match=re.escape("r is torch.float64; backend 'triton'")):
        kernel(**inputs)


@every_device
@pytest.mark.parametrize(("heads", "width"), [(2, 16), (3, 5), (1, 64)])
def test_time_mix_step_matches_the_composed_one_for_every_width(device, heads, width):
    inputs = time_mix_inputs(B=3, T=1, H=heads, K=width)
    reset = torch.tensor([[True], [False], [False]])
    check(mix_kernel, mix_truth, inputs, device, F32, reset)


@every_device
@every_dtype
def test_time_mix_step_computes_half_precision_in_float32(device, dtype):
    inputs = time_mix_inputs(B=2, T=1)
    check(mix_kernel, mix_truth, inputs, device, dtype, random_reset(2, 1, 0.5))


@pytest.mark.parametrize("device", [GPU])
@every_dtype
@pytest.mark.parametrize("width", [32, 64, 128])
def test_time_mix_step_matches_the_composed_one_at_real_sizes(device, dtype, width):
    inputs = time_mix_inputs(B=256, T=1, H=4, K=width)
    check(mix_kernel, mix_truth, inputs, device, dtype, random_reset(256, 1, 0.1))


@every_device
def test_time_mix_step_reads_rows_of_a_wider_state(device):
    inputs = rounded(time_mix_inputs(B=3, T=1, K=4), F32, device)
    reset = torch.tensor([[False], [True], [False]], device=device)
    expected, state = mix_kernel(**inputs, reset=reset)
    wide = torch.full((3, 50), 7.0, device=device)
    part = wide[:, 9:41].view(3, 2, 4, 4)
    part.copy_(inputs.pop("state"))
    for given in (part, part.mT.contiguous().mT):
        out, new = mix_kernel(**inputs, state=given, reset=reset)
        assert torch.equal(out, expected) and torch.equal(new, state)


@every_device
def test_time_mix_takes_a_single_step_without_gradients_in_one_launch(device, monkeypatch):
    monkeypatch.setattr(mixing, "can_fuse", lambda *_: False)
    monkeypatch.setattr(mixing, "can_launch", lambda *_: True)
    inputs = rounded(time_mix_inputs(T=1), F32, device)
    reset = torch.tensor([[False], [True]], device=device)
    expected = mix_kernel(**inputs, reset=reset)
    monkeypatch.setattr(mixing, "wkv7", None)
    for x, y in zip(mix_truth(**inputs, reset=reset), expected, strict=True):
        assert torch.equal(x, y)


@every_device
def test_operators_pass_opcheck(device):
    inputs = rounded(step_inputs(K=5, V=3), F32, device)
    state, reset = inputs.pop("state"), torch.tensor([True, False, False], device=device)
    torch.library.opcheck(step._step_operator, (*inputs.values(), state, reset))
    torch.library.opcheck(step._step_operator, (*inputs.values(), None, None))
    *mixed, state = rounded(time_mix_inputs(B=3, T=1, K=5), F32, device).values()
    torch.library.opcheck(step._time_mix_step_operator, (*mixed, 0.1, state, reset[:, None]))


@pytest.mark.gpu
def test_steps_can_be_captured_in_a_cuda_graph():
    inputs = rounded(step_inputs(B=64, K=32, V=32), F32, "cuda")
    mixed = rounded(time_mix_inputs(B=64, T=1, K=32), F32, "cuda")
    reset = random_reset(64, 1, 0.1).cuda()

    def act():
        y, _ = kernel(**inputs, reset=reset[:, 0], inplace=True)
        z, new = mix_kernel(**mixed, reset=reset)
        mixed["state"].copy_(new)
        return y, z

    first = inputs["state"].clone(), mixed["state"].clone()
    expected = [x.clone() for _ in range(3) for x in act()][-2:]
    last = inputs["state"].clone(), mixed["state"].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = act()
    inputs["state"].copy_(first[0])
    mixed["state"].copy_(first[1])
    for _ in range(3):
        graph.replay()
    actual = (*captured, inputs["state"], mixed["state"])
    for x, y in zip(actual, (*expected, *last), strict=True):
        assert torch.equal(x, y)
