"""Exact posterior of the light-dark task: a mixture of Gaussians, one per noise level.

What moves is known, so that the unknown is y_0, where the agent started. The reading o at x, taken
after a displacement of D in y, tells of it r = o - D = y_0 + sigma k epsilon, with the darkness k
of x. Given sigma the posterior of y_0 is that of a Kalman filter, and with

    P = sum 1 / k^2,    S = sum r / k^2,    Q = sum r^2 / k^2

over n readings, Lambda = 1 / spread^2 + P / sigma^2 its precision and m its mean,

    m = S / (sigma^2 Lambda),
    log p(readings | sigma) = -n log sigma - (log Lambda + Q / sigma^2 - m^2 Lambda) / 2 + constant.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from doxastic.envs.references.belief_policy import BeliefFilter, positive_levels
from doxastic.envs.references.sequential_test import FloatArray
from doxastic.envs.tasks.light_dark import LightDark

IntArray = npt.NDArray[np.int64]


class LightDarkBelief(NamedTuple):
    """Sufficient statistics of N episodes, each `[N]`."""

    readings: IntArray
    """Number of readings n."""

    x: FloatArray
    """Where the agent is in x."""

    moved: FloatArray
    """Displacement D in y since the start."""

    precision: FloatArray
    """P, in units of 1 / sigma^2."""

    weighted: FloatArray
    """S."""

    squares: FloatArray
    """Q."""


class LightDarkPosterior(NamedTuple):
    """Posterior of the hidden variables."""

    mean: FloatArray
    """E[y], `[N]`."""

    variance: FloatArray
    """Var[y], `[N]`."""

    noise: FloatArray
    """P(noise = level), `[N, L]`."""

    means: FloatArray
    """E[y | level], `[N, L]`."""

    variances: FloatArray
    """Var[y | level], `[N, L]`."""


class LightDarkFilter(BeliefFilter[LightDarkBelief]):
    """The exact posterior of (y, noise level).

    Raises:
        ValueError: If a noise level is 0.
    """

    def __init__(self, task: LightDark) -> None:
        self._task = task
        self._noise = positive_levels(task)

    def first(self, observations: npt.NDArray[Any]) -> LightDarkBelief:
        """Return the beliefs after the first readings."""
        zero = np.zeros(observations.shape[0])
        nothing = LightDarkBelief(zero.astype(np.int64), zero, zero, zero, zero, zero)
        return self._added(nothing, zero, observations)

    def following(
        self,
        belief: LightDarkBelief,
        actions: npt.NDArray[Any],
        observations: npt.NDArray[Any],
    ) -> LightDarkBelief:
        """Return the beliefs after a displacement and a reading."""
        return self._added(belief, belief.moved + self._task.speed * actions[:, 1], observations)

    def _added(
        self, belief: LightDarkBelief, moved: FloatArray, observations: npt.NDArray[Any]
    ) -> LightDarkBelief:
        x = np.asarray(observations[:, 0], dtype=np.float64)
        residual = observations[:, 1] - moved
        weight = self._task.darkness(x) ** -2
        return LightDarkBelief(
            belief.readings + 1,
            x,
            moved,
            belief.precision + weight,
            belief.weighted + weight * residual,
            belief.squares + weight * residual**2,
        )

    def read(self, belief: LightDarkBelief) -> LightDarkPosterior:
        """Return the moments of y, of y given each level, and P(noise = level)."""
        precision, mean = self._given_level(belief)
        log_weight = self._log_evidence(belief)
        noise = np.exp(log_weight - log_weight.max(1, keepdims=True))
        noise /= noise.sum(1, keepdims=True)
        means = mean + belief.moved[:, None]
        overall = (noise * means).sum(1)
        spread = (noise * (1 / precision + (means - overall[:, None]) ** 2)).sum(1)
        return LightDarkPosterior(overall, spread, noise, means, 1 / precision)

    def _given_level(self, belief: LightDarkBelief) -> tuple[FloatArray, FloatArray]:
        """Return the precision and the mean of y_0 under every level, `[N, L]` each."""
        precision = belief.precision[:, None] / self._noise**2 + self._task.spread**-2
        return precision, belief.weighted[:, None] / (self._noise**2 * precision)

    def _log_evidence(self, belief: LightDarkBelief) -> FloatArray:
        """Return log p(readings | level) up to a constant, `[N, L]`."""
        precision, mean = self._given_level(belief)
        misfit = belief.squares[:, None] / self._noise**2 - mean**2 * precision
        scale = belief.readings[:, None] * np.log(self._noise)
        return np.asarray(-scale - (np.log(precision) + misfit) / 2)


class LightDarkSumsFilter(LightDarkFilter):
    """The posterior of (y, noise level) given n, P and S alone, without Q.

    What a filter keeps that takes the level for known; the level can only be guessed, from
    S / P, normal with mean 0 and variance spread^2 + sigma^2 / P.
    """

    def _log_evidence(self, belief: LightDarkBelief) -> FloatArray:
        variance = self._task.spread**2 + self._noise**2 / belief.precision[:, None]
        mean = (belief.weighted / belief.precision)[:, None]
        return np.asarray(-(np.log(variance) + mean**2 / variance) / 2)
