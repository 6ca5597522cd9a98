"""The exact posterior of the linear Gaussian task over N episodes that need not be in step.

Given the level the covariances depend on the number of observations alone, so that they and the
gains are computed once, for every step of an episode and every level; the means follow

    m <- A m + B u,   e = o - C m,   m <- m + K_t e,
    log p(o) = -(e^T V_t^-1 e + log det V_t) / 2 + constant.

The same mixture as `kalman.MixtureFilter`, whose systems all start together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from doxastic.envs.references.belief_policy import BeliefFilter
from doxastic.envs.references.kalman import FloatArray, Gaussian, predict, update
from doxastic.envs.references.lqr import linear_model
from doxastic.envs.tasks.linear_gaussian import LinearGaussian

IntArray = npt.NDArray[np.int64]


class LinearGaussianBelief(NamedTuple):
    """Sufficient statistics of N episodes."""

    steps: IntArray
    """Actions taken, `[N]`."""

    means: FloatArray
    """E[x | level], `[N, L, D]`."""

    log_weight: FloatArray
    """log P(noise = level) up to a constant, `[N, L]`."""


class LinearGaussianPosterior(NamedTuple):
    """Posterior of the hidden variables."""

    mean: FloatArray
    """E[x], `[N, D]`."""

    variance: FloatArray
    """Variances of x, `[N, D]`."""

    noise: FloatArray
    """P(noise = level), `[N, L]`."""


class LinearGaussianFilter(BeliefFilter[LinearGaussianBelief]):
    """The exact posterior of (x, noise level).

    Raises:
        ValueError: If a level is 0 where that makes an observation certain before it is made.
    """

    def __init__(self, task: LinearGaussian) -> None:
        model = self._model = linear_model(task)
        self._levels = np.array(task.noise)
        c, size = model.observation, len(model.start)
        start = np.broadcast_to(model.start, (len(task.noise), size, size))
        belief = Gaussian(np.zeros(size), start)
        rows = []
        for _ in range(task.max_episode_steps + 1):
            noise = self._levels[:, None, None] ** 2 * np.eye(len(c))
            # Nothing surprises: the covariances do not depend on what is seen.
            after, _ = update(model, belief, np.zeros(len(c)), self._levels)
            spread = c @ belief.covariance @ c.T + noise
            inverse = np.linalg.inv(spread)
            gain = belief.covariance @ c.T @ inverse
            variance = np.diagonal(after.covariance, axis1=-2, axis2=-1)
            rows.append((gain, inverse, np.linalg.slogdet(spread)[1], variance))
            belief = predict(model, after, np.zeros(model.control.shape[1]))
        tables = (np.stack(table) for table in zip(*rows, strict=True))
        self._gains, self._inverses, self._log_dets, self._variances = tables

    def first(self, observations: npt.NDArray[Any]) -> LinearGaussianBelief:
        """Return the beliefs after the first observations."""
        n, levels, size = len(observations), len(self._levels), self._model.start.shape[0]
        steps = np.zeros(n, dtype=np.int64)
        return self._updated(
            steps, np.zeros((n, levels, size)), np.zeros((n, levels)), observations
        )

    def following(
        self,
        belief: LinearGaussianBelief,
        actions: npt.NDArray[Any],
        observations: npt.NDArray[Any],
    ) -> LinearGaussianBelief:
        """Return the beliefs after an action and an observation."""
        pushed = np.asarray(actions, dtype=np.float64) @ self._model.control.T
        means = belief.means @ self._model.dynamics.T + pushed[:, None]
        # An episode is truncated before it would leave the table.
        steps = np.minimum(belief.steps + 1, len(self._gains) - 1)
        return self._updated(steps, means, belief.log_weight, observations)

    def _updated(
        self,
        steps: IntArray,
        means: FloatArray,
        log_weight: FloatArray,
        observations: npt.NDArray[Any],
    ) -> LinearGaussianBelief:
        surprise = observations[:, None] - means @ self._model.observation.T
        whitened = np.einsum("nlop,nlp->nlo", self._inverses[steps], surprise)
        log_density = -((surprise * whitened).sum(-1) + self._log_dets[steps]) / 2
        moved = np.einsum("nldo,nlo->nld", self._gains[steps], surprise)
        return LinearGaussianBelief(steps, means + moved, log_weight + log_density)

    def read(self, belief: LinearGaussianBelief) -> LinearGaussianPosterior:
        """Return the moments of x and P(noise = level)."""
        noise = np.exp(belief.log_weight - belief.log_weight.max(1, keepdims=True))
        noise /= noise.sum(1, keepdims=True)
        mean = (noise[..., None] * belief.means).sum(1)
        off = belief.means - mean[:, None]
        variance = (noise[..., None] * (self._variances[belief.steps] + off**2)).sum(1)
        return LinearGaussianPosterior(mean, variance, noise)
