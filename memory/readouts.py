"""Readouts: from the core's features to a belief, a mean and how sure it is of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from doxastic.kernels.moments import weighted_moments

# A spread is never taken to be smaller: the log variance stays finite after one observation.
SPREAD_FLOOR = 1e-3
# Largest decay per step, e^(-0.6065) = 0.545, as in RWKV-7.
DECAY_SCALE = math.exp(-0.5)
LOG_WEIGHT_LIMIT = 8.0


class Belief(NamedTuple):
    """What is believed: each `[B, T, M]`."""

    mean: Tensor
    """Posterior mean."""

    variance: Tensor
    """Posterior variance of the mean, above 0."""

    evidence: Tensor
    """How much was seen: a decayed sum of weights, or the inverse variance."""

    def features(self) -> Tensor:
        """Return mean, log variance, log(1 + evidence) and mean / sqrt(mean^2 + variance).

        `[B, T, 4 M]`; the last is a mean in deviations, bounded by -1 and 1.
        """
        ratio = self.mean * torch.rsqrt(self.mean.square() + self.variance)
        logs = (self.variance.log(), self.evidence.log1p())
        return torch.cat([self.mean, *logs, ratio], dim=-1)


class Readout(nn.Module, ABC):
    """From features h `[B, T, C]` to a `Belief`, with a recurrent state of its own.

    Attributes:
        size: Number of belief channels M.
        channels: Recurrent channels N; the state is `[B, 3, N]`. 0 if there is no state.
    """

    size: int
    channels: int

    @abstractmethod
    def forward(
        self, h: Tensor, state: Tensor | None, reset: Tensor
    ) -> tuple[Belief, Tensor | None]:
        """Return the belief and the state after the last step.

        Args:
            h: Features `[B, T, C]`.
            state: `[B, 3, N]`, or None for a readout without state.
            reset: `[B, T]` bool.
        """


class MomentsReadout(Readout):
    """Decayed moments of learned values: the posterior variance of a mean.

    With value z, evidence log-weight kappa and log-decay omega, all linear in h:

        n_t = e^omega n_{t-1} + e^kappa,  mean = sum of weights z / n,
        s^2 = weighted variance around the mean,  variance = (s^2 + floor) / (prior + n)

    The spread s^2 alone estimates the noise; over the evidence it is an uncertainty.

    Source:
        Reconstruction; the published abstract derives (mu, Sigma) from WKV statistics.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size = self.channels = size
        self.projection = nn.Linear(width, 3 * size)
        self.prior = nn.Parameter(torch.zeros(size))
        with torch.no_grad():
            _, log_weight, decay = self.projection.bias.view(3, size)
            log_weight.fill_(0.0)
            decay.copy_(torch.linspace(-7.0, -1.0, size))

    def forward(
        self, h: Tensor, state: Tensor | None, reset: Tensor
    ) -> tuple[Belief, Tensor | None]:
        """Return the belief and the moments after the last step."""
        value, log_weight, decay = self.projection(h).chunk(3, dim=-1)
        log_weight = log_weight.clamp(-LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT)
        mean, spread, evidence, state = weighted_moments(
            value, log_weight, -DECAY_SCALE * decay.sigmoid(), state=state, reset=reset
        )
        variance = (spread + SPREAD_FLOOR) / (F.softplus(self.prior) + evidence)
        return Belief(mean, variance, evidence), state


class PrecisionReadout(Readout):
    """Diagonal posterior precision of keys, read by a query: one belief channel a head.

    As in Bayesian linear regression with a diagonal precision: each step's evidence goes to the
    coordinates of its key, kk^2 alpha, and a unit query q reads

        mean = sum_j q_j m_j,  variance = sum_j q_j^2 (s_j^2 + floor) / (prior + n_j)

    with n, m, s^2 the decayed evidence, mean and spread of every coordinate.

    Source:
        Reconstruction, after the diagonal form of online least squares.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.size, self.channels = heads, width
        self.projection = nn.Linear(width, 3 * width + 2 * heads)
        self.prior = nn.Parameter(torch.zeros(width))
        with torch.no_grad():
            self.projection.bias[-heads:] = torch.linspace(-7.0, -1.0, heads)

    def forward(
        self, h: Tensor, state: Tensor | None, reset: Tensor
    ) -> tuple[Belief, Tensor | None]:
        """Return the belief and the moments after the last step."""
        width, heads = self.channels, self.size
        value, key, query, rate, decay = self.projection(h).split(
            [width, width, width, heads, heads], dim=-1
        )
        shape = (*h.shape[:2], heads, width // heads)
        share = F.normalize(key.view(shape), dim=-1).square() + 1e-4
        log_weight = (share * rate.sigmoid().unsqueeze(-1)).log().flatten(2)
        log_decay = -DECAY_SCALE * decay.sigmoid().unsqueeze(-1).expand(shape).flatten(2)
        mean, spread, evidence, state = weighted_moments(
            value, log_weight, log_decay, state=state, reset=reset
        )
        variance = (spread + SPREAD_FLOOR) / (F.softplus(self.prior) + evidence)
        q = F.normalize(query.view(shape), dim=-1)
        square = q.square()
        belief = Belief(
            (q * mean.view(shape)).sum(-1),
            (square * variance.view(shape)).sum(-1),
            (square * evidence.view(shape)).sum(-1),
        )
        return belief, state


class LearnedReadout(Readout):
    """Linear mean and log-variance; it means something only with a likelihood in the loss."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.size, self.channels = size, 0
        self.projection = nn.Linear(width, 2 * size)

    def forward(
        self, h: Tensor, state: Tensor | None, reset: Tensor
    ) -> tuple[Belief, Tensor | None]:
        """Return the belief; there is no state."""
        mean, log_variance = self.projection(h).chunk(2, dim=-1)
        log_variance = log_variance.clamp(-8.0, 4.0)
        return Belief(mean, log_variance.exp(), (-log_variance).exp()), None
