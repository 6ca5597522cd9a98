"""A belief from decayed moments, and what a policy reads of it, as one operation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from doxastic.kernels.moments import weighted_moments

# Largest decay per step, e^(-0.6065) = 0.545, as in RWKV-7.
DECAY_SCALE = math.exp(-0.5)
# |kappa| is at most this: a single step's evidence lies between e^-8 and e^8.
LOG_WEIGHT_LIMIT = 8.0
# A spread is never taken to be smaller: the log variance stays finite after one observation.
SPREAD_FLOOR = 1e-3


def belief_moments(
    raw: Tensor, prior: Tensor, *, state: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, posterior variance and evidence, each `[B, T, M]`, and the state.

    With (z, kappa, omega) the thirds of `raw`, per channel:

        n, mean, s^2 = weighted_moments(z, clamp(kappa, -8, 8), -e^(-1/2) sigmoid(omega))
        variance = (s^2 + 1e-3) / (prior + n)

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
    return mean, (spread + SPREAD_FLOOR) / (prior + evidence), evidence, state


def belief_features(mean: Tensor, variance: Tensor, evidence: Tensor) -> Tensor:
    """Return mean, log variance, log(1 + evidence) and mean / sqrt(mean^2 + variance).

    `[..., 4 M]` from three `[..., M]`; the last is the mean in deviations, bounded by -1 and 1.
    """
    ratio = mean * torch.rsqrt(mean.square() + variance)
    return torch.cat([mean, variance.log(), evidence.log1p(), ratio], dim=-1)


def belief_moments_features(
    raw: Tensor, prior: Tensor, *, state: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `belief_features` of `belief_moments`, `[B, T, 4 M]`, and the state.

    In float32 on the CPU this is one fused operation.
    """
    if _is_fusible(raw, prior):
        from doxastic.kernels.cpu.belief_moments import FusedBeliefMoments

        features: tuple[Tensor, Tensor] = FusedBeliefMoments.apply(raw, prior, state, reset)
        return features
    mean, variance, evidence, state = belief_moments(raw, prior, state=state, reset=reset)
    return belief_features(mean, variance, evidence), state


def _is_fusible(raw: Tensor, prior: Tensor) -> bool:
    if raw.device.type != "cpu" or raw.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    try:
        from doxastic.kernels.cpu.simd import LANES
    except ImportError:
        return False
    return prior.shape[0] % LANES == 0
