"""Readouts: from the core's features to a belief, a mean and how sure it is of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from doxastic.kernels.belief_moments import (
    DECAY_SCALE,
    LOG_WEIGHT_LIMIT,
    belief_features,
    belief_moments,
    belief_moments_features,
    belief_moments_step,
    posterior_variance,
)
from doxastic.kernels.moments import weighted_moments

# First and last bias of the channels' decays: half lives from 1,250 steps to 4.
DECAY_BIAS = (-7.0, -1.0)


class Belief(NamedTuple):
    """What is believed: each `[B, T, M]`."""

    mean: Tensor
    """Posterior mean."""

    variance: Tensor
    """Posterior variance of the mean, above 0."""

    evidence: Tensor
    """How much was seen: a decayed sum of weights, or the inverse variance."""

    def features(self) -> Tensor:
        """Return what the heads read of it, `[B, T, 4 M]`, see `belief_features`."""
        return belief_features(self.mean, self.variance, self.evidence)


def features_before(features: Tensor, state: Tensor, reset: Tensor, prior: Tensor) -> Tensor:
    """Return the features of the belief before each step, `[B, T, 4 M]`; no future is in them.

    That is the prior's where an episode starts, and then no gradient of the past remains.

    Args:
        features: Features after each step, `[B, T, 4 M]`.
        state: Moments before the first step, `[B, 3, M]`.
        reset: `[B, T]` bool.
        prior: Evidence before anything was seen, `[M]`.
    """
    # One more row, of moments that saw nothing: the prior.
    evidence, mean, spread = F.pad(state, (0, 0, 0, 0, 0, 1)).unbind(1)
    start = belief_features(mean, posterior_variance(spread, evidence, prior), evidence)
    before = torch.cat([start[:-1, None], features[:, :-1]], dim=1)
    return torch.where(reset.unsqueeze(-1), start[-1], before)


class Readout(nn.Module, ABC):
    """From features h `[B, T, C]` to a `Belief`, with a recurrent state of its own.

    Attributes:
        size: Number of belief channels M.
        channels: Recurrent channels N; the state is `[B, 3, N]`. 0 if there is no state.
        feature_size: Width of its features.
    """

    size: int
    channels: int

    @property
    def feature_size(self) -> int:
        """Four features a belief channel."""
        return 4 * self.size

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

    def features(
        self, h: Tensor, state: Tensor | None, reset: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the features of the belief, `[B, T, 4 M]`, and the state after the last step."""
        belief, state = self(h, state, reset)
        features: Tensor = belief.features()
        return features, state

    def step(self, h: Tensor, state: Tensor, reset: Tensor, new: Tensor) -> Tensor:
        """Return the features of one step and write the state after it to `new`.

        Args:
            h: Features `[B, 1, C]`.
            state: `[B, 3 N]`, a slice of the memory's state; empty without a state.
            reset: `[B, 1]` bool.
            new: `[B, 3 N]`, a slice of the memory's new state, written.
        """
        moments = state.unflatten(1, (3, self.channels)) if self.channels else None
        features, moments = self.features(h, moments, reset)
        if moments is not None:
            new.copy_(moments.flatten(1))
        return features


def _positive(x: Tensor) -> Tensor:
    return F.softplus(x) + 1e-3


def _required(state: Tensor | None) -> Tensor:
    if state is None:
        raise ValueError("state is None; expected [B, 3, N] for a readout with a state.")
    return state


