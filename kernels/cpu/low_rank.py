"""The low-rank maps of the time mix on the CPU: bias + activation(x down) up, for small ranks.

Matrix libraries are slow where one side is 8 or 16 wide; here a few tokens pass at a time.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from doxastic.kernels.cpu.common import ONE, ZERO, compiled, whole
from doxastic.kernels.cpu.simd import (
    LANES,
    add,
    floats,
    load,
    mul,
    sigmoid,
    splat,
    store,
    sub,
    tanh,
)
from doxastic.kernels.cpu.threads import run
from doxastic.kernels.cpu.tiles import add_product

tanh_backward = torch.ops.aten.tanh_backward
sigmoid_backward = torch.ops.aten.sigmoid_backward

# The activation between the factors.
LINEAR, TANH, SIGMOID = 0, 1, 2
# Above this rank PyTorch's matrix products are faster; at 32, twice as fast.
LARGEST_RANK = 16
# The gradients of the factors are summed within each of so many parts of the tokens.
PARTS = 4
# Tokens that pass together: what they read and write stays in the first cache.
ROWS = 32


@compiled
def padded_columns(factor, R, C, W):
    """Return the factor `[C, R]` as `[C, W]`, filled up with zeros."""
    columns = np.zeros(C * W, np.float32)
    for i in range(C):
        for j in range(R):
            columns[i * W + j] = factor[i * R + j]
    return columns


@compiled
def transposed(factor, rows, columns, width):
    """Return the factor `[rows, columns]` as `[columns, width]`, filled up with zeros."""
    out = np.zeros(columns * width, np.float32)
    for i in range(rows):
        for j in range(columns):
            out[j * width + i] = factor[i * columns + j]
    return out


@compiled
def map_forward(N, C, R, W, kind, x, down, up, bias, inner, y):
    """Write activation(x down) to `inner` `[N, W]` and bias + inner up to `y` `[N, C]`.

    Args:
        N: Tokens.
        C: Channels.
        R: Rank.
        W: Rank in whole vectors.
        kind: The activation.
        x: `[N, C]`.
        down: From `padded_columns`.
        up: `[R, C]`.
        bias: `[C]`.
        inner: `[N, W]`.
        y: `[N, C]`.
    """
    inner[: N * W] = ZERO
    add_product(x, 0, C, 1, N, down, 0, W, C, inner, 0, W, W)
    if kind != LINEAR:
        for i in range(0, N * W, LANES):
            z = load(inner, i)
            store(inner, i, tanh(z) if kind == TANH else sigmoid(z))
    for n in range(N):
        for i in range(0, C, LANES):
            store(y, n * C + i, load(bias, i))
    add_product(inner, 0, W, 1, N, up, 0, C, R, y, 0, C, C)


@compiled
def map_backward(N, C, R, W, kind, dy, x, inner, up, down, dz, dx, ddown, dup, dbias):
    """Add the gradient of x to `dx`, and those of the factors, `[R, C]` both, and of the bias.

    Args:
        N: Tokens; C, R, W and kind as in `map_forward`.
        C: Channels.
        R: Rank.
        W: Rank in whole vectors.
        kind: The activation.
        dy: `[N, C]`.
        x: `[N, C]`.
        inner: From `map_forward`.
        up: `[C, W]`, from `transposed`.
        down: `[R, C]`, from `transposed`.
        dz: Scratch `[N, W]`.
        dx: `[N, C]`.
        ddown: `[R, C]`.
        dup: `[R, C]`.
        dbias: `[C]`.
    """
    one = splat(ONE)
    dz[: N * W] = ZERO
    add_product(dy, 0, C, 1, N, up, 0, W, C, dz, 0, W, W)
    if kind != LINEAR:
        for i in range(0, N * W, LANES):
            z = load(inner, i)
            slope = sub(one, mul(z, z)) if kind == TANH else mul(z, sub(one, z))
            store(dz, i, mul(load(dz, i), slope))
    add_product(dz, 0, W, 1, N, down, 0, C, R, dx, 0, C, C)
    add_product(dz, 0, 1, W, R, x, 0, C, N, ddown, 0, C, C)
    add_product(inner, 0, 1, W, R, dy, 0, C, N, dup, 0, C, C)
    for i in range(0, C, LANES):
        sum_ = load(dbias, i)
        for n in range(N):
            sum_ = add(sum_, load(dy, n * C + i))
        store(dbias, i, sum_)


@compiled
def _forward(first, last, N, C, R, W, kind, p_x, p_down, p_up, p_bias, p_inner, p_y):
    down, up, bias = padded_columns(floats(p_down), R, C, W), floats(p_up), floats(p_bias)
    end = last * N // PARTS
    for n in range(first * N // PARTS, end, ROWS):
        x, inner, y = (
            floats(p_x + 4 * n * C), floats(p_inner + 4 * n * W), floats(p_y + 4 * n * C),
        )  # fmt: skip
        map_forward(min(ROWS, end - n), C, R, W, kind, x, down, up, bias, inner, y)


@compiled
def _backward(
    first, last, N, C, R, W, kind, p_dy, p_x, p_down, p_up, p_inner, p_dx, p_ddown, p_dup, p_dbias
):
    """Write the gradients; those of the factors, `[R, C]` both, and of the bias per part."""
    up, down = transposed(floats(p_up), R, C, W), transposed(floats(p_down), C, R, C)
    dz = np.empty(ROWS * W, np.float32)
    for part in range(first, last):
        ddown, dup = floats(p_ddown + 4 * part * R * C), floats(p_dup + 4 * part * R * C)
        dbias, end = floats(p_dbias + 4 * part * C), (part + 1) * N // PARTS
        for n in range(part * N // PARTS, end, ROWS):
            rows = min(ROWS, end - n)
            dy, x, inner, dx = (
                floats(p_dy + 4 * n * C), floats(p_x + 4 * n * C),
                floats(p_inner + 4 * n * W), floats(p_dx + 4 * n * C),
            )  # fmt: skip
            dx[: rows * C] = ZERO
            map_backward(
                rows, C, R, W, kind, dy, x, inner, up, down, dz, dx, ddown, dup, dbias
            )  # fmt: skip


def forward(
    x: Tensor, down: Tensor, up: Tensor, bias: Tensor | None, kind: int
) -> tuple[Tensor, Tensor]:
    """Return `activation(x down)`, for `backward`, and `bias + activation(x down) up`, `[N, C]`.

    Args:
        x: `[N, C]`, contiguous.
        down: `[C, R]`.
        up: `[R, C]`.
        bias: `[C]`, or None for zero.
        kind: The activation: LINEAR, TANH or SIGMOID.
    """
    (N, C), R = x.shape, up.shape[0]
    if bias is None:
        bias = x.new_zeros(C)
    if R > LARGEST_RANK:
        inner = x @ down
        if kind != LINEAR:
            inner = inner.tanh_() if kind == TANH else inner.sigmoid_()
        return inner, torch.addmm(bias, inner, up)
    inner, y, sizes = x.new_empty(N, whole(R)), torch.empty_like(x), (N, C, R, whole(R), kind)
    tensors = (x, down.contiguous(), up.contiguous(), bias.contiguous(), inner, y)
    run(_forward, PARTS, 2 * x.numel() * R, *sizes, *tensors)
    return inner, y


def backward(
    dy: Tensor, x: Tensor, down: Tensor, up: Tensor, inner: Tensor, kind: int, dx: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the gradient of x to `dx`; return those of down, up and bias."""
    (N, C), R = x.shape, up.shape[0]
    if R > LARGEST_RANK:
        dinner = dy @ up.t()
        if kind != LINEAR:
            derivative = tanh_backward if kind == TANH else sigmoid_backward
            dinner = derivative(dinner, inner)
        torch.mm(dinner, down.t(), out=dx)
        return x.t() @ dinner, inner.t() @ dy, dy.sum(0)
    sums = x.new_zeros((2 * R + 1) * PARTS * C)
    ddown, dup, dbias = sums.split([PARTS * R * C, PARTS * R * C, PARTS * C])
    tensors = (dy, x, down.contiguous(), up.contiguous(), inner, dx, ddown, dup, dbias)
    run(_backward, PARTS, 6 * x.numel() * R, N, C, R, whole(R), kind, *tensors)
    ddown, dup = (d.view(PARTS, R, C).sum(0) for d in (ddown, dup))
    return ddown.t(), dup, dbias.view(PARTS, C).sum(0)
