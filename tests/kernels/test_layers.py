"""Whole layers on the CPU: what they take, what they leave to the composed operations, outputs."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from kernel_cases import random_reset
from tolerances import KERNEL, SAME, assert_close
from torch import nn

from doxastic.kernels.cpu import layers
from doxastic.memory.channel_mix import ChannelMix
from doxastic.memory.time_mix import TimeMix

F32, F64 = torch.float32, torch.float64
B, T, C, H, K = 4, 3, 64, 4, 16


def filled(module):
    """Return the module without zeros, which would hide whatever they multiply."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))
    return module


def time_mix_case(layer=0):
    """Return a time mix and what it is called with."""
    random = torch.Generator().manual_seed(1)
    x, shift, wkv = (torch.randn(s, generator=random) for s in ((B, T, C), (B, C), (B, H, K, K)))
    v_first = torch.randn(B, T, C, generator=random) if layer else None
    given = {"x": x, "shift": shift, "wkv": wkv, "reset": random_reset(B, T, 0.2)}
    return filled(TimeMix(C, K, layer=layer, layers=2, norm_eps=1e4)), {**given, "v_first": v_first}


def channel_mix_case():
    """Return a channel mix and what it is called with."""
    random = torch.Generator().manual_seed(1)
    given = {
        "x": torch.randn(B, T, C, generator=random),
        "shift": torch.randn(B, C, generator=random),
        "reset": random_reset(B, T, 0.2),
    }
    return filled(ChannelMix(C, 2 * C)), given


@pytest.fixture
def runs(monkeypatch):
    """Return the list of the layers that have run as one operation."""
    names: list[str] = []
    for name in ("time_mix_layer", "channel_mix_layer"):
        original = getattr(layers, name)

        def counted(*args, name=name, original=original):
            names.append(name)
            return original(*args)

        monkeypatch.setattr(layers, name, counted)
    return names


WRONG_TIME_MIX = [
    ("x", torch.zeros(B, T, 48), "previous has shape [4, 64]; expected [B, C] = [4, 48]"),
    ("x", torch.zeros(B, 0, C), "x has shape [4, 0, 64]; expected [B, T, C] with at least"),
    ("shift", torch.zeros(C), "previous has shape [64]; expected [B, C] = [4, 64]"),
    ("shift", torch.zeros(1, C), "previous has shape [1, 64]; expected [B, C] = [4, 64]"),
    ("wkv", torch.zeros(1, H, K, K), "state has shape [1, 4, 16, 16]; expected [B, H, V, K]"),
    ("wkv", torch.zeros(B, 1, C, C), "state has shape [4, 1, 64, 64]; expected [B, H, V, K]"),
    ("reset", torch.zeros(B, 1, dtype=torch.bool), "reset is [4, 1] torch.bool"),
    ("reset", torch.zeros(B, T, dtype=torch.int64), "reset is [4, 3] torch.int64"),
]


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG_TIME_MIX)
def test_a_time_mix_hands_no_wrong_argument_to_the_kernels(runs, name, wrong, message):
    layer, given = time_mix_case()
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(**{**given, name: wrong})
    assert not runs


