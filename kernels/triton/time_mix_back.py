"""The elementwise back of the time mix on the GPU: group norm, bonus and gate in one pass.

Tiles as in `time_mix_front`: a head is a group of the norm.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from doxastic.kernels.triton.common import OPTIONS, on_device
from doxastic.kernels.triton.rows import head_blocks, rows

Tensors8 = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@triton.jit(do_not_specialize=["N"])
def _forward(
    p_y, p_r, p_key, p_v, p_gate, p_r_k, p_weight, p_bias, p_out,
    s_r, s_v, s_gate, eps, N, H, K, BT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    n, h, o_k = (i // H * BT + tl.arange(0, BT))[:, None], i % H, tl.arange(0, BK)
    m_k = o_k < K
    c, mask = h * K + o_k, (n < N) & m_k[None, :]
    r_k = tl.load(p_r_k + c, m_k, 0.0).to(tl.float32)[None, :]
    weight = tl.load(p_weight + c, m_k, 0.0).to(tl.float32)[None, :]
    bias = tl.load(p_bias + c, m_k, 0.0).to(tl.float32)[None, :]
    c = c[None, :]
    o = n * (H * K) + c
    y = tl.load(p_y + o, mask, 0.0).to(tl.float32)
    r = tl.load(p_r + n * s_r + c, mask, 0.0).to(tl.float32)
    key = tl.load(p_key + o, mask, 0.0).to(tl.float32)
    v = tl.load(p_v + n * s_v + c, mask, 0.0).to(tl.float32)
    gate = tl.load(p_gate + n * s_gate + c, mask, 0.0).to(tl.float32)
    centred = tl.where(mask, y - (tl.sum(y, 1) / K)[:, None], 0.0)
    normal = centred / tl.sqrt(tl.sum(centred * centred, 1) / K + eps)[:, None]
    bonus = tl.sum(r * key * r_k, 1)[:, None]
    out = (normal * weight + bias + bonus * v) * gate
    tl.store(p_out + o, out.to(p_out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["N", "tiles"])
def _backward(
    p_dout, p_y, p_r, p_key, p_v, p_gate, p_r_k, p_weight, p_bias,
    p_dy, p_dr, p_dkey, p_dv, p_dgate, p_sums,
    s_dout, s_r, s_v, s_gate, eps, N, H, K, tiles, BT: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Write the gradients, and this program's sums of dr_k, dweight and dbias."""
    i = tl.program_id(0).to(tl.int64)
    part, h, o_k = i // H, i % H, tl.arange(0, BK)
    m_k = o_k < K
    c = h * K + o_k
    r_k = tl.load(p_r_k + c, m_k, 0.0).to(tl.float32)[None, :]
    weight = tl.load(p_weight + c, m_k, 0.0).to(tl.float32)[None, :]
    bias = tl.load(p_bias + c, m_k, 0.0).to(tl.float32)[None, :]
    dr_k = tl.zeros((BT, BK), tl.float32)
    dweight = tl.zeros((BT, BK), tl.float32)
    dbias = tl.zeros((BT, BK), tl.float32)
    for tile in tl.range(0, tiles):
        n = ((part * tiles + tile) * BT + tl.arange(0, BT))[:, None]
        mask, o = (n < N) & m_k[None, :], n * (H * K) + c[None, :]
        y = tl.load(p_y + o, mask, 0.0).to(tl.float32)
        r = tl.load(p_r + n * s_r + c[None, :], mask, 0.0).to(tl.float32)
        key = tl.load(p_key + o, mask, 0.0).to(tl.float32)
        v = tl.load(p_v + n * s_v + c[None, :], mask, 0.0).to(tl.float32)
        gate = tl.load(p_gate + n * s_gate + c[None, :], mask, 0.0).to(tl.float32)
        dout = tl.load(p_dout + n * s_dout + c[None, :], mask, 0.0).to(tl.float32)
        centred = tl.where(mask, y - (tl.sum(y, 1) / K)[:, None], 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / K + eps)[:, None]
        normal = centred * scale
        bonus = tl.sum(r * key * r_k, 1)[:, None]
        dgate = dout * (normal * weight + bias + bonus * v)
        dx = dout * gate
        dnormal = dx * weight
        slope = (tl.sum(dnormal * normal, 1) / K)[:, None]
        dy = scale * (dnormal - (tl.sum(dnormal, 1) / K)[:, None] - normal * slope)
        dbonus = tl.sum(dx * v, 1)[:, None]
        dweight += dx * normal
        dbias += dx
        dr_k += dbonus * r * key
        tl.store(p_dy + o, dy.to(p_dy.dtype.element_ty), mask)
        tl.store(p_dr + o, (dbonus * key * r_k).to(p_dr.dtype.element_ty), mask)
        tl.store(p_dkey + o, (dbonus * r * r_k).to(p_dkey.dtype.element_ty), mask)
        tl.store(p_dv + o, (dx * bonus).to(p_dv.dtype.element_ty), mask)
        tl.store(p_dgate + o, dgate.to(p_dgate.dtype.element_ty), mask)
    o_sum = part * 3 * H * K + c
    tl.store(p_sums + o_sum, tl.sum(dr_k, 0), m_k)
    tl.store(p_sums + o_sum + H * K, tl.sum(dweight, 0), m_k)
    tl.store(p_sums + o_sum + 2 * H * K, tl.sum(dbias, 0), m_k)


