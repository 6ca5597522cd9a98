"""The elementwise front of the time mix on the GPU: one pass forward, one backward.

A program takes the tokens of one head, `[BT, BK]` at once, so that the norm of a key is a sum
inside a tile and the parameters are read once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from doxastic.kernels.triton.common import OPTIONS, on_device
from doxastic.kernels.triton.rows import head_blocks, rows

Tensors4 = tuple[Tensor, Tensor, Tensor, Tensor]
Tensors5 = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@triton.jit(do_not_specialize=["N"])
def _forward(
    p_decay, p_k, p_rate, p_k_k, p_k_a, p_w, p_key, p_a, p_b, s_decay, s_k, s_rate, N, H, K,
    BT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    n, h, o_k = i // H * BT + tl.arange(0, BT), i % H, tl.arange(0, BK)
    m_k = o_k < K
    c, mask = h * K + o_k, (n < N)[:, None] & m_k[None, :]
    k_k = tl.load(p_k_k + c, m_k, 0.0).to(tl.float32)
    k_a = tl.load(p_k_a + c, m_k, 0.0).to(tl.float32)
    n, c = n[:, None], c[None, :]
    decay = tl.load(p_decay + n * s_decay + c, mask, 0.0).to(tl.float32)
    k = tl.load(p_k + n * s_k + c, mask, 0.0).to(tl.float32)
    alpha = tl.sigmoid(tl.load(p_rate + n * s_rate + c, mask, 0.0).to(tl.float32))
    scaled = k * k_k[None, :]
    kk = scaled / tl.maximum(tl.sqrt(tl.sum(scaled * scaled, 1)), 1e-12)[:, None]
    key = k * (1.0 + (alpha - 1.0) * k_a[None, :])
    o = n * (H * K) + c
    # log w = -e^(-1/2) sigmoid(decay).
    tl.store(p_w + o, -0.6065306597126334 * tl.sigmoid(decay), mask)
    tl.store(p_key + o, key.to(p_key.dtype.element_ty), mask)
    tl.store(p_a + o, (-kk).to(p_a.dtype.element_ty), mask)
    tl.store(p_b + o, (kk * alpha).to(p_b.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["N", "tiles"])
def _backward(
    p_dw, p_dkey, p_da, p_db, p_decay, p_k, p_rate, p_k_k, p_k_a,
    p_ddecay, p_dk, p_drate, p_sums, s_decay, s_k, s_rate, N, H, K, tiles,
    BT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write the gradients, and this program's sums of dk_k and dk_a over `tiles` tiles."""
    i = tl.program_id(0).to(tl.int64)
    part, h, o_k = i // H, i % H, tl.arange(0, BK)
    m_k = o_k < K
    c = h * K + o_k
    k_k = tl.load(p_k_k + c, m_k, 0.0).to(tl.float32)[None, :]
    k_a = tl.load(p_k_a + c, m_k, 0.0).to(tl.float32)[None, :]
    dk_k, dk_a = tl.zeros((BT, BK), tl.float32), tl.zeros((BT, BK), tl.float32)
    for tile in tl.range(0, tiles):
        n = ((part * tiles + tile) * BT + tl.arange(0, BT))[:, None]
        mask, o = (n < N) & m_k[None, :], n * (H * K) + c[None, :]
        k = tl.load(p_k + n * s_k + c[None, :], mask, 0.0).to(tl.float32)
        alpha = tl.sigmoid(tl.load(p_rate + n * s_rate + c[None, :], mask, 0.0).to(tl.float32))
        gate = tl.sigmoid(tl.load(p_decay + n * s_decay + c[None, :], mask, 0.0).to(tl.float32))
        dw = tl.load(p_dw + o, mask, 0.0).to(tl.float32)
        dkey = tl.load(p_dkey + o, mask, 0.0).to(tl.float32)
        da = tl.load(p_da + o, mask, 0.0).to(tl.float32)
        db = tl.load(p_db + o, mask, 0.0).to(tl.float32)
        scaled = k * k_k
        scale = 1.0 / tl.maximum(tl.sqrt(tl.sum(scaled * scaled, 1)), 1e-12)[:, None]
        kk = scaled * scale
        # b = kk alpha and a = -kk; then through the norm.
        dkk = db * alpha - da
        dscaled = scale * (dkk - kk * tl.sum(dkk * kk, 1)[:, None])
        dk = dkey * (1.0 + (alpha - 1.0) * k_a) + dscaled * k_k
        drate = (db * kk + dkey * k * k_a) * alpha * (1.0 - alpha)
        ddecay = -0.6065306597126334 * dw * gate * (1.0 - gate)
        dk_k += dscaled * k
        dk_a += dkey * k * (alpha - 1.0)
        tl.store(p_ddecay + o, ddecay.to(p_ddecay.dtype.element_ty), mask)
        tl.store(p_dk + o, dk.to(p_dk.dtype.element_ty), mask)
        tl.store(p_drate + o, drate.to(p_drate.dtype.element_ty), mask)
    o_sum = part * 2 * H * K + c
    tl.store(p_sums + o_sum, tl.sum(dk_k, 0), m_k)
    tl.store(p_sums + o_sum + H * K, tl.sum(dk_a, 0), m_k)


