"""The registered operators: what `torch.library` asks of them, compilation, and their absence."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from kernel_cases import (
    belief_inputs,
    moments_inputs,
    random_reset,
    shift_inputs,
    time_mix_inputs,
    wkv7_inputs,
)
from tolerances import KERNEL, assert_close

from doxastic.kernels import operators
from doxastic.kernels.belief_moments import belief_moments_features
from doxastic.kernels.moments import weighted_moments
from doxastic.kernels.time_mix import time_mix
from doxastic.kernels.token_shift import shift_mix
from doxastic.kernels.wkv7 import wkv7


@pytest.mark.parametrize(("keys", "values"), [(16, 16), (5, 7)])
def test_wkv7_operators_pass_opcheck(keys, values):
    inputs = [x.float() for x in wkv7_inputs(B=2, T=18, H=1, K=keys, V=values).values()]
    reset = random_reset(2, 18, 0.1)
    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.library.opcheck(operators._wkv7_forward, (*leaves, reset))
    y, final, u, stored = operators._wkv7_forward(*inputs, reset)
    torch.library.opcheck(
        operators._wkv7_backward, (y.clone(), final.clone(), *inputs[:6], reset, u, stored)
    )


@pytest.mark.parametrize("width", [16, 5])
def test_moments_operators_pass_opcheck(width):
    inputs = [x.float() for x in moments_inputs(T=18, M=width).values()]
    reset = random_reset(2, 18, 0.1)
    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.library.opcheck(operators._moments_forward, (*leaves, reset))
    *outputs, final = operators._moments_forward(*inputs, reset)
    gradients = [x.clone() for x in (*outputs, final)]
    torch.library.opcheck(operators._moments_backward, (*gradients, *inputs, reset, *outputs))


def test_the_public_functions_compile_into_one_graph():
    inputs = {name: x.float() for name, x in wkv7_inputs(T=18).items()}
    numbers = {name: x.float() for name, x in moments_inputs(T=18).items()}
    reset = random_reset(2, 18, 0.1)

    def model(inputs, numbers):
        y, _ = wkv7(**inputs, reset=reset)
        mean, *_ = weighted_moments(**numbers, reset=reset)
        return y.square().sum() + mean.square().sum()

    def gradients(call):
        leaves = [x.requires_grad_() for x in (*inputs.values(), *numbers.values())]
        return torch.autograd.grad(call(inputs, numbers), leaves)

    expected = gradients(model)
    actual = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"))
    for x, y in zip(actual, expected, strict=True):
        assert_close("gradient", x, y, KERNEL[torch.float32])


def test_the_fused_operations_compile_into_one_graph_without_their_kernels():
    inputs = [time_mix_inputs(T=5), shift_inputs(T=5), belief_inputs(T=5)]
    inputs = [{name: x.float() for name, x in given.items()} for given in inputs]
    reset = random_reset(2, 5, 0.2)

    def model(mixed, shifted, believed):
        y, _ = time_mix(**mixed, norm_eps=0.1, reset=reset)
        features, _ = belief_moments_features(**believed, reset=reset)
        return y.sum() + features.sum() + sum(x.sum() for x in shift_mix(**shifted, reset=reset))

    def gradients(call):
        leaves = [x.requires_grad_() for given in inputs for x in given.values()]
        return torch.autograd.grad(call(*inputs), leaves)

    expected = gradients(model)
    actual = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"))
    for x, y in zip(actual, expected, strict=True):
        assert_close("gradient", x, y, KERNEL[torch.float32])


def test_second_derivatives_on_the_compiled_backend_are_an_error():
    inputs = {name: x.float() for name, x in wkv7_inputs(T=4).items()}
    k = inputs["k"].requires_grad_()
    y, _ = wkv7(**inputs, backend="cpu")
    (dk,) = torch.autograd.grad(y.square().sum(), k, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(dk.sum(), k)


def test_kernels_work_with_torch_alone():
    script = """
import sys
sys.modules["numba"] = None
import torch
from doxastic.kernels.moments import weighted_moments
from doxastic.kernels.wkv7 import wkv7
x = torch.zeros(1, 2, 1, 4)
wkv7(x, x, x, x, x, x, backend="chunked")
z = torch.zeros(1, 2, 4)
weighted_moments(z, z, z, backend="chunked")
try:
    wkv7(x, x, x, x, x, x)
except ImportError as error:
    assert "pip install numba" in str(error), error
else:
    raise SystemExit("no error without numba")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