@torch.library.custom_op("doxastic::triton_time_mix_back", mutates_args=())
def back(
    y: Tensor, r: Tensor, key: Tensor, v: Tensor, gate: Tensor,
    r_k: Tensor, weight: Tensor, bias: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    """Return `gate (GroupNorm(y) + (r . key r_k) v)`, `[B, T, C]` in the dtype of v.

    Inputs may be float32, bfloat16 or float16, each its own; computed in float32. Differentiable
    once; gradients have the dtype of their inputs, those of parameters are the same bits in every
    run.

    Args:
        y: Output of the recurrence `[B, T, H, V]`, like key.
        r: Receptance `[B, T, C]`, like v and gate.
        key: The written key.
        v: Value.
        gate: Output gate.
        r_k: `[H, K]`, the bonus of the current step.
        weight: `[C]`, of the group norm with one group a head.
        bias: `[C]`.
        eps: Added to the variance.
    """
    (B, T, C), (H, K) = v.shape, r_k.shape
    out = torch.empty(B, T, C, dtype=v.dtype, device=v.device)
    if out.numel():
        inputs = [rows(x) for x in (r, v, gate)]
        tokens, block, programs, _ = head_blocks(B * T, H, K, tiles=1)
        with on_device(v):
            _forward[(programs,)](
                y.contiguous(), inputs[0], key.contiguous(), *inputs[1:],
                r_k.contiguous(), weight.contiguous(), bias.contiguous(), out,
                *(x.stride(0) for x in inputs), eps, B * T, H, K, tokens, block,
                num_warps=4, **OPTIONS,
            )  # fmt: skip
    return out


@back.register_fake
def _(
    y: Tensor, r: Tensor, key: Tensor, v: Tensor, gate: Tensor,
    r_k: Tensor, weight: Tensor, bias: Tensor, eps: float,
) -> Tensor:  # fmt: skip
    return v.new_empty(v.shape)


@torch.library.custom_op("doxastic::triton_time_mix_back_backward", mutates_args=())
def back_backward(
    dout: Tensor, y: Tensor, r: Tensor, key: Tensor, v: Tensor, gate: Tensor,
    r_k: Tensor, weight: Tensor, bias: Tensor, eps: float,
) -> Tensors8:  # fmt: skip
    """Return the gradients of y, r, key, v, gate, r_k, weight and bias."""
    (B, T, C), (H, K) = v.shape, r_k.shape
    dy, dr, dkey, dv, dgate = (x.new_empty(x.shape) for x in (y, r, key, v, gate))
    if not v.numel():
        dr_k, dweight, dbias = (torch.zeros_like(x) for x in (r_k, weight, bias))
        return dy, dr, dkey, dv, dgate, dr_k, dweight, dbias
    dout, *inputs = (rows(x) for x in (dout, r, v, gate))
    tokens, block, programs, tiles = head_blocks(B * T, H, K)
    sums = torch.empty(programs // H, 3, C, dtype=torch.float32, device=v.device)
    with on_device(v):
        _backward[(programs,)](
            dout, y.contiguous(), inputs[0], key.contiguous(), *inputs[1:],
            r_k.contiguous(), weight.contiguous(), bias.contiguous(),
            dy, dr, dkey, dv, dgate, sums, *(x.stride(0) for x in (dout, *inputs)), eps,
            B * T, H, K, tiles, tokens, block, num_warps=4, **OPTIONS,
        )  # fmt: skip
    dr_k, dweight, dbias = (
        x.sum(0).to(like.dtype) for x, like in zip(sums.unbind(1), (r_k, weight, bias), strict=True)
    )
    return dy, dr, dkey, dv, dgate, dr_k.view(H, K), dweight, dbias


@back_backward.register_fake
def _(
    dout: Tensor, y: Tensor, r: Tensor, key: Tensor, v: Tensor, gate: Tensor,
    r_k: Tensor, weight: Tensor, bias: Tensor, eps: float,
) -> Tensors8:  # fmt: skip
    dy, dr, dkey, dv, dgate, dr_k, dweight, dbias = (
        x.new_empty(x.shape) for x in (y, r, key, v, gate, r_k, weight, bias)
    )
    return dy, dr, dkey, dv, dgate, dr_k, dweight, dbias


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    return *back_backward(dout, *ctx.saved_tensors, ctx.eps), None


back.register_autograd(_differentiate, setup_context=_save)
