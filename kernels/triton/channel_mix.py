"""The squared ReLU of the channel mix on the GPU: one pass forward, one backward."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from doxastic.kernels.triton.common import OPTIONS, on_device
from doxastic.kernels.triton.rows import rows

# Numbers that a program of four warps takes.
TILE = 2048


@triton.jit(do_not_specialize=["N"])
def _forward(p_x, p_out, s_x, N, C, BT: tl.constexpr, BC: tl.constexpr):
    n = (tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT))[:, None]
    c = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    mask = (n < N) & (c < C)
    x = tl.load(p_x + n * s_x + c, mask, 0.0).to(tl.float32)
    x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(p_out + n * C + c, (x * x).to(p_out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["N"])
def _backward(p_dout, p_x, p_dx, s_dout, s_x, N, C, BT: tl.constexpr, BC: tl.constexpr):
    n = (tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT))[:, None]
    c = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    mask = (n < N) & (c < C)
    x = tl.load(p_x + n * s_x + c, mask, 0.0).to(tl.float32)
    x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    dout = tl.load(p_dout + n * s_dout + c, mask, 0.0).to(tl.float32)
    tl.store(p_dx + n * C + c, (2.0 * x * dout).to(p_dx.dtype.element_ty), mask)


def _blocks(N: int, C: int) -> tuple[tuple[int, int], int, int]:
    """Return the grid of programs and the tile of each."""
    columns = min(TILE // 4, triton.next_power_of_2(C))
    tokens = TILE // columns
    return (triton.cdiv(N, tokens), triton.cdiv(C, columns)), tokens, columns


@torch.library.custom_op("doxastic::triton_squared_relu", mutates_args=())
def squared_relu(x: Tensor) -> Tensor:
    """Return `relu(x)^2` of `[..., C]` in its dtype, differentiable once.

    float32, bfloat16 or float16; computed in float32 and rounded once.
    """
    out = x.new_empty(x.shape)
    if x.numel():
        given, C = rows(x), x.shape[-1]
        grid, tokens, columns = _blocks(len(given), C)
        with on_device(x):
            _forward[grid](
                given, out, given.stride(0), len(given), C, tokens, columns,
                num_warps=4, **OPTIONS,
            )  # fmt: skip
    return out


@squared_relu.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("doxastic::triton_squared_relu_backward", mutates_args=())
def squared_relu_backward(dout: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of x, `2 relu(x) dout`."""
    dx = x.new_empty(x.shape)
    if x.numel():
        dout, given, C = rows(dout), rows(x), x.shape[-1]
        grid, tokens, columns = _blocks(len(given), C)
        with on_device(x):
            _backward[grid](
                dout, given, dx, dout.stride(0), given.stride(0), len(given), C, tokens, columns,
                num_warps=4, **OPTIONS,
            )  # fmt: skip
    return dx


@squared_relu_backward.register_fake
def _(dout: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dout: Tensor) -> Tensor:
    dx: Tensor = squared_relu_backward(dout, *ctx.saved_tensors)
    return dx


squared_relu.register_autograd(_differentiate, setup_context=_save)
