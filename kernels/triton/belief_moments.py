"""The belief of decayed moments and its features on the GPU: one pass forward, one backward."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from doxastic.kernels.triton.common import OPTIONS, on_device
from doxastic.kernels.triton.moments import BLOCK, STAGES, WARPS, advance, retreat
from doxastic.kernels.triton.rows import flags, rows

Tensors3 = tuple[Tensor, Tensor, Tensor]

# log-decay = -e^(-1/2) sigmoid(omega), and log-weights within these limits, as in
# `doxastic.kernels.belief_moments`.
SCALE = tl.constexpr(-0.6065306597126334)
LIMIT = tl.constexpr(8.0)


@triton.jit
def _weight(kappa):
    """Return e^kappa, kappa clamped to the limits; NaN stays NaN."""
    kappa = tl.where(kappa > LIMIT, LIMIT, kappa)
    return tl.exp(tl.where(kappa < -LIMIT, -LIMIT, kappa))


@triton.jit(do_not_specialize=["T", "chains"])
def _forward(
    p_raw, p_prior, p_state, p_reset, p_features, p_moments, p_final, s_raw, s_state,
    T, chains, M, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write the features, and the evidence, mean and spread of every step for the backward."""
    chain = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = chain < chains
    b, m = chain // M, chain % M
    prior = tl.load(p_prior + m, mask, 1.0).to(tl.float32)
    n = tl.load(p_state + b * s_state + m, mask, 0.0)
    mean = tl.load(p_state + b * s_state + M + m, mask, 0.0)
    spread = tl.load(p_state + b * s_state + 2 * M + m, mask, 0.0)
    for t in tl.range(0, T, num_stages=STAGES):
        row = b * T + t
        reset = tl.load(p_reset + row, mask, 0) != 0
        o = row * s_raw + m
        value = tl.load(p_raw + o, mask, 0.0).to(tl.float32)
        weight = _weight(tl.load(p_raw + o + M, mask, 0.0).to(tl.float32))
        gate = tl.sigmoid(tl.load(p_raw + o + 2 * M, mask, 0.0).to(tl.float32))
        n, mean, spread = advance(n, mean, spread, value, weight, tl.exp(gate * SCALE), reset)
        total = prior + n
        variance = (prior + n * spread) / (total * total)
        o = row * 4 * M + m
        tl.store(p_features + o, mean, mask)
        tl.store(p_features + o + M, 0.5 * tl.log(variance), mask)
        tl.store(p_features + o + 2 * M, 0.5 * tl.log(1.0 + n), mask)
        tl.store(p_features + o + 3 * M, mean / tl.sqrt(mean * mean + variance), mask)
        o = row * 3 * M + m
        tl.store(p_moments + o, n, mask)
        tl.store(p_moments + o + M, mean, mask)
        tl.store(p_moments + o + 2 * M, spread, mask)
    o = b * 3 * M + m
    tl.store(p_final + o, n, mask)
    tl.store(p_final + o + M, mean, mask)
    tl.store(p_final + o + 2 * M, spread, mask)


