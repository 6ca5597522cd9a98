"""Token shift with resets on the GPU: all mixes in one pass, and their gradients in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from doxastic.kernels.triton.common import OPTIONS, on_device
from doxastic.kernels.triton.rows import flags, rows

Tensors3 = tuple[Tensor, Tensor, Tensor]

# Channels and tokens that a program takes at once. The backward is one warp and keeps every mix
# of its tile in flight: twice the tile would not fit into registers.
FORWARD, BACKWARD = (128, 8), (64, 2)
# Programs of the backward at most, about 16 warps for each of 132 multiprocessors.
PROGRAMS = 2048


@triton.jit(do_not_specialize=["T", "N"])
def _forward(
    p_x, p_previous, p_reset, p_mix, p_outs, s_x, T, N, C,
    G: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    m_n, m_c = n < N, o_c < C
    mask = m_n[:, None] & m_c[None, :]
    first = n % T == 0
    keep = m_n & (tl.load(p_reset + n, m_n, 1) == 0)
    x = tl.load(p_x + n[:, None] * s_x + o_c[None, :], mask, 0.0).to(tl.float32)
    before = tl.load(
        p_x + (n - 1)[:, None] * s_x + o_c[None, :], (keep & ~first)[:, None] & m_c[None, :], 0.0
    ).to(tl.float32)
    before += tl.load(
        p_previous + (n // T)[:, None] * C + o_c[None, :], (keep & first)[:, None] & m_c[None, :],
        0.0,
    ).to(tl.float32)  # fmt: skip
    for g in tl.static_range(G):
        mix = tl.load(p_mix + g * C + o_c, m_c, 0.0).to(tl.float32)
        out = x + (before - x) * mix[None, :]
        p_out = p_outs[g]
        tl.store(p_out + n[:, None] * C + o_c[None, :], out.to(p_out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["T", "N", "tiles"])
def _backward(
    p_grads, p_x, p_previous, p_reset, p_mix, p_dx, p_dprevious, p_dmix, s_x, T, N, C, tiles,
    G: tl.constexpr, BG: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Write dx and dprevious, and this program's sum of dmix over `tiles` times `BT` tokens."""
    part = tl.program_id(0).to(tl.int64)
    o_c = tl.program_id(1) * BC + tl.arange(0, BC)
    o_g, m_c = tl.arange(0, BG), o_c < C
    dmix = tl.zeros((BG, BC), tl.float32)
    for i in tl.range(0, tiles):
        n = (part * tiles + i) * BT + tl.arange(0, BT)
        m_n = n < N
        mask = m_n[:, None] & m_c[None, :]
        t = n % T
        keep = m_n & (tl.load(p_reset + n, m_n, 1) == 0)
        # The step after n reads x[n] unless another row of the batch begins there, or a reset.
        m_next = m_n & (t < T - 1)
        m_next &= tl.load(p_reset + n + 1, m_next, 1) == 0
        m_before = (keep & (t > 0))[:, None] & m_c[None, :]
        m_first = (keep & (t == 0))[:, None] & m_c[None, :]
        x = tl.load(p_x + n[:, None] * s_x + o_c[None, :], mask, 0.0).to(tl.float32)
        before = tl.load(p_x + (n - 1)[:, None] * s_x + o_c[None, :], m_before, 0.0).to(tl.float32)
        o_previous = (n // T)[:, None] * C + o_c[None, :]
        before += tl.load(p_previous + o_previous, m_first, 0.0).to(tl.float32)
        o = n[:, None] * C + o_c[None, :]
        dx = tl.zeros((BT, BC), tl.float32)
        dbefore = tl.zeros((BT, BC), tl.float32)
        for g in tl.static_range(G):
            mix = tl.load(p_mix + g * C + o_c, m_c, 0.0).to(tl.float32)[None, :]
            p_grad = p_grads[g]
            grad = tl.load(p_grad + o, mask, 0.0).to(tl.float32)
            later = tl.load(p_grad + o + C, m_next[:, None] & m_c[None, :], 0.0).to(tl.float32)
            dx += grad * (1.0 - mix) + later * mix
            dbefore += grad * mix
            dmix += tl.where(o_g[:, None] == g, tl.sum(grad * (before - x), 0)[None, :], 0.0)
        tl.store(p_dx + o, dx.to(p_dx.dtype.element_ty), mask)
        dprevious = tl.where(keep[:, None], dbefore, 0.0)
        tl.store(
            p_dprevious + o_previous, dprevious.to(p_dprevious.dtype.element_ty),
            mask & (t == 0)[:, None],
        )  # fmt: skip
    o_mix = part * G * C + o_g[:, None] * C + o_c[None, :]
    tl.store(p_dmix + o_mix, dmix, (o_g < G)[:, None] & m_c[None, :])


def shift_mix(x: Tensor, previous: Tensor, reset: Tensor, mix: Tensor) -> tuple[Tensor, ...]:
    """Return what `doxastic.kernels.token_shift.shift_mix` returns, differentiable once.

    Tensors may be float32, bfloat16 or float16, each its own; computed in float32. The mixes have
    the promoted dtype of x and `mix`; gradients come in the dtype of their inputs. The gradient of
    `mix` is summed over parts and then over the parts: the same bits in every run.

    Args:
        x: `[B, T, C]`.
        previous: `[B, C]`.
        reset: `[B, T]` bool.
        mix: `[G, C]`.
    """
    return tuple(shift_forward(x, previous, reset, mix))


def _blocks(C: int, block: tuple[int, int]) -> tuple[int, int, int]:
    """Return a program's channels, its tokens at once, and the programs over the channels."""
    channels = min(block[0], triton.next_power_of_2(C))
    return channels, block[1] * block[0] // channels, triton.cdiv(C, channels)


@torch.library.custom_op("doxastic::triton_shift_forward", mutates_args=())
def shift_forward(x: Tensor, previous: Tensor, reset: Tensor, mix: Tensor) -> list[Tensor]:
    """Return the G mixes `[B, T, C]`."""
    (B, T, C), G = x.shape, mix.shape[0]
    dtype = torch.promote_types(x.dtype, mix.dtype)
    outs = [torch.empty(B, T, C, dtype=dtype, device=x.device) for _ in range(G)]
    if x.numel() and G:
        channels, tokens, columns = _blocks(C, FORWARD)
        x = rows(x)
        with on_device(x):
            _forward[(triton.cdiv(B * T, tokens), columns)](
                x, previous.contiguous(), flags(reset), mix.contiguous(), tuple(outs),
                x.stride(0), T, B * T, C, G, channels, tokens, num_warps=4, **OPTIONS,
            )  # fmt: skip
    return outs


@shift_forward.register_fake
def _(x: Tensor, previous: Tensor, reset: Tensor, mix: Tensor) -> list[Tensor]:
    dtype = torch.promote_types(x.dtype, mix.dtype)
    return [x.new_empty(x.shape, dtype=dtype) for _ in range(mix.shape[0])]


@torch.library.custom_op("doxastic::triton_shift_backward", mutates_args=())
def shift_backward(
    grads: Sequence[Tensor], x: Tensor, previous: Tensor, reset: Tensor, mix: Tensor
) -> Tensors3:
    """Return the gradients of x, previous and mix from those of the G mixes."""
    (B, T, C), G = x.shape, mix.shape[0]
    dx, dprevious = x.new_empty(B, T, C), previous.new_empty(B, C)
    if not x.numel() or not G:
        return dx.zero_(), dprevious.zero_(), torch.zeros_like(mix)
    channels, tokens, columns = _blocks(C, BACKWARD)
    blocks = triton.cdiv(B * T, tokens)
    tiles = triton.cdiv(blocks, max(1, PROGRAMS // columns))
    parts = triton.cdiv(blocks, tiles)
    dmix = torch.empty(parts, G, C, dtype=torch.float32, device=x.device)
    x = rows(x)
    with on_device(x):
        _backward[(parts, columns)](
            tuple(grad.contiguous() for grad in grads), x, previous.contiguous(), flags(reset),
            mix.contiguous(), dx, dprevious, dmix, x.stride(0), T, B * T, C, tiles,
            G, triton.next_power_of_2(G), channels, tokens, num_warps=1, **OPTIONS,
        )  # fmt: skip
    return dx, dprevious, dmix.sum(0).to(mix.dtype)


@shift_backward.register_fake
def _(grads: Sequence[Tensor], x: Tensor, previous: Tensor, reset: Tensor, mix: Tensor) -> Tensors3:
    dx, dprevious, dmix = (z.new_empty(z.shape) for z in (x, previous, mix))
    return dx, dprevious, dmix


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: list[Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    x, previous, reset, mix = ctx.saved_tensors
    dx, dprevious, dmix = shift_backward(grads, x, previous, reset, mix)
    return dx, dprevious, None, dmix


shift_forward.register_autograd(_differentiate, setup_context=_save)
