"""`torch.func` and forward-mode derivatives of the kernels, which compiled code cannot follow."""

from __future__ import annotations

import re

import pytest
import torch
from kernel_cases import moments_inputs, random_reset, wkv7_inputs
from tolerances import KERNEL, SAME, assert_close
from torch.autograd import forward_ad
from torch.func import grad, jacrev, jvp, vmap

from doxastic.kernels.moments import weighted_moments
from doxastic.kernels.wkv7 import wkv7, wkv7_step

# PyTorch compiles rules of its own with it when a tangent is first made.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")
F32, F64 = torch.float32, torch.float64
T = 19
RESET = random_reset(2, T, 0.1)


def sequence(r, w, k, v, a, b, state, backend="auto"):
    y, last = wkv7(r, w, k, v, a, b, state=state, reset=RESET, backend=backend)
    return torch.cat((y.flatten(), last.flatten()))


def step(r, w, k, v, a, b, state, backend="auto"):
    first = (x[:, 0] for x in (r, w, k, v, a, b))
    y, last = wkv7_step(*first, state=state, reset=RESET[:, 0], backend=backend)
    return torch.cat((y.flatten(), last.flatten()))


def moments(value, log_weight, log_decay, state, backend="auto"):
    outputs = weighted_moments(
        value, log_weight, log_decay, state=state, reset=RESET, backend=backend
    )
    return torch.cat([x.flatten() for x in outputs])


def inputs_of(function, dtype):
    make = moments_inputs if function is moments else wkv7_inputs
    return tuple(x.to(dtype) for x in make(T=T).values())


every_function = pytest.mark.parametrize("function", [sequence, step, moments])
every_backend = pytest.mark.parametrize("backend", ["auto", "chunked", "reference"])


def directions(inputs):
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(x.shape, generator=generator, dtype=F64).to(x.dtype) for x in inputs)


@every_function
@every_backend
def test_forward_mode_equals_finite_differences(function, backend):
    inputs = inputs_of(function, F64)
    ways = directions(inputs)
    _, tangent = jvp(lambda *x: function(*x, backend=backend), inputs, ways)
    eps = 1e-6
    up, down = (
        function(*(x + s * eps * d for x, d in zip(inputs, ways, strict=True)), backend="reference")
        for s in (1, -1)
    )
    assert_close("tangent", tangent, (up - down) / (2 * eps), KERNEL[F32])


@every_function
def test_forward_mode_in_float32_is_not_zero_but_right(function):
    inputs = inputs_of(function, F32)
    ways = directions(inputs)
    double = [tuple(x.double() for x in given) for given in (inputs, ways)]
    _, expected = jvp(lambda *x: function(*x, backend="reference"), *double)
    with forward_ad.dual_level():
        output = function(*map(forward_ad.make_dual, inputs, ways))
        dual = forward_ad.unpack_dual(output).tangent
    assert_close("tangent of duals", dual, expected, KERNEL[F32])
    assert_close("tangent of jvp", jvp(function, inputs, ways)[1], expected, KERNEL[F32])


@every_function
@every_backend
def test_gradients_by_torch_func_equal_those_of_backward(function, backend):
    inputs = inputs_of(function, F32)
    leaves = [x.clone().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(function(*leaves, backend=backend).square().sum(), leaves)
    places = tuple(range(len(inputs)))
    actual = grad(lambda *x: function(*x, backend=backend).square().sum(), places)(*inputs)
    for x, y in zip(actual, expected, strict=True):
        assert_close("gradient", x, y, KERNEL[F32])


@every_function
@every_backend
@pytest.mark.parametrize("mapped", [None, 0, 3])
def test_vmap_equals_a_loop(function, backend, mapped):
    """Over every argument, or over one alone, with the derivative inside."""
    several = [torch.stack((x, 0.5 * x, 0.1 * x), -1) for x in inputs_of(function, F64)]
    if mapped is None:
        dims = (-1,) * len(several)
    else:
        dims = tuple(-1 if i == mapped else None for i in range(len(several)))
        several = [x if i == mapped else x[..., 0] for i, x in enumerate(several)]

    def call(*x):
        return grad(lambda *x: function(*x, backend=backend).square().sum(), 1)(*x)

    actual = vmap(call, in_dims=dims)(*several)
    for i, ours in enumerate(actual):
        theirs = call(*(x if d is None else x[..., i] for x, d in zip(several, dims, strict=True)))
        assert_close("gradient", ours, theirs, SAME[F64])


def test_a_jacobian_of_gradients_is_that_of_the_reference():
    inputs = inputs_of(moments, F32)

    def curvature(backend, *x):
        return jacrev(grad(lambda *x: moments(*x, backend=backend).square().sum()))(*x)

    expected = curvature("reference", *(x.double() for x in inputs))
    assert_close("curvature", curvature("auto", *inputs), expected, KERNEL[F32])


@every_function
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_compiled_backend_says_that_it_cannot_follow(function, backend):
    inputs = inputs_of(function, F32)
    message = re.escape(f"backend '{backend}' was asked for inside a transform")
    with pytest.raises(ValueError, match=message):
        jvp(lambda *x: function(*x, backend=backend), inputs, directions(inputs))
    with pytest.raises(ValueError, match=message), forward_ad.dual_level():
        function(*inputs, backend=backend)