class MomentsReadout(Readout):
    """Decayed moments of learned values: the posterior variance of a mean.

    With value z, evidence log-weight kappa and log-decay omega, all linear in h:

        n_t = e^omega n_{t-1} + e^kappa,  mean = sum of weights z / n,
        s^2 = weighted variance around the mean,
        variance = (prior + n s^2) / (prior + n)^2

    The spread s^2 alone estimates the noise; over the evidence it is an uncertainty.

    With `surprise` there is a fifth feature, how unexpected the value was: with the mean, variance
    and evidence of the step before, under which the noise is variance (prior + n),

        log(1 + (z_t - mean)^2 / (variance (prior + n + 1))) / 2

    Args:
        width: Width of h.
        size: Belief channels M.
        decay: First and last of the biases of omega's pre-activation, spaced evenly over the
            channels; a step decays by e^(-e^(-1/2) sigmoid(bias)).
        surprise: Whether there is the fifth feature.

    Source:
        Reconstruction; the published abstract derives (mu, Sigma) from WKV statistics.
    """

    def __init__(
        self,
        width: int,
        size: int,
        decay: tuple[float, float] = DECAY_BIAS,
        surprise: bool = False,
    ) -> None:
        super().__init__()
        self.size = self.channels = size
        self.surprise = surprise
        self.projection = nn.Linear(width, 3 * size)
        self.prior = nn.Parameter(torch.zeros(size))
        with torch.no_grad():
            _, log_weight, omega = self.projection.bias.view(3, size)
            log_weight.fill_(0.0)
            omega.copy_(torch.linspace(*decay, size))

    @property
    def positive_prior(self) -> Tensor:
        """Evidence before anything was seen, `[M]`, above 0."""
        return _positive(self.prior)

    def forward(
        self, h: Tensor, state: Tensor | None, reset: Tensor
    ) -> tuple[Belief, Tensor | None]:
        """Return the belief and the moments after the last step."""
        raw, prior, state = self.projection(h), self.positive_prior, _required(state)
        mean, variance, evidence, state = belief_moments(raw, prior, state=state, reset=reset)
        return Belief(mean, variance, evidence), state

    def features(
        self, h: Tensor, state: Tensor | None, reset: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return the features of the belief and the moments after the last step."""
        raw, prior, state = self.projection(h), self.positive_prior, _required(state)
        features, last = belief_moments_features(raw, prior, state=state, reset=reset)
        if not self.surprise:
            return features, last
        before = features_before(features, state, reset, prior)
        mean, deviation, evidence, _ = before.chunk(4, dim=-1)
        # log1p(n) / 2 and the log deviation are what is at hand: prior + n + 1 = prior + e^(2 ..).
        variance = (2.0 * deviation).exp() * (prior + (2.0 * evidence).exp())
        innovation = raw[..., : self.size] - mean
        surprise = 0.5 * (innovation.square() / variance).log1p()
        return torch.cat([features, surprise], dim=-1), last

    @property
    def feature_size(self) -> int:
        """Four features a belief channel, five with the surprise."""
        return (5 if self.surprise else 4) * self.size

    def step(self, h: Tensor, state: Tensor, reset: Tensor, new: Tensor) -> Tensor:
        """Return the features of one step and write the moments after it to `new`."""
        if self.surprise:
            return super().step(h, state, reset, new)
        raw, prior = self.projection(h), _positive(self.prior)
        return belief_moments_step(raw, prior, state=state, reset=reset, new=new)


class PrecisionReadout(Readout):
    """Diagonal posterior precision of keys, read by a query: one belief channel a head.

    As in Bayesian linear regression with a diagonal precision: each step's evidence goes to the
    coordinates of its key, kk^2 alpha, and a unit query q reads

        mean = sum_j q_j m_j,  variance = sum_j q_j^2 posterior_variance(s_j^2, n_j)

    with n, m, s^2 the decayed evidence, mean and spread of every coordinate.

    Source:
        Reconstruction, after the diagonal form of online least squares.
    """

    def __init__(self, width: int, heads: int, decay: tuple[float, float] = DECAY_BIAS) -> None:
        super().__init__()
        self.size, self.channels = heads, width
        self.projection = nn.Linear(width, 3 * width + 2 * heads)
        self.prior = nn.Parameter(torch.zeros(width))
        with torch.no_grad():
            self.projection.bias[-heads:] = torch.linspace(*decay, heads)

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
        # Clamped as in the moments: evidence that underflows would leave no gradient to come back.
        log_rate = F.logsigmoid(rate).clamp_min(-LOG_WEIGHT_LIMIT)
        log_weight = (share.log() + log_rate.unsqueeze(-1)).flatten(2)
        log_decay = -DECAY_SCALE * decay.sigmoid().unsqueeze(-1).expand(shape).flatten(2)
        mean, spread, evidence, state = weighted_moments(
            value, log_weight, log_decay, state=_required(state), reset=reset
        )
        variance = posterior_variance(spread, evidence, _positive(self.prior))
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
