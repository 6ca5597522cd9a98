"""Decayed weighted moments on the GPU: one pass forward, one backward.

A chain is one channel of one batch row. A program walks `BLOCK` chains through time with their
moments in registers, so that no intermediate of the recurrence reaches memory.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from doxastic.kernels.triton.common import OPTIONS, check_runnable, on_device
from doxastic.kernels.triton.rows import check_dtypes, flags, rows

Tensors4 = tuple[Tensor, Tensor, Tensor, Tensor]

# One warp a program: chains are few when acting or learning from a few environments, and every
# program more keeps another load in flight.
BLOCK, WARPS, STAGES = 32, 1, 4


# Where nothing was ever seen, what is divided by is the smallest normal number.
TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def advance(n, mean, spread, value, weight, decay, reset):
    """Return evidence, mean and spread after one value joined; a reset clears them before."""
    kept = tl.where(reset, 0.0, n) * decay
    mean, spread = tl.where(reset, 0.0, mean), tl.where(reset, 0.0, spread)
    n = kept + weight
    divisor = tl.maximum(n, TINY)
    # Not 1 - share, which has no digits left where one step outweighs the past.
    share, rest = weight / divisor, kept / divisor
    delta = value - mean
    return n, mean + share * delta, rest * (spread + share * delta * delta)


@triton.jit
def retreat(dn, dmean, dspread, n, n_0, mean_0, spread_0, value, weight, decay, reset):
    """Return the gradients of one step, `advance`, from those of the moments after it.

    They are those of the value, the log-weight and the log-decay, then those of the evidence, mean
    and spread before the step, which are zero if it was a reset. `n` is the evidence after the
    step; `n_0`, `mean_0` and `spread_0` are what was before it, not yet cleared.
    """
    kept = tl.where(reset, 0.0, n_0) * decay
    mean_0, spread_0 = tl.where(reset, 0.0, mean_0), tl.where(reset, 0.0, spread_0)
    divisor = tl.maximum(n, TINY)
    share, rest = weight / divisor, kept / divisor
    delta = value - mean_0
    # spread_t = rest (spread + share delta^2) and mean_t = mean + share delta,
    # with rest = 1 - share, share = weight / n and n = kept + weight.
    change = rest * delta * delta - (spread_0 + share * delta * delta)
    dvalue = share * (dmean + 2.0 * dspread * rest * delta)
    dweight = (dmean * delta + dspread * change) / divisor
    # Not dweight - dweight * share, which cancels.
    dkappa = (dn + dweight * rest) * weight
    dn -= dweight * share
    domega = dn * kept
    dn, dmean = tl.where(reset, 0.0, dn * decay), tl.where(reset, 0.0, dmean - dvalue)
    return dvalue, dkappa, domega, dn, dmean, tl.where(reset, 0.0, dspread * rest)


@triton.jit(do_not_specialize=["T", "chains"])
def _forward(
    p_value, p_kappa, p_omega, p_state, p_reset, p_mean, p_spread, p_evidence, p_final,
    s_value, s_kappa, s_omega, T, chains, M,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    chain = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = chain < chains
    b, m = chain // M, chain % M
    o_state = b * 3 * M + m
    n = tl.load(p_state + o_state, mask, 0.0)
    mean = tl.load(p_state + o_state + M, mask, 0.0)
    spread = tl.load(p_state + o_state + 2 * M, mask, 0.0)
    for t in tl.range(0, T, num_stages=STAGES):
        row = b * T + t
        reset = tl.load(p_reset + row, mask, 0) != 0
        value = tl.load(p_value + row * s_value + m, mask, 0.0).to(tl.float32)
        weight = tl.exp(tl.load(p_kappa + row * s_kappa + m, mask, 0.0).to(tl.float32))
        decay = tl.exp(tl.load(p_omega + row * s_omega + m, mask, 0.0).to(tl.float32))
        n, mean, spread = advance(n, mean, spread, value, weight, decay, reset)
        tl.store(p_mean + row * M + m, mean, mask)
        tl.store(p_spread + row * M + m, spread, mask)
        tl.store(p_evidence + row * M + m, n, mask)
    tl.store(p_final + o_state, n, mask)
    tl.store(p_final + o_state + M, mean, mask)
    tl.store(p_final + o_state + 2 * M, spread, mask)


@triton.jit(do_not_specialize=["T", "chains"])
def _backward(
    p_dmean, p_dspread, p_devidence, p_dfinal, p_value, p_kappa, p_omega, p_state, p_reset,
    p_mean, p_spread, p_evidence, p_dvalue, p_dkappa, p_domega, p_dstate,
    s_dmean, s_dspread, s_devidence, s_value, s_kappa, s_omega, T, chains, M,
    BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    chain = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = chain < chains
    b, m = chain // M, chain % M
    o_state = b * 3 * M + m
    first_n = tl.load(p_state + o_state, mask, 0.0)
    first_mean = tl.load(p_state + o_state + M, mask, 0.0)
    first_spread = tl.load(p_state + o_state + 2 * M, mask, 0.0)
    dn = tl.load(p_dfinal + o_state, mask, 0.0)
    dmean = tl.load(p_dfinal + o_state + M, mask, 0.0)
    dspread = tl.load(p_dfinal + o_state + 2 * M, mask, 0.0)
    n = tl.load(p_evidence + (b * T + T - 1) * M + m, mask, 1.0)
    for i in tl.range(0, T, num_stages=STAGES):
        row = b * T + T - 1 - i
        # The moments before this step: what was written the step before, or the state.
        later, o = row > b * T, (row - 1) * M + m
        n_0 = tl.where(later, tl.load(p_evidence + o, mask & later, 0.0), first_n)
        mean_0 = tl.where(later, tl.load(p_mean + o, mask & later, 0.0), first_mean)
        spread_0 = tl.where(later, tl.load(p_spread + o, mask & later, 0.0), first_spread)
        reset = tl.load(p_reset + row, mask, 0) != 0
        dmean += tl.load(p_dmean + row * s_dmean + m, mask, 0.0)
        dspread += tl.load(p_dspread + row * s_dspread + m, mask, 0.0)
        dn += tl.load(p_devidence + row * s_devidence + m, mask, 0.0)
        value = tl.load(p_value + row * s_value + m, mask, 0.0).to(tl.float32)
        weight = tl.exp(tl.load(p_kappa + row * s_kappa + m, mask, 0.0).to(tl.float32))
        decay = tl.exp(tl.load(p_omega + row * s_omega + m, mask, 0.0).to(tl.float32))
        dvalue, dkappa, domega, dn, dmean, dspread = retreat(
            dn, dmean, dspread, n, n_0, mean_0, spread_0, value, weight, decay, reset
        )
        tl.store(p_dvalue + row * M + m, dvalue.to(p_dvalue.dtype.element_ty), mask)
        tl.store(p_dkappa + row * M + m, dkappa.to(p_dkappa.dtype.element_ty), mask)
        tl.store(p_domega + row * M + m, domega.to(p_domega.dtype.element_ty), mask)
        n = n_0
    tl.store(p_dstate + o_state, dn, mask)
    tl.store(p_dstate + o_state + M, dmean, mask)
    tl.store(p_dstate + o_state + 2 * M, dspread, mask)


def weighted_moments(
    value: Tensor, log_weight: Tensor, log_decay: Tensor, state: Tensor, reset: Tensor
) -> Tensors4:
    """Return mean, spread, evidence `[B, T, M]` and the final state, differentiable once.

    Inputs may be float32, bfloat16 or float16, each its own; everything is computed and returned
    in float32, gradients come in the dtype of their inputs.

    Args:
        value: `[B, T, M]`, like log_weight and log_decay; slices of a wider tensor are read
            where they are.
        log_weight: Log of each value's evidence.
        log_decay: Log-decay, applied to what came before the value.
        state: `[B, 3, M]` float32: evidence, mean, spread.
        reset: `[B, T]` bool.

    Raises:
        ValueError: The tensors are where Triton cannot run, or of another dtype.
    """
    check_runnable("value", value)
    check_dtypes({"value": value, "log_weight": log_weight, "log_decay": log_decay})
    outputs: Tensors4 = moments_forward(value, log_weight, log_decay, state, reset)
    return outputs


@torch.library.custom_op("doxastic::triton_moments_forward", mutates_args=())
def moments_forward(
    value: Tensor, log_weight: Tensor, log_decay: Tensor, state: Tensor, reset: Tensor
) -> Tensors4:
    """Return what `weighted_moments` returns."""
    B, T, M = value.shape
    inputs = [rows(x) for x in (value, log_weight, log_decay)]
    mean, spread, evidence = (
        torch.empty(B, T, M, dtype=torch.float32, device=value.device) for _ in range(3)
    )
    final = torch.empty(B, 3, M, dtype=torch.float32, device=value.device)
    if final.numel():
        with on_device(value):
            _forward[(triton.cdiv(B * M, BLOCK),)](
                *inputs, state.contiguous(), flags(reset), mean, spread, evidence, final,
                *(x.stride(0) for x in inputs), T, B * M, M, BLOCK, STAGES,
                num_warps=WARPS, **OPTIONS,
            )  # fmt: skip
    return mean, spread, evidence, final


@moments_forward.register_fake
def _(
    value: Tensor, log_weight: Tensor, log_decay: Tensor, state: Tensor, reset: Tensor
) -> Tensors4:
    mean, spread, evidence = (value.new_empty(value.shape, dtype=torch.float32) for _ in range(3))
    return mean, spread, evidence, state.new_empty(state.shape)


@torch.library.custom_op("doxastic::triton_moments_backward", mutates_args=())
def moments_backward(
    dmean: Tensor, dspread: Tensor, devidence: Tensor, dfinal: Tensor,
    value: Tensor, log_weight: Tensor, log_decay: Tensor, state: Tensor, reset: Tensor,
    mean: Tensor, spread: Tensor, evidence: Tensor,
) -> Tensors4:  # fmt: skip
    """Return the gradients of value, log_weight, log_decay and the initial state."""
    B, T, M = value.shape
    gradients = [rows(x) for x in (dmean, dspread, devidence)]
    inputs = [rows(x) for x in (value, log_weight, log_decay)]
    dvalue, dkappa, domega = (x.new_empty(B, T, M) for x in (value, log_weight, log_decay))
    dstate = state.new_empty(B, 3, M)
    if dstate.numel():
        with on_device(value):
            _backward[(triton.cdiv(B * M, BLOCK),)](
                *gradients, dfinal.contiguous(), *inputs, state.contiguous(), flags(reset),
                mean, spread, evidence, dvalue, dkappa, domega, dstate,
                *(x.stride(0) for x in (*gradients, *inputs)), T, B * M, M, BLOCK, STAGES,
                num_warps=WARPS, **OPTIONS,
            )  # fmt: skip
    return dvalue, dkappa, domega, dstate


@moments_backward.register_fake
def _(
    dmean: Tensor, dspread: Tensor, devidence: Tensor, dfinal: Tensor,
    value: Tensor, log_weight: Tensor, log_decay: Tensor, state: Tensor, reset: Tensor,
    mean: Tensor, spread: Tensor, evidence: Tensor,
) -> Tensors4:  # fmt: skip
    dvalue, dkappa, domega = (x.new_empty(x.shape) for x in (value, log_weight, log_decay))
    return dvalue, dkappa, domega, state.new_empty(state.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensors4) -> None:
    ctx.save_for_backward(*inputs, *output[:3])


def _differentiate(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    return *moments_backward(*gradients, *ctx.saved_tensors), None


moments_forward.register_autograd(_differentiate, setup_context=_save)
