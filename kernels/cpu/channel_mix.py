"""The squared ReLU of the channel mix on the CPU, forward and backward in one pass each."""

from __future__ import annotations

import torch
from torch import Tensor

from doxastic.kernels.cpu.common import TWO, ZERO, compiled
from doxastic.kernels.cpu.simd import LANES, floats, load, mul, relu, splat, store
from doxastic.kernels.cpu.threads import run


@compiled
def _forward(first, last, n, p_x, p_y):
    x, y = floats(p_x), floats(p_y)
    for i in range(first * LANES, min(last * LANES, n // LANES * LANES), LANES):
        x_i = relu(load(x, i))
        store(y, i, mul(x_i, x_i))
    if last * LANES >= n:
        for i in range(n // LANES * LANES, n):
            x_i = ZERO if x[i] < ZERO else x[i]
            y[i] = x_i * x_i


@compiled
def _backward(first, last, n, p_x, p_dy):
    x, dy = floats(p_x), floats(p_dy)
    for i in range(first * LANES, min(last * LANES, n // LANES * LANES), LANES):
        store(dy, i, mul(mul(load(dy, i), relu(load(x, i))), splat(TWO)))
    if last * LANES >= n:
        for i in range(n // LANES * LANES, n):
            dy[i] = dy[i] * (ZERO if x[i] < ZERO else x[i]) * TWO


def forward(x: Tensor) -> Tensor:
    """Return `relu(x)^2` of a contiguous tensor."""
    y = torch.empty_like(x)
    run(_forward, -(-x.numel() // LANES), x.numel(), x.numel(), x, y)
    return y


def backward(x: Tensor, dy: Tensor) -> Tensor:
    """Return the gradient of x, `2 relu(x) dy`, written over the contiguous dy."""
    run(_backward, -(-x.numel() // LANES), x.numel(), x.numel(), x, dy)
    return dy