@torch.library.custom_op("doxastic::triton_time_mix_front", mutates_args=())
def front(decay: Tensor, k: Tensor, rate: Tensor, k_k: Tensor, k_a: Tensor, heads: int) -> Tensors4:
    """Return the log-decay, the written key, the removal and the replacement vector.

    With alpha = sigmoid(rate) and, per head, kk = k k_k / |k k_k|:

        w = -e^(-1/2) sigmoid(decay),  k~ = k (1 + (alpha - 1) k_a),  a = -kk,  b = kk alpha

    Each `[B, T, H, K]`; w is float32, the others have the dtype of k. Inputs may be float32,
    bfloat16 or float16, each its own; computed in float32. Differentiable once; gradients have the
    dtype of their inputs, those of k_k and k_a are the same bits in every run.

    Args:
        decay: `[B, T, C]`, like k and rate.
        k: Key.
        rate: Pre-activation of the in-context learning rate.
        k_k: `[C]`, like k_a.
        k_a: How far the rate scales the key that is written.
        heads: H.
    """
    B, T, C = k.shape
    shape, K = (B, T, heads, C // heads), C // heads
    w = torch.empty(shape, dtype=torch.float32, device=k.device)
    key, a, b = (torch.empty(shape, dtype=k.dtype, device=k.device) for _ in range(3))
    if k.numel():
        inputs = [rows(x) for x in (decay, k, rate)]
        tokens, block, programs, _ = head_blocks(B * T, heads, K, tiles=1)
        with on_device(k):
            _forward[(programs,)](
                *inputs, k_k.contiguous(), k_a.contiguous(), w, key, a, b,
                *(x.stride(0) for x in inputs), B * T, heads, K, tokens, block,
                num_warps=4, **OPTIONS,
            )  # fmt: skip
    return w, key, a, b


@front.register_fake
def _(decay: Tensor, k: Tensor, rate: Tensor, k_k: Tensor, k_a: Tensor, heads: int) -> Tensors4:
    shape = (*k.shape[:2], heads, k.shape[2] // heads)
    key, a, b = (k.new_empty(shape) for _ in range(3))
    return k.new_empty(shape, dtype=torch.float32), key, a, b


@torch.library.custom_op("doxastic::triton_time_mix_front_backward", mutates_args=())
def front_backward(
    dw: Tensor, dkey: Tensor, da: Tensor, db: Tensor,
    decay: Tensor, k: Tensor, rate: Tensor, k_k: Tensor, k_a: Tensor,
) -> Tensors5:  # fmt: skip
    """Return the gradients of decay, k, rate, k_k and k_a."""
    (B, T, C), (H, K) = k.shape, dw.shape[2:]
    ddecay, dk, drate = (x.new_empty(B, T, C) for x in (decay, k, rate))
    if not k.numel():
        return ddecay, dk, drate, torch.zeros_like(k_k), torch.zeros_like(k_a)
    inputs = [rows(x) for x in (decay, k, rate)]
    tokens, block, programs, tiles = head_blocks(B * T, H, K)
    sums = torch.empty(programs // H, 2, C, dtype=torch.float32, device=k.device)
    with on_device(k):
        _backward[(programs,)](
            *(x.contiguous() for x in (dw, dkey, da, db)), *inputs,
            k_k.contiguous(), k_a.contiguous(), ddecay, dk, drate, sums,
            *(x.stride(0) for x in inputs), B * T, H, K, tiles, tokens, block,
            num_warps=4, **OPTIONS,
        )  # fmt: skip
    dk_k, dk_a = sums[:, 0].sum(0).to(k_k.dtype), sums[:, 1].sum(0).to(k_a.dtype)
    return ddecay, dk, drate, dk_k, dk_a


@front_backward.register_fake
def _(
    dw: Tensor, dkey: Tensor, da: Tensor, db: Tensor,
    decay: Tensor, k: Tensor, rate: Tensor, k_k: Tensor, k_a: Tensor,
) -> Tensors5:  # fmt: skip
    ddecay, dk, drate, dk_k, dk_a = (x.new_empty(x.shape) for x in (decay, k, rate, k_k, k_a))
    return ddecay, dk, drate, dk_k, dk_a


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensors4) -> None:
    ctx.save_for_backward(*inputs[:5])


def _differentiate(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    return *front_backward(*gradients, *ctx.saved_tensors), None


front.register_autograd(_differentiate, setup_context=_save)
