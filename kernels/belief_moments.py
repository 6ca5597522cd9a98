"""A belief from decayed moments, and what a policy reads of it, as one operation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from doxastic.kernels.checks import can_fuse, can_launch, check_rank, check_reset, check_tensor
from doxastic.kernels.moments import weighted_moments

# Largest decay per step, e^(-0.6065) = 0.545, as in RWKV-7.
DECAY_SCALE = math.exp(-0.5)
# |kappa| is at most this: a single step's evidence lies between e^-8 and e^8.
LOG_WEIGHT_LIMIT = 8.0


def belief_moments(
    raw: Tensor, prior: Tensor, *, state: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, posterior variance and evidence, each `[B, T, M]`, and the state.

    With (z, kappa, omega) the thirds of `raw`, per channel:

        n, mean, s^2 = weighted_moments(z, clamp(kappa, -8, 8), -e^(-1/2) sigmoid(omega))
        variance = posterior_variance(s^2, n, prior)

    Args:
        raw: `[B, T, 3 M]`.
        prior: Evidence before anything was seen, `[M]`, above 0.
        state: `[B, 3, M]`: evidence, mean, spread.
        reset: `[B, T]` bool.
    """
    value, log_weight, decay = raw.chunk(3, dim=-1)
    mean, spread, evidence, state = weighted_moments(
        value, log_weight.clamp(-LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT),
        -DECAY_SCALE * decay.sigmoid(), state=state, reset=reset,
    )  # fmt: skip
    return mean, posterior_variance(spread, evidence, prior), evidence, state


def posterior_variance(spread: Tensor, evidence: Tensor, prior: Tensor) -> Tensor:
    """Return the posterior variance of a mean, `[..., M]`, above 0.

    The noise is estimated from the spread and, worth `prior` steps, a variance of 1; the mean is
    known as well as all the evidence makes it:

        variance = (prior + n s^2) / (prior + n) / (prior + n)

    Without the 1, a single step, which has no spread, would count as certainty.

    Args:
        spread: Weighted variance s^2 of the values around their mean.
        evidence: Sum of weights n.
        prior: Above 0.
    """
    total = prior + evidence
    return (prior + evidence * spread) / total.square()


def belief_features(mean: Tensor, variance: Tensor, evidence: Tensor) -> Tensor:
    """Return mean, log deviation, log(1 + evidence) / 2 and mean / sqrt(mean^2 + variance).

    `[..., 4 M]` from three `[..., M]`; the last is the mean in deviations, bounded by -1 and 1.
    Halving the logarithms (a deviation is half a log variance) keeps all four of one size.
    """
    ratio = mean * torch.rsqrt(mean.square() + variance)
    return torch.cat([mean, 0.5 * variance.log(), 0.5 * evidence.log1p(), ratio], dim=-1)


def belief_moments_features(
    raw: Tensor, prior: Tensor, *, state: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `belief_features` of `belief_moments`, `[B, T, 4 M]`, and the state.

    In float32 on the CPU this is one fused operation, on CUDA one for float32, bfloat16 and
    float16. Computed in float32 (float64 when an input is), under autocast too.

    Args:
        raw: `[B, T, 3 M]`.
        prior: `[M]`, above 0.
        state: `[B, 3, M]`: evidence, mean, spread.
        reset: `[B, T]` bool.

    Raises:
        ValueError: A shape, dtype or device does not fit.
    """
    check_rank("raw", raw, "[B, T, 3 M]", 3)
    check_rank("prior", prior, "[M]", 1)
    batch, steps, size = *raw.shape[:2], prior.numel()
    check_tensor("raw", raw, "[B, T, 3 M]", (batch, steps, 3 * size), prior, "prior")
    check_tensor("state", state, "[B, 3, M]", (batch, 3, size), raw, "raw and prior")
    check_reset(reset, "[B, T]", (batch, steps), raw)
    if can_fuse(size, raw, prior, state):
        from doxastic.kernels.cpu.belief_moments import FusedBeliefMoments

        features: tuple[Tensor, Tensor] = FusedBeliefMoments.apply(raw, prior, state, reset)
        return features
    if state.dtype is torch.float32 and can_launch(raw, prior):
        from doxastic.kernels.triton import belief_moments as triton

        return triton.belief_moments_features(raw, prior, state, reset)
    mean, variance, evidence, state = belief_moments(raw, prior, state=state, reset=reset)
    return belief_features(mean, variance, evidence), state


def belief_moments_step(
    raw: Tensor, prior: Tensor, *, state: Tensor, reset: Tensor, new: Tensor
) -> Tensor:
    """Return `belief_features` of one step, `[B, 1, 4 M]`, and write the moments to `new`.

    Without gradient. `state` and `new` are slices `[B, 3 M]` of states that hold more: nothing
    is gathered or scattered when acting.

    Args:
        raw: `[B, 1, 3 M]`.
        prior: `[M]`, above 0.
        state: `[B, 3 M]`: evidence, mean, spread.
        reset: `[B, 1]` bool.
        new: `[B, 3 M]`, written.
    """
    size, rows = prior.numel(), (state.stride(0), 1)
    if can_fuse(size, raw, prior, state, new) and state.stride() == new.stride() == rows:
        from doxastic.kernels.cpu.belief_moments import step

        return step(raw.contiguous(), prior.contiguous(), state, reset.contiguous(), new)
    features, moments = belief_moments_features(
        raw, prior, state=state.unflatten(1, (3, size)), reset=reset
    )
    new.copy_(moments.flatten(1))
    return features
