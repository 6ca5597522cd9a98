"""Exact posterior of the noisy bandit.

Given the standard deviation s of an arm's readings, n readings of sum S and sum of squares Q leave
its mean normal with precision Lambda = 1 + n / s^2 and mean m = S / (s^2 Lambda), and

    log p(readings | s) = -n log s - (log Lambda + Q / s^2 - m^2 Lambda) / 2 + constant.

s is `reliable_noise` or the level of the episode, which the arms share: given the level they are
independent, and the posterior is a mixture of 1 + L Gaussians for every arm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from doxastic.envs.references.belief_policy import BeliefFilter, positive_levels
from doxastic.envs.references.sequential_test import FloatArray
from doxastic.envs.tasks.noisy_bandit import NoisyBandit


class BanditBelief(NamedTuple):
    """Sufficient statistics of N episodes, each `[N, arms]`."""

    readings: FloatArray
    """Number of readings of every arm."""

    total: FloatArray
    """Their sums."""

    squares: FloatArray
    """The sums of their squares."""


class BanditPosterior(NamedTuple):
    """Posterior of the hidden variables; component 0 is reliable, 1 + l has level l."""

    mean: FloatArray
    """E[mean of the arm], `[N, arms]`."""

    variance: FloatArray
    """Var[mean of the arm], `[N, arms]`."""

    noise: FloatArray
    """P(noise = level), `[N, L]`."""

    weights: FloatArray
    """P(component), `[N, arms, 1 + L]`."""

    means: FloatArray
    """E[mean of the arm | component], `[N, arms, 1 + L]`."""

    variances: FloatArray
    """Var[mean of the arm | component], `[N, arms, 1 + L]`."""


class BanditFilter(BeliefFilter[BanditBelief]):
    """The exact posterior of (means, which arms are reliable, noise level).

    Raises:
        ValueError: If a noise level, or the reliable one, is 0.
    """

    def __init__(self, task: NoisyBandit) -> None:
        levels = positive_levels(task)
        if task.reliable_noise <= 0:
            raise ValueError(
                f"reliable_noise is {task.reliable_noise}; the exact filter needs a positive one."
            )
        self.scales = np.concatenate([[task.reliable_noise], levels])
        self._arms = task.arms
        with np.errstate(divide="ignore"):
            self._log_prior = np.log([1 - task.unreliable, task.unreliable])

    def first(self, observations: npt.NDArray[Any]) -> BanditBelief:
        """Return the prior: nothing was read."""
        nothing = np.zeros((observations.shape[0], self._arms))
        return BanditBelief(nothing, nothing, nothing)

    def following(
        self, belief: BanditBelief, actions: npt.NDArray[Any], observations: npt.NDArray[Any]
    ) -> BanditBelief:
        """Return the beliefs after the reading of the arm that was pulled, if one was."""
        pulled = (actions[:, None] == np.arange(self._arms)).astype(np.float64)
        reading = np.asarray(observations, dtype=np.float64) * pulled
        return BanditBelief(
            belief.readings + pulled, belief.total + reading, belief.squares + reading**2
        )

    def read(self, belief: BanditBelief) -> BanditPosterior:
        """Return the moments of the arms' means and the posterior of their noise."""
        variance = self.scales**2
        count, total, squares = (statistic[..., None] for statistic in belief)
        precision = 1 + count / variance
        means = total / (variance * precision)
        log_weight = self._log_evidence(count, total, squares)
        reliable = self._log_prior[0] + log_weight[..., :1]
        unreliable = self._log_prior[1] + log_weight[..., 1:]
        # Of every arm given every level, [N, arms, L].
        evidence = np.logaddexp(reliable, unreliable)
        noise = _normalised(evidence.sum(1))
        share = np.exp(unreliable - evidence) * noise[:, None]
        weights = np.concatenate([1 - share.sum(-1, keepdims=True), share], axis=-1)
        mean = (weights * means).sum(-1)
        spread = (weights * (1 / precision + (means - mean[..., None]) ** 2)).sum(-1)
        return BanditPosterior(mean, spread, noise, weights, means, 1 / precision)

    def _log_evidence(
        self, count: FloatArray, total: FloatArray, squares: FloatArray
    ) -> FloatArray:
        """Return log p(readings | s) up to a constant, for statistics `[N, arms, 1]`."""
        precision = 1 + count / self.scales**2
        misfit = squares / self.scales**2 - (total / self.scales**2) ** 2 / precision
        return np.asarray(-count * np.log(self.scales) - (np.log(precision) + misfit) / 2)


class BanditSumsFilter(BanditFilter):
    """The posterior given n and S alone, without Q.

    What a filter keeps that takes the noise for known; which arms are reliable can only be
    guessed, from S / n, normal with mean 0 and variance 1 + s^2 / n.
    """

    def _log_evidence(
        self, count: FloatArray, total: FloatArray, squares: FloatArray
    ) -> FloatArray:
        n = np.maximum(count, 1)
        variance = 1 + self.scales**2 / n
        log_density = -(np.log(variance) + (total / n) ** 2 / variance) / 2
        return np.where(count > 0, log_density, 0.0)


def _normalised(log_weight: FloatArray) -> FloatArray:
    """Return the distribution over the last dimension with these log-weights."""
    weight = np.exp(log_weight - log_weight.max(-1, keepdims=True))
    return np.asarray(weight / weight.sum(-1, keepdims=True))
