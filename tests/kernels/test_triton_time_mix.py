"""Front and back of the time mix in Triton against their equations in float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from kernel_cases import cotangents, random_reset, strided, time_mix_inputs
from tolerances import KERNEL, NORMALISED, assert_close
from torch.nn import functional as F
from triton_cases import GPU, check, every_device, every_dtype, results

from doxastic.kernels import time_mix as public
from doxastic.kernels.triton import rows, time_mix_back, time_mix_front

F32, EPS = torch.float32, 0.1
FRONT = ("decay", "k", "rate", "k_k", "k_a")
BACK = ("y", "r", "key", "v", "gate", "r_k", "norm_weight", "norm_bias")
SHAPES = [(2, 1, 2, 16), (2, 2, 3, 5), (2, 17, 1, 33), (1, 33, 2, 8), (1, 70, 1, 64)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Let a tile be small and a program take several, so that loop and sum of sums are seen."""
    monkeypatch.setattr(rows, "TILE", 64)
    monkeypatch.setattr(rows, "PROGRAMS", 4)


def inputs_of(names, B=2, T=9, H=2, K=16):
    inputs = time_mix_inputs(B, T, H, K)
    random = torch.Generator().manual_seed(3)
    for name in ("y", "key"):
        inputs[name] = torch.randn(B, T, H, K, generator=random).double()
    return {name: inputs[name] for name in names}


def front(k_k, heads=2, **inputs):
    return time_mix_front.front(**inputs, k_k=k_k, heads=heads)


def front_truth(decay, k, rate, k_k, k_a, heads=2):
    shape = (*k.shape[:2], heads, -1)
    alpha, kk = rate.sigmoid(), F.normalize((k * k_k).view(shape), dim=-1)
    w = -torch.exp(torch.tensor(-0.5, dtype=torch.float64)) * decay.sigmoid()
    key = k * (1 + (alpha - 1) * k_a)
    return w.view(shape), key.view(shape), -kk, kk * alpha.view(shape)


def back(norm_weight, norm_bias, **inputs):
    return (time_mix_back.back(**inputs, weight=norm_weight, bias=norm_bias, eps=EPS),)


def back_truth(y, r, key, v, gate, r_k, norm_weight, norm_bias):
    heads = (*v.shape[:2], *r_k.shape)
    normal = F.group_norm(y.flatten(0, 1).flatten(1), r_k.shape[0], norm_weight, norm_bias, EPS)
    bonus = (r.view(heads) * key * r_k).sum(-1, keepdim=True) * v.view(heads)
    return ((normal.view(v.shape) + bonus.flatten(2)) * gate,)


@every_device
@every_shape
def test_front_matches_its_equations_for_every_shape(device, shape):
    check(front, front_truth, inputs_of(FRONT, *shape), device, heads=shape[2])


@every_device
@every_shape
def test_back_matches_its_equations_for_every_shape(device, shape):
    check(back, back_truth, inputs_of(BACK, *shape), device)


@every_device
@every_dtype
def test_half_precision_is_computed_in_float32(device, dtype):
    check(front, front_truth, inputs_of(FRONT), device, dtype)
    check(back, back_truth, inputs_of(BACK), device, dtype)
    given = {name: x.to(device, dtype) for name, x in inputs_of(FRONT).items()}
    assert [x.dtype for x in front(**given)] == [F32, dtype, dtype, dtype]


@every_device
def test_parameters_may_be_float32_beside_half_precision(device):
    for function, names, parameters in ((front, FRONT, FRONT[3:]), (back, BACK, BACK[5:])):
        given = {n: x.to(device, torch.bfloat16) for n, x in inputs_of(names).items()}
        given |= {name: given[name].float() for name in parameters}
        actual = results(function, given)
        assert all(actual[f"d{name}"].dtype == x.dtype for name, x in given.items())


