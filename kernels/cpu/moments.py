"""Decayed weighted moments on the CPU, compiled by numba.

Raw functions on contiguous float32 tensors; `kernels/moments.py` holds the public one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from doxastic.kernels.cpu.common import TWO, ZERO, compiled, padded, whole
from doxastic.kernels.cpu.simd import (
    LANES,
    add,
    div,
    exp,
    flags,
    floats,
    fma,
    inside,
    load,
    mul,
    splat,
    store,
    sub,
)
from doxastic.kernels.cpu.threads import run

# `exp` stays at e^-87 below it, and never forgets altogether.
LOWEST = np.float32(87.0)


@compiled
def _decay(omega):
    """Return e^omega of log-decays, at most 0; 0 below -87, as float32 has it soon after."""
    return mul(exp(omega), inside(omega, splat(LOWEST)))


@compiled
def _moments(
    first,
    last,
    T,
    M,
    p_value,
    p_kappa,
    p_omega,
    p_state,
    p_reset,
    p_mean,
    p_spread_,
    p_evidence,
    p_final,
):
    value, kappa, omega, state, mean, spread_ = (
        floats(p_value),
        floats(p_kappa),
        floats(p_omega),
        floats(p_state),
        floats(p_mean),
        floats(p_spread_),
    )
    evidence, final = floats(p_evidence), floats(p_final)
    reset = flags(p_reset)
    for row in range(first, last):
        for m in range(0, M, LANES):
            c = row * 3 * M + m
            n, mu, var = load(state, c), load(state, c + M), load(state, c + 2 * M)
            for t in range(T):
                o = (row * T + t) * M + m
                if reset[row * T + t]:
                    n, mu, var = splat(ZERO), splat(ZERO), splat(ZERO)
                weight = exp(load(kappa, o))
                kept = mul(n, _decay(load(omega, o)))
                n = add(kept, weight)
                # Not 1 - share, which has no digits left where one step outweighs the past.
                share, rest = div(weight, n), div(kept, n)
                delta = sub(load(value, o), mu)
                mu = fma(share, delta, mu)
                var = mul(rest, fma(share, mul(delta, delta), var))
                store(mean, o, mu)
                store(spread_, o, var)
                store(evidence, o, n)
            store(final, c, n)
            store(final, c + M, mu)
            store(final, c + 2 * M, var)


@compiled
def _moments_backward(
    first, last, T, M,
    p_dmean, p_dspread, p_devidence, p_dfinal,
    p_value, p_kappa, p_omega, p_state, p_reset, p_mean, p_spread_, p_evidence,
    p_dvalue, p_dkappa, p_domega, p_dstate,
):  # fmt: skip
    dmean, dspread, devidence, dfinal, value, kappa = (
        floats(p_dmean),
        floats(p_dspread),
        floats(p_devidence),
        floats(p_dfinal),
        floats(p_value),
        floats(p_kappa),
    )
    omega, state, mean, spread_, evidence, dvalue = (
        floats(p_omega),
        floats(p_state),
        floats(p_mean),
        floats(p_spread_),
        floats(p_evidence),
        floats(p_dvalue),
    )
    dkappa, domega, dstate = floats(p_dkappa), floats(p_domega), floats(p_dstate)
    reset = flags(p_reset)
    for row in range(first, last):
        for m in range(0, M, LANES):
            c = row * 3 * M + m
            dn, dmu, dvar = load(dfinal, c), load(dfinal, c + M), load(dfinal, c + 2 * M)
            for t in range(T - 1, -1, -1):
                o = (row * T + t) * M + m
                if reset[row * T + t]:
                    n, mu, var = splat(ZERO), splat(ZERO), splat(ZERO)
                elif t > 0:
                    n, mu, var = load(evidence, o - M), load(mean, o - M), load(spread_, o - M)
                else:
                    n, mu, var = load(state, c), load(state, c + M), load(state, c + 2 * M)
                dmu = add(dmu, load(dmean, o))
                dvar = add(dvar, load(dspread, o))
                dn = add(dn, load(devidence, o))
                decay, weight = _decay(load(omega, o)), exp(load(kappa, o))
                share = div(weight, load(evidence, o))
                rest = div(mul(n, decay), load(evidence, o))
                delta = sub(load(value, o), mu)
                square = mul(delta, delta)
                # spread_t = rest (var + share delta^2);  mean_t = mu + share delta
                dshare = fma(dmu, delta, mul(dvar, sub(mul(rest, square), fma(share, square, var))))
                ddelta = mul(share, fma(mul(dvar, rest), mul(splat(TWO), delta), dmu))
                # share = weight / evidence;  evidence = n decay + weight. With 1 - share = rest the
                # gradient of kappa is a product, where a difference would cancel.
                dweight = div(dshare, load(evidence, o))
                store(dvalue, o, ddelta)
                store(dkappa, o, mul(fma(dweight, rest, dn), weight))
                dn = sub(dn, mul(dweight, share))
                store(domega, o, mul(dn, mul(n, decay)))
                dmu, dvar, dn = sub(dmu, ddelta), mul(dvar, rest), mul(dn, decay)
                if reset[row * T + t]:
                    dn, dmu, dvar = splat(ZERO), splat(ZERO), splat(ZERO)
            store(dstate, c, dn)
            store(dstate, c + M, dmu)
            store(dstate, c + 2 * M, dvar)


def moments_forward(
    value: Tensor, log_weight: Tensor, log_decay: Tensor, state: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, spread and evidence `[B, T, M]` and the final state `[B, 3, M]`.

    Args:
        value: `[B, T, M]`, float32 contiguous, like log_weight and log_decay.
        log_weight: Log of each value's evidence.
        log_decay: At most 0; applied to what came before the value.
        state: `[B, 3, M]`: evidence, mean, spread.
        reset: `[B, T]` bool.
    """
    B, T, M = value.shape
    width = whole(M)
    value, kappa, omega, state = (padded(x, width) for x in (value, log_weight, log_decay, state))
    mean, spread_, evidence = (torch.empty_like(value) for _ in range(3))
    final = torch.empty_like(state)
    tensors = (value, kappa, omega, state, reset, mean, spread_, evidence, final)
    run(_moments, B, 20 * value.numel(), T, width, *tensors)
    mean, spread_, evidence, final = (
        x[..., :M].contiguous() for x in (mean, spread_, evidence, final)
    )
    return mean, spread_, evidence, final