def test_a_time_mix_hands_no_wrong_first_value_to_the_kernels(runs):
    layer, given = time_mix_case(layer=1)
    with pytest.raises(RuntimeError, match="size of tensor"):
        layer(**{**given, "v_first": torch.zeros(B, T, C // 2)})
    assert not runs


@pytest.mark.parametrize(
    ("name", "wrong", "message"), [case for case in WRONG_TIME_MIX if case[0] != "wkv"]
)
def test_a_channel_mix_hands_no_wrong_argument_to_the_kernels(runs, name, wrong, message):
    layer, given = channel_mix_case()
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(**{**given, name: wrong})
    assert not runs


def call(case, layer, given, dtype=None):
    """Return the output alone, of the inputs in this dtype."""
    if dtype is not None:
        layer = copy.deepcopy(layer).to(dtype)
        given = {
            name: x.to(dtype) if x is not None and x.is_floating_point() else x
            for name, x in given.items()
        }
    made = layer(**given)
    return made[0] if case is not channel_mix_case else made


def later_time_mix_case():
    """Return a time mix with a value residual, which has every parameter."""
    return time_mix_case(layer=1)


EVERY_PARAMETER = [
    (case, name)
    for case in (later_time_mix_case, channel_mix_case)
    for name, _ in case()[0].named_parameters()
]


@pytest.mark.parametrize(("case", "name"), EVERY_PARAMETER)
@pytest.mark.parametrize("wrong", ["dtype", "shape"])
def test_every_parameter_is_looked_at(runs, case, name, wrong):
    layer, given = case()
    call(case, layer, given)
    assert len(runs) == 1
    path, _, key = name.rpartition(".")
    parameter = layer.get_parameter(name).detach()
    other = parameter.double() if wrong == "dtype" else parameter[:1].clone()
    setattr(layer.get_submodule(path), key, nn.Parameter(other))
    try:
        output = call(case, layer, given)
    except (RuntimeError, ValueError):
        pass
    else:
        # PyTorch promotes it or spreads it.
        assert_close(name, output, call(case, layer, given, F64), KERNEL[F32])
    assert len(runs) == 1


@pytest.mark.parametrize("case", [time_mix_case, channel_mix_case])
def test_another_rank_or_hidden_width_is_no_obstacle(runs, case):
    layer, given = case()
    if case is time_mix_case:
        layer.w1, layer.w2 = nn.Parameter(torch.randn(C, 3)), nn.Parameter(torch.randn(3, C))
    else:
        layer.key, layer.value = nn.Linear(C, 48, bias=False), nn.Linear(48, C, bias=False)
    fused, exact = call(case, layer, given), call(case, layer, given, F64)
    assert_close("output", fused, exact, KERNEL[F32])
    assert len(runs) == 1


@pytest.mark.parametrize("case", [time_mix_case, channel_mix_case])
def test_outputs_may_be_changed_in_place(runs, case):
    layer, given = case()
    weights = list(layer.parameters())

    def outputs():
        made = layer(**given)
        return made if isinstance(made, tuple) else (made,)

    expected = torch.autograd.grad(3 * outputs()[0].sum(), weights)
    actual = torch.autograd.grad(outputs()[0].mul_(3).sum(), weights)
    for x, y in zip(actual, expected, strict=True):
        assert_close("gradient", x, y, SAME[F32])
    for output in outputs():
        assert not output._is_view()
    assert runs == [runs[0]] * 3


def test_a_value_changed_in_place_is_no_longer_differentiated():
    layer, given = time_mix_case()
    out, _, value = layer(**given)
    with torch.no_grad():
        value.add_(1.0)
    with pytest.raises(RuntimeError, match=r"modified inplace|modified by an inplace"):
        out.sum().backward()


@pytest.mark.parametrize("case", [time_mix_case, channel_mix_case])
def test_no_rows_are_no_error(case):
    layer, given = case()
    empty = {name: x if x is None else x[:0] for name, x in given.items()}
    out = call(case, layer, empty)
    out.sum().backward()
    assert out.shape == (0, T, C)


@pytest.mark.parametrize("case", [time_mix_case, channel_mix_case])
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_every_hook_of_a_projection_is_called(case, register):
    layer, given = case()
    calls = []
    getattr(layer.key, register)(lambda *_: calls.append(1))
    given["x"].requires_grad_()
    call(case, layer, given).sum().backward()
    assert calls == [1]


@pytest.mark.parametrize("case", [time_mix_case, channel_mix_case])
def test_a_hook_of_all_modules_is_called(case):
    layer, given = case()
    called = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: called.append(m))
    try:
        layer(**given)
    finally:
        handle.remove()
    assert layer.key in called and layer.value in called


@pytest.mark.parametrize("case", [time_mix_case, channel_mix_case])
def test_an_own_forward_of_a_projection_is_called(case):
    layer, given = case()
    before, original = call(case, layer, given), layer.key.forward
    layer.key.forward = lambda x: original(x) + 1.0
    assert (call(case, layer, given) - before).abs().max() > 1e-2
