"""The fused belief of decayed moments on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doxastic.kernels.belief_moments import DECAY_SCALE, LOG_WEIGHT_LIMIT
from doxastic.kernels.cpu.common import ONE, TWO, ZERO, compiled
from doxastic.kernels.cpu.simd import (
    LANES,
    add,
    clamp,
    div,
    exp,
    flags,
    floats,
    fma,
    inside,
    load,
    log,
    mul,
    sigmoid,
    splat,
    sqrt,
    store,
    sub,
)
from doxastic.kernels.cpu.threads import run

SCALE = np.float32(-DECAY_SCALE)
LIMIT = np.float32(LOG_WEIGHT_LIMIT)
HALF = np.float32(0.5)


@compiled
def _forward(
    first, last, T, M, S, p_raw, p_prior, p_state, p_reset, p_features, p_moments, p_final
):
    """Write the features and, step by step, the moments: evidence, mean and spread.

    Rows of `state` and of `final` begin S apart.
    """
    raw, prior, state, features, moments, final = (
        floats(p_raw),
        floats(p_prior),
        floats(p_state),
        floats(p_features),
        floats(p_moments),
        floats(p_final),
    )
    reset = flags(p_reset)
    one = splat(ONE)
    for row in range(first, last):
        for m in range(0, M, LANES):
            c = row * S + m
            n, mean, spread = load(state, c), load(state, c + M), load(state, c + 2 * M)
            for t in range(T):
                o, p = (row * T + t) * 3 * M + m, (row * T + t) * 4 * M + m
                if reset[row * T + t]:
                    n, mean, spread = splat(ZERO), splat(ZERO), splat(ZERO)
                weight = exp(clamp(load(raw, o + M), splat(LIMIT)))
                decay = exp(mul(splat(SCALE), sigmoid(load(raw, o + 2 * M))))
                kept = mul(n, decay)
                n = add(kept, weight)
                share, rest = div(weight, n), div(kept, n)
                delta = sub(load(raw, o), mean)
                mean = fma(share, delta, mean)
                spread = mul(rest, fma(share, mul(delta, delta), spread))
                store(moments, o, n)
                store(moments, o + M, mean)
                store(moments, o + 2 * M, spread)
                total = add(load(prior, m), n)
                variance = div(fma(n, spread, load(prior, m)), mul(total, total))
                store(features, p, mean)
                store(features, p + M, mul(splat(HALF), log(variance)))
                store(features, p + 2 * M, mul(splat(HALF), log(add(one, n))))
                store(features, p + 3 * M, div(mean, sqrt(fma(mean, mean, variance))))
            store(final, c, n)
            store(final, c + M, mean)
            store(final, c + 2 * M, spread)


@compiled
def _backward(
    first,
    last,
    T,
    M,
    p_dfeatures,
    p_dfinal,
    p_raw,
    p_prior,
    p_state,
    p_reset,
    p_moments,
    p_draw,
    p_dprior,
    p_dstate,
):
    """Write the gradients; `dprior` `[B, M]` is summed after."""
    dfeatures, dfinal, raw, prior, state, moments = (
        floats(p_dfeatures),
        floats(p_dfinal),
        floats(p_raw),
        floats(p_prior),
        floats(p_state),
        floats(p_moments),
    )
    draw, dprior, dstate = floats(p_draw), floats(p_dprior), floats(p_dstate)
    reset = flags(p_reset)
    one = splat(ONE)
    for row in range(first, last):
        for m in range(0, M, LANES):
            c = row * 3 * M + m
            dn, dmean, dspread = load(dfinal, c), load(dfinal, c + M), load(dfinal, c + 2 * M)
            dprior_m = splat(ZERO)
            for t in range(T - 1, -1, -1):
                o, p = (row * T + t) * 3 * M + m, (row * T + t) * 4 * M + m
                n, mean, spread = load(moments, o), load(moments, o + M), load(moments, o + 2 * M)
                # Mean, log(variance) / 2, log(1 + n) / 2 and mean / sqrt(mean^2 + variance),
                # with variance = (prior + n spread) / total^2 and total = prior + n.
                total = add(load(prior, m), n)
                variance = div(fma(n, spread, load(prior, m)), mul(total, total))
                square = fma(mean, mean, variance)
                cube = div(load(dfeatures, p + 3 * M), mul(square, sqrt(square)))
                dmean = add(dmean, fma(cube, variance, load(dfeatures, p)))
                dvariance = div(load(dfeatures, p + M), variance)
                dvariance = mul(splat(HALF), sub(dvariance, mul(cube, mean)))
                dsum = div(dvariance, mul(total, total))
                dtotal = mul(splat(TWO), div(mul(dvariance, variance), total))
                dspread = fma(dsum, n, dspread)
                dprior_m = add(dprior_m, sub(dsum, dtotal))
                dlog = div(mul(splat(HALF), load(dfeatures, p + 2 * M)), add(one, n))
                dn = add(dn, add(dlog, sub(mul(dsum, spread), dtotal)))
                # The moments, from those before this step.
                if reset[row * T + t]:
                    n_0, mean_0, spread_0 = splat(ZERO), splat(ZERO), splat(ZERO)
                elif t > 0:
                    q = o - 3 * M
                    n_0, mean_0 = load(moments, q), load(moments, q + M)
                    spread_0 = load(moments, q + 2 * M)
                else:
                    n_0, mean_0 = load(state, c), load(state, c + M)
                    spread_0 = load(state, c + 2 * M)
                kappa, gate = load(raw, o + M), sigmoid(load(raw, o + 2 * M))
                weight, decay = exp(clamp(kappa, splat(LIMIT))), exp(mul(splat(SCALE), gate))
                share, rest = div(weight, n), div(mul(n_0, decay), n)
                delta = sub(load(raw, o), mean_0)
                square = mul(delta, delta)
                change = sub(mul(rest, square), fma(share, square, spread_0))
                dshare = fma(dmean, delta, mul(dspread, change))
                dvalue = mul(share, fma(mul(dspread, rest), mul(splat(TWO), delta), dmean))
                dweight = div(dshare, n)
                # Not dweight - dweight share, which cancels.
                dlog = mul(fma(dweight, rest, dn), weight)
                dn = sub(dn, mul(dweight, share))
                slope = mul(splat(SCALE), mul(gate, sub(one, gate)))
                store(draw, o, dvalue)
                store(draw, o + M, mul(dlog, inside(kappa, splat(LIMIT))))
                store(draw, o + 2 * M, mul(mul(dn, mul(n_0, decay)), slope))
                dmean, dspread, dn = sub(dmean, dvalue), mul(dspread, rest), mul(dn, decay)
                if reset[row * T + t]:
                    dn, dmean, dspread = splat(ZERO), splat(ZERO), splat(ZERO)
            store(dstate, c, dn)
            store(dstate, c + M, dmean)
            store(dstate, c + 2 * M, dspread)
            store(dprior, row * M + m, dprior_m)


class FusedBeliefMoments(torch.autograd.Function):
    """`belief_moments_features` in float32 on the CPU, for channels of whole vectors."""

    @staticmethod
    def forward(
        ctx: Any, raw: Tensor, prior: Tensor, state: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the features and the final state; keep what the backward needs."""
        raw, prior, state, reset = (x.contiguous() for x in (raw, prior, state, reset))
        (B, T, _), M = raw.shape, prior.shape[0]
        features, moments = raw.new_empty(B, T, 4 * M), torch.empty_like(raw)
        final = torch.empty_like(state)
        tensors = (raw, prior, state, reset, features, moments, final)
        run(_forward, B, 30 * raw.numel(), T, M, 3 * M, *tensors)
        ctx.save_for_backward(raw, prior, state, reset, moments)
        return features, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dfeatures: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of raw, prior and state."""
        raw, prior, state, reset, moments = ctx.saved_tensors
        (B, T, _), M = raw.shape, prior.shape[0]
        draw, dprior, dstate = torch.empty_like(raw), raw.new_empty(B, M), torch.empty_like(state)
        tensors = (
            dfeatures.contiguous(), dfinal.contiguous(), raw, prior, state, reset, moments,
            draw, dprior, dstate,
        )  # fmt: skip
        run(_backward, B, 60 * raw.numel(), T, M, *tensors)
        return draw, dprior.sum(0), dstate, None


def step(raw: Tensor, prior: Tensor, state: Tensor, reset: Tensor, new: Tensor) -> Tensor:
    """Return the features `[B, 1, 4 M]` of one step and write the moments after it to `new`.

    Args:
        raw: `[B, 1, 3 M]`, contiguous like prior and reset.
        prior: `[M]`.
        state: `[B, 3 M]`, a slice of a wider state with contiguous rows.
        reset: `[B, 1]` bool.
        new: `[B, 3 M]`, a slice like `state`, with rows as far apart.
    """
    B, M = raw.shape[0], prior.shape[0]
    features, moments = raw.new_empty(B, 1, 4 * M), torch.empty_like(raw)
    tensors = (raw, prior, state, reset, features, moments, new)
    run(_forward, B, 30 * raw.numel(), 1, M, state.stride(0), *tensors)
    return features
