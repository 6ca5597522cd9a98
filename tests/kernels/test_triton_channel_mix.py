"""The squared ReLU in Triton against PyTorch's in float64."""

from __future__ import annotations

import pytest
import torch
from triton_cases import GPU, check, every_device, every_dtype, results

from doxastic.kernels import channel_mix as public
from doxastic.kernels.triton import channel_mix as module

F32 = torch.float32


def numbers(*shape):
    return {"x": torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()}


def kernel(x):
    return (module.squared_relu(x),)


def truth(x):
    return (torch.relu(x).square(),)


@every_device
@pytest.mark.parametrize("shape", [(1,), (2, 1, 1), (2, 3, 5), (3, 700), (2, 33, 64)])
def test_matches_pytorch_for_every_shape(device, shape):
    check(kernel, truth, numbers(*shape), device)


@every_device
@every_dtype
def test_half_precision_is_computed_in_float32(device, dtype):
    check(kernel, truth, numbers(2, 3, 32), device, dtype)


@pytest.mark.parametrize("device", [GPU])
@every_dtype
def test_matches_pytorch_at_real_sizes(device, dtype):
    check(kernel, truth, numbers(64, 256, 512), device, dtype)


@every_device
def test_tensors_are_read_however_they_are_laid_out(device):
    x = numbers(3, 4, 5)["x"].to(device, F32)
    expected = results(kernel, {"x": x})
    turned = results(kernel, {"x": x.transpose(0, 2).contiguous().transpose(0, 2)})
    sliced = results(kernel, {"x": torch.cat([x, x], -1)[..., 5:]})
    for name, y in expected.items():
        assert torch.equal(turned[name], y) and torch.equal(sliced[name], y), name


@every_device
def test_nan_stays_nan_and_zero_has_no_slope(device):
    x = torch.tensor([float("nan"), 0.0, -1.0, 2.0], device=device)
    actual = results(kernel, {"x": x})
    assert actual["output 0"].isnan().tolist() == [True, False, False, False]
    assert not actual["dx"][1:3].any()


@every_device
def test_operators_pass_opcheck(device):
    x = numbers(2, 3, 5)["x"].to(device, F32)
    torch.library.opcheck(module.squared_relu, (x.clone().requires_grad_(),))
    torch.library.opcheck(module.squared_relu_backward, (x.clone(), x))


@every_device
def test_the_public_function_launches_where_it_can(device, monkeypatch):
    x = numbers(2, 3, 5)["x"].to(device, F32)
    composed = torch.relu(x).square()
    monkeypatch.setattr(public, "can_launch", lambda *_: True)
    monkeypatch.setattr(torch, "relu", None)
    assert torch.equal(public.squared_relu(x), composed)
    assert public.squared_relu(x[:0]).shape == (0, 3, 5)
