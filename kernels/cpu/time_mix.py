"""The fused time mix on the CPU: what lies before and after WKV-7 costs one pass each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doxastic.kernels.cpu import wkv7
from doxastic.kernels.cpu.common import ONE, ZERO, compiled
from doxastic.kernels.cpu.simd import (
    LANES,
    add,
    exp,
    floats,
    fma,
    load,
    mul,
    sigmoid,
    splat,
    store,
    sub,
    total,
)
from doxastic.kernels.cpu.threads import run

# log w = -e^(-1/2) sigmoid(decay)
SCALE = np.float32(-math.exp(-0.5))
# As torch.nn.functional.normalize.
SMALLEST_NORM = np.float32(1e-12)
# Entries of one tensor that the passes touch before they are done with them: the backward pass
# goes over 27 tensors, a megabyte in all.
CACHED = 10_000
# Entries between two scratch arrays, five cache lines: at a power of two they would fall into the
# same few sets of the cache.
SPACING = 80


@compiled
def _inverse_norm(k, k_k, o, c, K):
    """Return 1 / |k k_k| of the head that starts at k[o] and k_k[c]."""
    square = splat(ZERO)
    for i in range(0, K, LANES):
        x = mul(load(k, o + i), load(k_k, c + i))
        square = fma(x, x, square)
    return ONE / max(np.sqrt(total(square)), SMALLEST_NORM)


@compiled
def _before(row, first, last, T, H, K, p_decay, p_k, p_rate, p_k_k, p_k_a, p_w, p_key, p_a, p_b):
    """Write the decay, the written key, the removal and the replacement vector."""
    decay, k, rate, k_k, k_a = (
        floats(p_decay),
        floats(p_k),
        floats(p_rate),
        floats(p_k_k),
        floats(p_k_a),
    )
    w, key, a, b = (floats(p_w), floats(p_key), floats(p_a), floats(p_b))
    one = splat(ONE)
    for t in range(T):
        for h in range(first, last):
            o, c = ((row * T + t) * H + h) * K, h * K
            scale = splat(_inverse_norm(k, k_k, o, c, K))
            for i in range(0, K, LANES):
                k_i, alpha = load(k, o + i), sigmoid(load(rate, o + i))
                kk = mul(mul(k_i, load(k_k, c + i)), scale)
                store(w, o + i, exp(mul(splat(SCALE), sigmoid(load(decay, o + i)))))
                store(key, o + i, mul(k_i, fma(sub(alpha, one), load(k_a, c + i), one)))
                store(a, o + i, sub(splat(ZERO), kk))
                store(b, o + i, mul(kk, alpha))


@compiled
def _statistics(y, o, K, eps):
    """Return the mean and the inverse deviation of the head that starts at y[o]."""
    sum_ = splat(ZERO)
    for i in range(0, K, LANES):
        sum_ = add(sum_, load(y, o + i))
    mean = total(sum_) / np.float32(K)
    square = splat(ZERO)
    for i in range(0, K, LANES):
        x = sub(load(y, o + i), splat(mean))
        square = fma(x, x, square)
    return mean, ONE / np.sqrt(total(square) / np.float32(K) + eps)


@compiled
def _bonus(r, key, r_k, o, c, K):
    """Return r . (key r_k) of the head that starts at r[o] and r_k[c]."""
    sum_ = splat(ZERO)
    for i in range(0, K, LANES):
        sum_ = fma(mul(load(r, o + i), load(key, o + i)), load(r_k, c + i), sum_)
    return total(sum_)


@compiled
def _after(
    row, first, last, T, H, K, eps,
    p_y, p_r, p_key, p_v, p_gate, p_r_k, p_weight, p_bias, p_out,
):  # fmt: skip
    """Write gate (GroupNorm(y) + bonus v)."""
    y, r, key, v, gate = (floats(p_y), floats(p_r), floats(p_key), floats(p_v), floats(p_gate))
    r_k, weight, bias, out = (floats(p_r_k), floats(p_weight), floats(p_bias), floats(p_out))
    for t in range(T):
        for h in range(first, last):
            o, c = ((row * T + t) * H + h) * K, h * K
            mean, scale = _statistics(y, o, K, eps)
            bonus = splat(_bonus(r, key, r_k, o, c, K))
            for i in range(0, K, LANES):
                normal = mul(sub(load(y, o + i), splat(mean)), splat(scale))
                x = fma(normal, load(weight, c + i), load(bias, c + i))
                store(out, o + i, mul(fma(bonus, load(v, o + i), x), load(gate, o + i)))


@compiled
def _accumulate(array, index, value):
    store(array, index, add(load(array, index), value))


@compiled
def _after_backward(
    row, first, last, T, H, K, eps,
    p_dout, p_y, p_r, p_key, p_v, p_gate, p_r_k, p_weight, p_bias,
    p_dy, p_dr, p_dkey, p_dv, p_dgate, p_dr_k, p_dweight, p_dbias,
):  # fmt: skip
    """Write the gradients of `_after`; those of the parameters are sums per batch row."""
    dout, y, r, key, v = (floats(p_dout), floats(p_y), floats(p_r), floats(p_key), floats(p_v))
    gate, r_k, weight, bias, dy = (
        floats(p_gate),
        floats(p_r_k),
        floats(p_weight),
        floats(p_bias),
        floats(p_dy),
    )
    dr, dkey, dv, dgate, dr_k = (
        floats(p_dr),
        floats(p_dkey),
        floats(p_dv),
        floats(p_dgate),
        floats(p_dr_k),
    )
    dweight, dbias = (floats(p_dweight), floats(p_dbias))
    for t in range(T):
        for h in range(first, last):
            o, c = ((row * T + t) * H + h) * K, h * K
            # Where this batch row's sums of the head's parameters stand.
            s = row * H * K + c
            mean, scale = _statistics(y, o, K, eps)
            bonus = splat(_bonus(r, key, r_k, o, c, K))
            dbonus, dnormal_sum, dnormal_dot = splat(ZERO), splat(ZERO), splat(ZERO)
            for i in range(0, K, LANES):
                normal = mul(sub(load(y, o + i), splat(mean)), splat(scale))
                v_i, w_i = load(v, o + i), load(weight, c + i)
                x = fma(bonus, v_i, fma(normal, w_i, load(bias, c + i)))
                store(dgate, o + i, mul(load(dout, o + i), x))
                dx = mul(load(dout, o + i), load(gate, o + i))
                _accumulate(dweight, s + i, mul(dx, normal))
                _accumulate(dbias, s + i, dx)
                dbonus = fma(dx, v_i, dbonus)
                store(dv, o + i, mul(dx, bonus))
                dnormal_sum = fma(dx, w_i, dnormal_sum)
                dnormal_dot = fma(mul(dx, w_i), normal, dnormal_dot)
            center = splat(total(dnormal_sum) / np.float32(K))
            slope = splat(total(dnormal_dot) / np.float32(K))
            ds = splat(total(dbonus))
            for i in range(0, K, LANES):
                normal = mul(sub(load(y, o + i), splat(mean)), splat(scale))
                dnormal = mul(mul(load(dout, o + i), load(gate, o + i)), load(weight, c + i))
                store(dy, o + i, mul(splat(scale), sub(sub(dnormal, center), mul(normal, slope))))
                r_i, k_i, r_k_i = load(r, o + i), load(key, o + i), load(r_k, c + i)
                store(dr, o + i, mul(ds, mul(k_i, r_k_i)))
                store(dkey, o + i, mul(ds, mul(r_i, r_k_i)))
                _accumulate(dr_k, s + i, mul(ds, mul(r_i, k_i)))


@compiled
def _before_backward(
    row, first, last, T, H, K,
    p_dw, p_dkey, p_dkey_bonus, p_da, p_db, p_dr_bonus, p_dv_bonus,
    p_decay, p_k, p_rate, p_k_k, p_k_a,
    p_ddecay, p_dk, p_drate, p_dr, p_dv, p_dk_k, p_dk_a,
):  # fmt: skip
    """Write the gradients of `_before`, and add the bonus to those of r and v.

    Those of the parameters are sums per batch row.
    """
    dw, dkey, dkey_bonus, da, db = (
        floats(p_dw),
        floats(p_dkey),
        floats(p_dkey_bonus),
        floats(p_da),
        floats(p_db),
    )
    decay, k, rate, k_k, k_a = (
        floats(p_decay),
        floats(p_k),
        floats(p_rate),
        floats(p_k_k),
        floats(p_k_a),
    )
    ddecay, dk, drate, dk_k, dk_a = (
        floats(p_ddecay),
        floats(p_dk),
        floats(p_drate),
        floats(p_dk_k),
        floats(p_dk_a),
    )
    dr_bonus, dv_bonus, dr, dv = (
        floats(p_dr_bonus),
        floats(p_dv_bonus),
        floats(p_dr),
        floats(p_dv),
    )
    one = splat(ONE)
    for t in range(T):
        for h in range(first, last):
            o, c = ((row * T + t) * H + h) * K, h * K
            s = row * H * K + c
            scale = splat(_inverse_norm(k, k_k, o, c, K))
            dot = splat(ZERO)
            for i in range(0, K, LANES):
                kk = mul(mul(load(k, o + i), load(k_k, c + i)), scale)
                dkk = sub(mul(load(db, o + i), sigmoid(load(rate, o + i))), load(da, o + i))
                dot = fma(dkk, kk, dot)
            slope = splat(total(dot))
            for i in range(0, K, LANES):
                k_i, k_k_i, k_a_i = load(k, o + i), load(k_k, c + i), load(k_a, c + i)
                alpha = sigmoid(load(rate, o + i))
                kk = mul(mul(k_i, k_k_i), scale)
                dkk = sub(mul(load(db, o + i), alpha), load(da, o + i))
                dx = mul(scale, sub(dkk, mul(kk, slope)))
                dkey_i = add(load(dkey, o + i), load(dkey_bonus, o + i))
                slow = sub(alpha, one)
                store(dk, o + i, fma(dkey_i, fma(slow, k_a_i, one), mul(dx, k_k_i)))
                _accumulate(dk_k, s + i, mul(dx, k_i))
                _accumulate(dk_a, s + i, mul(mul(dkey_i, k_i), slow))
                dalpha = fma(load(db, o + i), kk, mul(mul(dkey_i, k_i), k_a_i))
                store(drate, o + i, mul(dalpha, mul(alpha, sub(one, alpha))))
                gate = sigmoid(load(decay, o + i))
                slope_w = mul(mul(splat(SCALE), gate), sub(one, gate))
                store(ddecay, o + i, mul(load(dw, o + i), slope_w))
                _accumulate(dr, o + i, load(dr_bonus, o + i))
                _accumulate(dv, o + i, load(dv_bonus, o + i))


@compiled
def _group(T, H, K):
    """Return over how many heads of a row to go at a time, so that all they touch stays cached."""
    return max(1, min(H, CACHED // (T * K)))


@compiled
def _address(scratch, index, row, T, H, K):
    """Return where an array `[B, T, H, K]` would begin whose row `row` is scratch `index`."""
    place = index * (T * H * K + SPACING) - row * (T * H * K)
    return np.int64(scratch.ctypes.data) + 4 * place


@compiled
def _forward(
    first, last, T, H, K, eps,
    p_r, p_decay, p_k, p_v, p_rate, p_gate, p_k_k, p_k_a, p_r_k, p_weight, p_bias,
    p_state, p_reset, p_y, p_u, p_stored, p_final, p_out,
):  # fmt: skip
    """Run all three passes over the chains `[first, last)`, a few heads of a row at a time."""
    scratch = np.empty(4 * (T * H * K + SPACING), np.float32)
    chain, group = first, _group(T, H, K)
    while chain < last:
        row, h = chain // H, chain % H
        end = min(h + group, H, h + last - chain)
        w, key = (_address(scratch, 0, row, T, H, K), _address(scratch, 1, row, T, H, K))
        a, b = (_address(scratch, 2, row, T, H, K), _address(scratch, 3, row, T, H, K))
        _before(row, h, end, T, H, K, p_decay, p_k, p_rate, p_k_k, p_k_a, w, key, a, b)
        chain += end - h
        wkv7._forward(
            chain - end + h, chain, H, T, K, K,
            p_r, w, key, p_v, a, b, p_state, p_reset, p_y, p_u, p_stored, p_final,
        )  # fmt: skip
        _after(
            row, h, end, T, H, K, eps,
            p_y, p_r, key, p_v, p_gate, p_r_k, p_weight, p_bias, p_out,
        )  # fmt: skip


@compiled
def _backward(
    first, last, T, H, K, eps,
    p_dout, p_dfinal,
    p_r, p_decay, p_k, p_v, p_rate, p_gate, p_k_k, p_k_a, p_r_k, p_weight, p_bias,
    p_reset, p_u, p_y, p_stored,
    p_dr, p_ddecay, p_dk, p_dv, p_drate, p_dgate, p_dstate,
    p_dr_k, p_dweight, p_dbias, p_dk_k, p_dk_a,
):  # fmt: skip
    """Run the passes backwards over the chains `[first, last)`; the first is run again before."""
    scratch = np.empty(12 * (T * H * K + SPACING), np.float32)
    chain, group = first, _group(T, H, K)
    while chain < last:
        row, h = chain // H, chain % H
        end = min(h + group, H, h + last - chain)
        w, key = (_address(scratch, 0, row, T, H, K), _address(scratch, 1, row, T, H, K))
        a, b = (_address(scratch, 2, row, T, H, K), _address(scratch, 3, row, T, H, K))
        dw, dkey = (_address(scratch, 4, row, T, H, K), _address(scratch, 5, row, T, H, K))
        da, db = (_address(scratch, 6, row, T, H, K), _address(scratch, 7, row, T, H, K))
        dy = _address(scratch, 8, row, T, H, K)
        dr_bonus = _address(scratch, 9, row, T, H, K)
        dkey_bonus = _address(scratch, 10, row, T, H, K)
        dv_bonus = _address(scratch, 11, row, T, H, K)
        _before(row, h, end, T, H, K, p_decay, p_k, p_rate, p_k_k, p_k_a, w, key, a, b)
        _after_backward(
            row, h, end, T, H, K, eps,
            p_dout, p_y, p_r, key, p_v, p_gate, p_r_k, p_weight, p_bias,
            dy, dr_bonus, dkey_bonus, dv_bonus, p_dgate, p_dr_k, p_dweight, p_dbias,
        )  # fmt: skip
        chain += end - h
        wkv7._backward(
            chain - end + h, chain, H, T, K, K,
            dy, p_dfinal, p_r, w, key, p_v, a, b, p_reset, p_u, p_stored,
            p_dr, dw, dkey, p_dv, da, db, p_dstate,
        )  # fmt: skip
        _before_backward(
            row, h, end, T, H, K,
            dw, dkey, dkey_bonus, da, db, dr_bonus, dv_bonus,
            p_decay, p_k, p_rate, p_k_k, p_k_a,
            p_ddecay, p_dk, p_drate, p_dr, p_dv, p_dk_k, p_dk_a,
        )  # fmt: skip


def forward(
    r: Tensor, decay: Tensor, k: Tensor, v: Tensor, rate: Tensor, gate: Tensor,
    k_k: Tensor, k_a: Tensor, r_k: Tensor, weight: Tensor, bias: Tensor, eps: float,
    state: Tensor, reset: Tensor,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:  # fmt: skip
    """Return the output, the final state and what `backward` needs; all contiguous."""
    (B, T), (H, K) = reset.shape, r_k.shape
    u, y, out = (torch.empty_like(r) for _ in range(3))
    stored, final = r.new_empty(B, -(-T // wkv7.CHUNK), H, K, K), torch.empty_like(state)
    given = (r, decay, k, v, rate, gate, k_k, k_a, r_k, weight, bias)
    tensors = (*given, state, reset, y, u, stored, final, out)
    work = 5 * r.numel() * K + 18 * r.numel()
    run(_forward, B * H, work, T, H, K, np.float32(eps), *tensors)
    return out, final, (*given, reset, u, y, stored)


def backward(
    dout: Tensor, dfinal: Tensor, eps: float, kept: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return the gradients of what `forward` takes, in its order, but eps and reset."""
    r, r_k, reset = kept[0], kept[8], kept[11]
    dout, dfinal = dout.contiguous(), dfinal.contiguous()
    (B, T), (H, K) = reset.shape, r_k.shape
    inputs = tuple(torch.empty_like(r) for _ in range(6))
    sums, dstate = r.new_zeros(5, B, H * K), torch.empty_like(dfinal)
    tensors = (dout, dfinal, *kept, *inputs, dstate, *sums.unbind(0))
    work = 13 * r.numel() * K + 57 * r.numel()
    run(_backward, B * H, work, T, H, K, np.float32(eps), *tensors)
    dr_k, dweight, dbias, dk_k, dk_a = sums.sum(1).unbind(0)
    return *inputs, dk_k, dk_a, dr_k.view(H, K), dweight, dbias, dstate


class FusedTimeMix(torch.autograd.Function):
    """`time_mix` in float32 on the CPU, for heads of whole vectors."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        """Return the output and the final state; `args` are those of `forward` above."""
        given: list[Any] = [x.contiguous() if isinstance(x, Tensor) else x for x in args]
        out, final, kept = forward(*given)
        ctx.save_for_backward(*kept)
        ctx.eps = args[11]
        return out, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of all tensors but `reset`."""
        *gradients, dstate = backward(dout, dfinal, ctx.eps, ctx.saved_tensors)
        return *gradients, None, dstate, None