def moments_backward(
    dmean: Tensor, dspread: Tensor, devidence: Tensor, dfinal: Tensor,
    value: Tensor, log_weight: Tensor, log_decay: Tensor, state: Tensor, reset: Tensor,
    mean: Tensor, spread_: Tensor, evidence: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of value, log_weight, log_decay and the initial state.

    Args:
        dmean: Gradient of mean, `[B, T, M]`; likewise dspread and devidence.
        dspread: Gradient of spread.
        devidence: Gradient of evidence.
        dfinal: Gradient of the final state, `[B, 3, M]`.
        value: As given to `moments_forward`, like log_weight, log_decay, state and reset.
        log_weight: Log of each value's evidence.
        log_decay: Log-decay.
        state: Initial state.
        reset: `[B, T]` bool.
        mean: As returned by `moments_forward`, like spread_ and evidence.
        spread_: Weighted variance.
        evidence: Sum of weights.
    """
    B, T, M = value.shape
    width = whole(M)
    inputs = [
        padded(x, width)
        for x in (dmean, dspread, devidence, dfinal, value, log_weight, log_decay, state)
    ]
    outputs = [padded(x, width) for x in (mean, spread_)]
    if width != M:
        # The padding carried the weight e^0, so its evidence is not zero.
        evidence = F.pad(evidence, (0, width - M), value=1.0)
    dvalue, dkappa, domega = (torch.empty_like(inputs[0]) for _ in range(3))
    dstate = torch.empty_like(inputs[3])
    tensors = (*inputs, reset, *outputs, evidence, dvalue, dkappa, domega, dstate)
    run(_moments_backward, B, 40 * dvalue.numel(), T, width, *tensors)
    dvalue, dkappa, domega, dstate = (
        x[..., :M].contiguous() for x in (dvalue, dkappa, domega, dstate)
    )
    return dvalue, dkappa, domega, dstate
