"""Action distributions for TorchRL's losses and probabilistic modules.

A bounded Box gets a Beta distribution stretched to the bounds and not a squashed normal: its
entropy is analytic, so no sampling enters the loss, its density needs no inverse of tanh, which
loses all precision near the bounds, and a new policy is nearly uniform over the whole range
(Chou, Maturana and Scherer, "Improving stochastic policy gradients in continuous control with
deep reinforcement learning using the Beta distribution", ICML 2017).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributions as D

# Beta densities are taken at least this far from the ends of the unit interval, where they can
# be 0: log-probabilities of actions at the bounds stay finite.
BETA_MARGIN = 1e-5


class Categorical(D.Categorical):
    """Categorical distribution over `logits` `[..., A]`; actions `[...]` int64."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits=logits, validate_args=False)

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable category."""
        return self.logits.argmax(-1)


class MultiCategorical(D.Independent):
    """Independent categoricals over `logits` `[..., A, N]`; actions `[..., A]` int64."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(D.Categorical(logits=logits, validate_args=False), 1, validate_args=False)

    @property
    def deterministic_sample(self) -> Tensor:
        """The most probable category of every variable."""
        return self.base_dist.logits.argmax(-1)


class MultiBernoulli(D.Independent):
    """Independent bits with `logits` `[..., A]`; actions `[..., A]` int8."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(D.Bernoulli(logits=logits, validate_args=False), 1, validate_args=False)

    @property
    def deterministic_sample(self) -> Tensor:
        """The more probable value of every bit."""
        return (self.base_dist.logits > 0).to(torch.int8)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return bits `[*sample_shape, ..., A]`."""
        return super().sample(torch.Size(sample_shape)).to(torch.int8)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probabilities `[...]` of bits `[..., A]`."""
        return super().log_prob(value.to(self.base_dist.logits.dtype))


class DiagonalNormal(D.Independent):
    """Normal distribution with a diagonal covariance; `loc` and `scale` `[..., A]`."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(D.Normal(loc, scale, validate_args=False), 1, validate_args=False)

    @property
    def deterministic_sample(self) -> Tensor:
        """The mean."""
        return self.base_dist.loc


class BoundedBeta(D.Independent):
    """Independent Beta distributions, stretched from the unit interval to `[low, high]`.

    With `u = (action - low) / (high - low)` and concentrations `a, b` the density of an entry is
    proportional to `u^(a - 1) (1 - u)^(b - 1)`.

    Args:
        concentration: The pairs `a, b`, `[..., A, 2]`, above 1.
        low: Lower bounds `[A]`, on any device.
        high: Upper bounds `[A]`, on any device.
    """

    # Reparameterised samples are not offered: PPO needs none, and its entropy is analytic.
    has_rsample = False

    def __init__(self, concentration: Tensor, low: Tensor, high: Tensor) -> None:
        base = D.Beta(concentration[..., 0], concentration[..., 1], validate_args=False)
        super().__init__(base, 1, validate_args=False)
        self.concentration = concentration
        # Modules of TorchRL hold the bounds as constants, which stay where they are when it moves.
        self.low = low.to(concentration.device)
        self.width = high.to(concentration.device) - self.low

    @property
    def deterministic_sample(self) -> Tensor:
        """The densest action."""
        return self.low + self.width * beta_mode(self.concentration)

    @property
    def mode(self) -> Tensor:
        """The densest action."""
        return self.deterministic_sample

    @property
    def mean(self) -> Tensor:
        """The mean action."""
        return self.low + self.width * self.base_dist.mean

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return actions `[*sample_shape, ..., A]` within the bounds."""
        unit = self.base_dist.sample(torch.Size(sample_shape))
        return self.low + self.width * unit.clamp(BETA_MARGIN, 1 - BETA_MARGIN)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-densities `[...]` of actions `[..., A]`; finite at the bounds."""
        return beta_log_prob(self.concentration, value, self.low, self.width)

    def entropy(self) -> Tensor:
        """Return the differential entropies `[...]`."""
        return super().entropy() + self.width.log().sum()


def beta_mode(concentration: Tensor) -> Tensor:
    """Return the mode `(a - 1) / (a + b - 2)` in the unit interval, for pairs above 1."""
    excess = concentration - 1
    return excess[..., 0] / excess.sum(-1)


def beta_log_prob(concentration: Tensor, action: Tensor, low: Tensor, width: Tensor) -> Tensor:
    """Return the log-densities `[...]` of stretched Beta actions `[..., A]`.

    Args:
        concentration: The pairs `a, b`, `[..., A, 2]`.
        action: Actions; at the bounds they are moved inwards by `BETA_MARGIN` of the range.
        low: Lower bounds `[A]`.
        width: Distances from the lower to the upper bounds `[A]`.
    """
    unit = ((action - low) / width).clamp(BETA_MARGIN, 1 - BETA_MARGIN)
    log_units = torch.stack((unit, 1 - unit), -1).log()
    log_density = ((concentration - 1) * log_units - concentration.lgamma()).sum(-1)
    return (log_density + concentration.sum(-1).lgamma() - width.log()).sum(-1)
