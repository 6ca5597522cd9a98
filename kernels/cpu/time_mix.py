"""The fused time mix on the CPU: WKV-7 between a pass before and one after it, a row at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doxastic.kernels.cpu import wkv7
from doxastic.kernels.cpu.common import compiled, vectors
from doxastic.kernels.cpu.simd import LANES
from doxastic.kernels.cpu.threads import run
from doxastic.kernels.cpu.time_mix_passes import after, after_backward, before, before_backward

# Entries of one tensor that the passes touch before they are done with them: the backward pass
# goes over 27 tensors, a megabyte in all.
CACHED = 10_000
# Entries between two scratch arrays, five cache lines: at a power of two they would fall into the
# same few sets of the cache.
SPACING = 80


@compiled
def _piece(chain, last, T, H, K):
    """Return the row of a chain, its head, and the head to stop before: of that row and `last`.

    So few heads that all they touch stays cached.
    """
    row, h = chain // H, chain % H
    return row, h, min(h + max(1, CACHED // (T * K)), H, h + last - chain)


@compiled
def _address(scratch, index, row, T, H, K):
    """Return where an array `[B, T, H, K]` would begin whose row `row` is scratch `index`."""
    place = index * (T * H * K + SPACING) - row * (T * H * K)
    return np.int64(scratch.ctypes.data) + 4 * place


@compiled
def _given(scratch, row, first, last, T, H, keys, p_decay, p_k, p_rate, p_k_k, p_k_a):
    """Run the pass before WKV-7 into the first four scratch arrays; return where they are."""
    K = LANES * len(keys)
    w, key = (_address(scratch, 0, row, T, H, K), _address(scratch, 1, row, T, H, K))
    a, b = (_address(scratch, 2, row, T, H, K), _address(scratch, 3, row, T, H, K))
    before(row, first, last, T, H, keys, p_decay, p_k, p_rate, p_k_k, p_k_a, w, key, a, b)
    return w, key, a, b


@compiled
def _forward(
    first, last, T, H, keys, eps,
    p_r, p_decay, p_k, p_v, p_rate, p_gate, p_k_k, p_k_a, p_r_k, p_weight, p_bias,
    p_state, p_reset, p_y, p_u, p_stored, p_final, p_out,
):  # fmt: skip
    """Run all three passes over the chains `[first, last)`, a few heads of a row at a time."""
    K = LANES * len(keys)
    scratch = np.empty(4 * (T * H * K + SPACING), np.float32)
    chain = first
    while chain < last:
        row, h, end = _piece(chain, last, T, H, K)
        w, key, a, b = _given(
            scratch, row, h, end, T, H, keys, p_decay, p_k, p_rate, p_k_k, p_k_a
        )  # fmt: skip
        wkv7._forward(
            chain, chain + end - h, H, T, keys, keys,
            p_r, w, key, p_v, a, b, p_state, p_reset, p_y, p_u, p_stored, p_final,
        )  # fmt: skip
        after(
            row, h, end, T, H, keys, eps,
            p_y, p_r, key, p_v, p_gate, p_r_k, p_weight, p_bias, p_out,
        )  # fmt: skip
        chain += end - h


@compiled
def _backward(
    first, last, T, H, keys, eps,
    p_dout, p_dfinal,
    p_r, p_decay, p_k, p_v, p_rate, p_gate, p_k_k, p_k_a, p_r_k, p_weight, p_bias,
    p_reset, p_u, p_y, p_stored,
    p_dr, p_ddecay, p_dk, p_dv, p_drate, p_dgate, p_dstate,
    p_dr_k, p_dweight, p_dbias, p_dk_k, p_dk_a,
):  # fmt: skip
    """Run the passes backwards over the chains `[first, last)`; the first is run again before."""
    K = LANES * len(keys)
    scratch = np.empty(12 * (T * H * K + SPACING), np.float32)
    chain = first
    while chain < last:
        row, h, end = _piece(chain, last, T, H, K)
        w, key, a, b = _given(
            scratch, row, h, end, T, H, keys, p_decay, p_k, p_rate, p_k_k, p_k_a
        )  # fmt: skip
        dw, dkey = (_address(scratch, 4, row, T, H, K), _address(scratch, 5, row, T, H, K))
        da, db = (_address(scratch, 6, row, T, H, K), _address(scratch, 7, row, T, H, K))
        dy = _address(scratch, 8, row, T, H, K)
        dr_bonus = _address(scratch, 9, row, T, H, K)
        dkey_bonus = _address(scratch, 10, row, T, H, K)
        dv_bonus = _address(scratch, 11, row, T, H, K)
        after_backward(
            row, h, end, T, H, keys, eps,
            p_dout, p_y, p_r, key, p_v, p_gate, p_r_k, p_weight, p_bias,
            dy, dr_bonus, dkey_bonus, dv_bonus, p_dgate, p_dr_k, p_dweight, p_dbias,
        )  # fmt: skip
        wkv7._backward(
            chain, chain + end - h, H, T, keys, keys,
            dy, p_dfinal, p_r, w, key, p_v, a, b, p_reset, p_u, p_stored,
            p_dr, dw, dkey, p_dv, da, db, p_dstate,
        )  # fmt: skip
        before_backward(
            row, h, end, T, H, keys,
            dw, dkey, dkey_bonus, da, db, dr_bonus, dv_bonus,
            p_decay, p_k, p_rate, p_k_k, p_k_a,
            p_ddecay, p_dk, p_drate, p_dr, p_dv, p_dk_k, p_dk_a,
        )  # fmt: skip
        chain += end - h


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
    run(_forward, B * H, work, T, H, vectors(K), np.float32(eps), *tensors)
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
    run(_backward, B * H, work, T, H, vectors(K), np.float32(eps), *tensors)
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
