"""The low-rank maps of the time mix on the CPU: bias + activation(x down) up, for small ranks.

Matrix libraries are slow where one side is 8 or 16 wide; here four tokens pass at a time.
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
    fma,
    load,
    mul,
    products,
    products4,
    sigmoid,
    splat,
    spread,
    store,
    store_quarters,
    sub,
    tanh,
)
from doxastic.kernels.cpu.threads import run

tanh_backward = torch.ops.aten.tanh_backward
sigmoid_backward = torch.ops.aten.sigmoid_backward

# The activation between the factors.
LINEAR, TANH, SIGMOID = 0, 1, 2
# Above this rank PyTorch's matrix products are faster; at 32, twice as fast.
LARGEST_RANK = 16
# The gradients of the factors are summed within each of so many parts of the tokens.
PARTS = 4
COLUMNS = LANES // 4


@compiled
def _project(x, n, rows, C, w, W, out):
    """Write out[n + row, j] = x[n + row] . w[j] for up to four rows; w is [W, C]."""
    if rows == 4:
        for j in range(0, W, COLUMNS):
            store_quarters(out, n * W + j, W, products4(x, n * C, C, w, j * C, C, C))
    else:
        for row in range(n, n + rows):
            for j in range(0, W, LANES):
                store(out, row * W + j, products(x, row * C, 0, w, j * C, C, C))


@compiled
def _forward(first, last, N, C, R, W, kind, p_x, p_down, p_up, p_bias, p_inner, p_y):
    x, down, up, bias, inner, y = (
        floats(p_x), floats(p_down), floats(p_up), floats(p_bias), floats(p_inner), floats(p_y),
    )  # fmt: skip
    transposed = np.zeros(W * C, np.float32)
    for i in range(C):
        for j in range(R):
            transposed[j * C + i] = down[i * R + j]
    end = last * N // PARTS
    for n in range(first * N // PARTS, end, 4):
        rows = min(4, end - n)
        _project(x, n, rows, C, transposed, W, inner)
        for i in range(n * W, (n + rows) * W, LANES):
            z = load(inner, i)
            if kind == TANH:
                store(inner, i, tanh(z))
            elif kind == SIGMOID:
                store(inner, i, sigmoid(z))
        for row in range(n, n + rows):
            for i in range(0, C, LANES):
                y_i = load(bias, i)
                for j in range(R):
                    y_i = fma(spread(inner, row * W + j), load(up, j * C + i), y_i)
                store(y, row * C + i, y_i)


@compiled
def _backward(
    first, last, N, C, R, W, kind, p_dy, p_x, p_down, p_up, p_inner, p_dx, p_ddown, p_dup, p_dbias
):
    """Write the gradients; those of the factors, `[R, C]` both, and of the bias per part."""
    dy, x, down, up, inner = (
        floats(p_dy), floats(p_x), floats(p_down), floats(p_up), floats(p_inner),
    )  # fmt: skip
    dx, ddown, dup, dbias = floats(p_dx), floats(p_ddown), floats(p_dup), floats(p_dbias)
    one = splat(ONE)
    transposed, padded = np.zeros(W * C, np.float32), np.zeros(W * C, np.float32)
    for i in range(C):
        for j in range(R):
            transposed[j * C + i] = down[i * R + j]
            padded[j * C + i] = up[j * C + i]
    dz = np.zeros(N * W, np.float32)
    for part in range(first, last):
        s, b, end = part * R * C, part * C, (part + 1) * N // PARTS
        for n in range(part * N // PARTS, end, 4):
            rows = min(4, end - n)
            _project(dy, n, rows, C, padded, W, dz)
            for i in range(n * W, (n + rows) * W, LANES):
                z, dz_i = load(inner, i), load(dz, i)
                if kind == TANH:
                    dz_i = mul(dz_i, sub(one, mul(z, z)))
                elif kind == SIGMOID:
                    dz_i = mul(dz_i, mul(z, sub(one, z)))
                store(dz, i, dz_i)
            for i in range(0, C, LANES):
                bias_i = load(dbias, b + i)
                for row in range(n, n + rows):
                    bias_i = add(bias_i, load(dy, row * C + i))
                    dx_i = splat(ZERO)
                    for j in range(R):
                        dx_i = fma(spread(dz, row * W + j), load(transposed, j * C + i), dx_i)
                    store(dx, row * C + i, dx_i)
                store(dbias, b + i, bias_i)
                for j in range(R):
                    e = s + j * C + i
                    ddown_i, dup_i = load(ddown, e), load(dup, e)
                    for row in range(n, n + rows):
                        ddown_i = fma(spread(dz, row * W + j), load(x, row * C + i), ddown_i)
                        dup_i = fma(spread(inner, row * W + j), load(dy, row * C + i), dup_i)
                    store(ddown, e, ddown_i)
                    store(dup, e, dup_i)


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