@pytest.mark.parametrize("device", [GPU])
@every_dtype
@pytest.mark.parametrize("width", [32, 64, 128])
def test_match_their_equations_at_real_sizes(device, dtype, width, monkeypatch):
    monkeypatch.undo()
    check(front, front_truth, inputs_of(FRONT, 16, 256, 4, width), device, dtype, heads=4)
    check(back, back_truth, inputs_of(BACK, 16, 256, 4, width), device, dtype)


@every_device
def test_tensors_are_read_however_they_are_laid_out(device):
    for function, names in ((front, FRONT), (back, BACK)):
        given = {name: x.to(device, F32) for name, x in inputs_of(names, B=3, T=4).items()}
        expected = results(function, given)
        crossed = results(function, strided(given))
        sliced = dict(given)
        for name in {"decay", "k", "rate", "r", "v", "gate"} & set(names):
            sliced[name] = torch.cat([given[name]] * 2, -1)[..., 32:]
        sliced = results(function, sliced)
        for name, x in expected.items():
            assert torch.equal(crossed[name], x) and torch.equal(sliced[name], x), name


@every_device
def test_gradients_of_one_output_alone_are_understood(device):
    def removal(function):
        return lambda **arguments: function(**arguments)[2:3]

    def reached(function, inputs):
        leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        outputs = removal(function)(**leaves)
        return torch.autograd.grad(outputs, (leaves["k"], leaves["k_k"]), cotangents(outputs))

    inputs = inputs_of(FRONT)
    expected = reached(front_truth, inputs)
    actual = reached(front, {name: x.to(device, F32) for name, x in inputs.items()})
    for x, y in zip(actual, expected, strict=True):
        assert_close("gradient", x.cpu(), y, KERNEL[F32])


@every_device
def test_a_zero_key_is_as_finite_as_in_the_composed_form(device):
    inputs = inputs_of(FRONT)
    inputs["k"][:, 3] = 0.0
    given = {name: x.to(device, F32) for name, x in inputs.items()}
    actual = results(front, given)
    assert all(x.isfinite().all() for x in actual.values())
    for i, x in enumerate(front_truth(**inputs)):
        assert_close("output", actual[f"output {i}"].cpu(), x, KERNEL[F32])


@every_device
@pytest.mark.parametrize(("eps", "tolerance"), [(0.1, KERNEL), (16e-5, NORMALISED)])
def test_launched_time_mix_matches_the_composed_one(device, eps, tolerance, monkeypatch):
    inputs, reset = time_mix_inputs(T=17), random_reset(2, 17, 0.2)
    function = partial(public.time_mix, norm_eps=eps)
    expected = results(function, inputs, reset=reset)
    monkeypatch.setattr(public, "can_fuse", lambda *_: False)
    monkeypatch.setattr(public, "can_launch", lambda *_: True)
    monkeypatch.setattr(public, "_composed", None)
    given = {name: x.to(device, F32) for name, x in inputs.items()}
    actual = results(function, given, reset=reset.to(device))
    for name, x in expected.items():
        assert_close(name, actual[name].cpu(), x, tolerance[F32])


@every_device
def test_operators_pass_opcheck(device):
    given = [x.to(device, F32) for x in inputs_of(FRONT, T=2, K=5).values()]
    leaves = [x.clone().requires_grad_() for x in given]
    torch.library.opcheck(time_mix_front.front, (*leaves, 2))
    gradients = [x.clone() for x in time_mix_front.front(*given, 2)]
    torch.library.opcheck(time_mix_front.front_backward, (*gradients, *given))
    given = [x.to(device, F32) for x in inputs_of(BACK, T=2, K=5).values()]
    leaves = [x.clone().requires_grad_() for x in given]
    torch.library.opcheck(time_mix_back.back, (*leaves, EPS))
    dout = time_mix_back.back(*given, EPS).clone()
    torch.library.opcheck(time_mix_back.back_backward, (dout, *given, EPS))