@triton.jit(do_not_specialize=["T", "chains"])
def _backward(
    p_dfeatures, p_dfinal, p_raw, p_prior, p_state, p_reset, p_moments, p_draw, p_dprior, p_dstate,
    s_dfeatures, s_raw, s_state, T, chains, M, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write the gradients; that of the prior is a sum per row of the batch."""
    chain = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = chain < chains
    b, m = chain // M, chain % M
    o_final = b * 3 * M + m
    prior = tl.load(p_prior + m, mask, 1.0).to(tl.float32)
    first_n = tl.load(p_state + b * s_state + m, mask, 0.0)
    first_mean = tl.load(p_state + b * s_state + M + m, mask, 0.0)
    first_spread = tl.load(p_state + b * s_state + 2 * M + m, mask, 0.0)
    dn = tl.load(p_dfinal + o_final, mask, 0.0)
    dmean = tl.load(p_dfinal + o_final + M, mask, 0.0)
    dspread = tl.load(p_dfinal + o_final + 2 * M, mask, 0.0)
    dprior = tl.zeros((BLOCK,), tl.float32)
    o = (b * T + T - 1) * 3 * M + m
    n = tl.load(p_moments + o, mask, 1.0)
    mean = tl.load(p_moments + o + M, mask, 0.0)
    spread = tl.load(p_moments + o + 2 * M, mask, 1.0)
    for i in tl.range(0, T, num_stages=STAGES):
        row = b * T + T - 1 - i
        # The features, see `_forward`.
        o = row * s_dfeatures + m
        total = prior + n
        variance = (prior + n * spread) / (total * total)
        square = mean * mean + variance
        cube = tl.load(p_dfeatures + o + 3 * M, mask, 0.0) / (square * tl.sqrt(square))
        dmean += tl.load(p_dfeatures + o, mask, 0.0) + cube * variance
        dlog = tl.load(p_dfeatures + o + M, mask, 0.0)
        dvariance = 0.5 * (dlog / variance - cube * mean)
        dsum = dvariance / (total * total)
        dtotal = 2.0 * dvariance * variance / total
        dspread += dsum * n
        dprior += dsum - dtotal
        dlog = 0.5 * tl.load(p_dfeatures + o + 2 * M, mask, 0.0)
        dn += dlog / (1.0 + n) + dsum * spread - dtotal
        # The moments, from those before this step.
        later, o = row > b * T, (row - 1) * 3 * M + m
        n_0 = tl.where(later, tl.load(p_moments + o, mask & later, 0.0), first_n)
        mean_0 = tl.where(later, tl.load(p_moments + o + M, mask & later, 0.0), first_mean)
        spread_0 = tl.where(later, tl.load(p_moments + o + 2 * M, mask & later, 0.0), first_spread)
        reset = tl.load(p_reset + row, mask, 0) != 0
        o = row * s_raw + m
        value = tl.load(p_raw + o, mask, 0.0).to(tl.float32)
        kappa = tl.load(p_raw + o + M, mask, 0.0).to(tl.float32)
        gate = tl.sigmoid(tl.load(p_raw + o + 2 * M, mask, 0.0).to(tl.float32))
        dvalue, dkappa, domega, dn, dmean, dspread = retreat(
            dn, dmean, dspread, n, n_0, mean_0, spread_0, value, _weight(kappa),
            tl.exp(gate * SCALE), reset,
        )  # fmt: skip
        dkappa = tl.where(tl.abs(kappa) <= LIMIT, dkappa, 0.0)
        domega *= gate * (1.0 - gate) * SCALE
        o = row * 3 * M + m
        tl.store(p_draw + o, dvalue.to(p_draw.dtype.element_ty), mask)
        tl.store(p_draw + o + M, dkappa.to(p_draw.dtype.element_ty), mask)
        tl.store(p_draw + o + 2 * M, domega.to(p_draw.dtype.element_ty), mask)
        n, mean, spread = n_0, mean_0, spread_0
    tl.store(p_dprior + chain, dprior, mask)
    tl.store(p_dstate + o_final, dn, mask)
    tl.store(p_dstate + o_final + M, dmean, mask)
    tl.store(p_dstate + o_final + 2 * M, dspread, mask)


def belief_moments_features(
    raw: Tensor, prior: Tensor, state: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the features `[B, T, 4 M]` and the final state, float32, differentiable once.

    Arguments as of `doxastic.kernels.belief_moments.belief_moments_features`; raw and prior may be
    float32, bfloat16 or float16, the state is float32.
    """
    features, final, _ = belief_forward(raw, prior, state, reset)
    return features, final


@torch.library.custom_op("doxastic::triton_belief_forward", mutates_args=())
def belief_forward(raw: Tensor, prior: Tensor, state: Tensor, reset: Tensor) -> Tensors3:
    """Return features, final state, and the moments of every step `[B, T, 3 M]`."""
    (B, T, _), M = raw.shape, prior.numel()
    features, final, moments = (
        torch.empty(shape, dtype=torch.float32, device=raw.device)
        for shape in ((B, T, 4 * M), (B, 3, M), (B, T, 3 * M))
    )
    if final.numel():
        given, state = rows(raw), _row_major(state)
        with on_device(raw):
            _forward[(triton.cdiv(B * M, BLOCK),)](
                given, prior.contiguous(), state, flags(reset), features, moments, final,
                given.stride(0), state.stride(0), T, B * M, M, BLOCK, STAGES,
                num_warps=WARPS, **OPTIONS,
            )  # fmt: skip
    return features, final, moments


@belief_forward.register_fake
def _(raw: Tensor, prior: Tensor, state: Tensor, reset: Tensor) -> Tensors3:
    (B, T, _), M = raw.shape, prior.shape[0]
    features = raw.new_empty((B, T, 4 * M), dtype=torch.float32)
    return features, state.new_empty(state.shape), raw.new_empty(raw.shape, dtype=torch.float32)


@torch.library.custom_op("doxastic::triton_belief_backward", mutates_args=())
def belief_backward(
    dfeatures: Tensor, dfinal: Tensor,
    raw: Tensor, prior: Tensor, state: Tensor, reset: Tensor, moments: Tensor,
) -> Tensors3:  # fmt: skip
    """Return the gradients of raw, prior and state."""
    (B, T, _), M = raw.shape, prior.numel()
    draw, dstate = raw.new_empty(B, T, 3 * M), state.new_empty(B, 3, M)
    dprior = torch.empty(B, M, dtype=torch.float32, device=raw.device)
    if dstate.numel():
        given, dfeatures, state = rows(raw), rows(dfeatures), _row_major(state)
        with on_device(raw):
            _backward[(triton.cdiv(B * M, BLOCK),)](
                dfeatures, dfinal.contiguous(), given, prior.contiguous(), state, flags(reset),
                moments, draw, dprior, dstate, dfeatures.stride(0), given.stride(0),
                state.stride(0), T, B * M, M, BLOCK, STAGES, num_warps=WARPS, **OPTIONS,
            )  # fmt: skip
    return draw, dprior.sum(0).to(prior.dtype), dstate


@belief_backward.register_fake
def _(
    dfeatures: Tensor, dfinal: Tensor,
    raw: Tensor, prior: Tensor, state: Tensor, reset: Tensor, moments: Tensor,
) -> Tensors3:  # fmt: skip
    draw, dprior, dstate = (x.new_empty(x.shape) for x in (raw, prior, state))
    return draw, dprior, dstate


def _row_major(state: Tensor) -> Tensor:
    """Return the state `[B, 3, M]` with every row contiguous: a slice of a wider one as it is."""
    M = state.shape[2]
    return state if state.stride()[1:] == (M, 1) else state.contiguous()


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensors3) -> None:
    ctx.save_for_backward(*inputs, output[2])
    # Else autograd would fill a zero gradient for the moments at every call.
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dfeatures: Tensor | None, dfinal: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    # Read once: under gradient checkpointing they may not be unpacked a second time.
    saved = ctx.saved_tensors
    raw, prior, state, _, _ = saved
    if dfeatures is None:
        dfeatures = state.new_zeros(*raw.shape[:2], 4 * prior.shape[0])
    if dfinal is None:
        dfinal = torch.zeros_like(state)
    return *belief_backward(dfeatures, dfinal, *saved), None


belief_forward.register_autograd(_differentiate, setup_context=_save)
