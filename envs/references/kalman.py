"""Exact posterior of a linear Gaussian system, also when the noise level of its sensors is unknown.

For a known level this is the filter of Kalman (1960). With a level that is one of a few and stays
the same, the posterior is a mixture of Kalman filters, one for each level, weighted by how well
they predicted what was seen (Magill, 1965).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


class LinearModel(NamedTuple):
    """A linear system, x' = A x + B u + w, seen as o = C x + sigma v.

    w is Gaussian of covariance W, v standard normal; the state starts with mean 0.
    """

    dynamics: FloatArray
    """A, `[D, D]`."""

    control: FloatArray
    """B, `[D, A]`."""

    disturbance: FloatArray
    """W, the covariance of what disturbs the state in a step, `[D, D]`."""

    observation: FloatArray
    """C, `[O, D]`."""

    start: FloatArray
    """Covariance of the state at the start, `[D, D]`."""


class Gaussian(NamedTuple):
    """A Gaussian belief over the state."""

    mean: FloatArray
    """`[..., D]`."""

    covariance: FloatArray
    """`[..., D, D]`; its leading dimensions broadcast with those of the mean."""


def predict(model: LinearModel, belief: Gaussian, action: npt.ArrayLike) -> Gaussian:
    """Return the belief after an action `[..., A]`, before the next observation."""
    a = model.dynamics
    mean = belief.mean @ a.T + np.asarray(action, dtype=np.float64) @ model.control.T
    return Gaussian(mean, a @ belief.covariance @ a.T + model.disturbance)


def update(
    model: LinearModel, belief: Gaussian, observation: npt.ArrayLike, level: npt.ArrayLike
) -> tuple[Gaussian, FloatArray]:
    """Return the belief after an observation, and the observation's log-density before it.

    Args:
        model: The system.
        belief: The belief before, over beliefs of any leading dimensions.
        observation: `[..., O]`.
        level: Standard deviation of the sensors' noise, `[...]`.

    Raises:
        ValueError: If an observation without noise was certain before: its density is infinite.
    """
    c = model.observation
    variance = np.asarray(level, dtype=np.float64)[..., None, None] ** 2
    size = c.shape[0]
    spread, gain = _spread_and_gain(model, belief.covariance, variance)
    log_det = np.linalg.slogdet(spread)[1]
    surprise = np.asarray(observation, dtype=np.float64) - belief.mean @ c.T
    # One inverse for each level, not one solution for each system.
    whitened = np.einsum("...op,...p->...o", np.linalg.inv(spread), surprise)
    log_density = -0.5 * ((surprise * whitened).sum(-1) + log_det + size * np.log(2 * np.pi))
    mean = belief.mean + np.einsum("...do,...o->...d", gain, surprise)
    return Gaussian(mean, _after(model, belief.covariance, gain, variance)), log_density


def _spread_and_gain(
    model: LinearModel, covariance: FloatArray, variance: FloatArray | float
) -> tuple[FloatArray, FloatArray]:
    """Return the covariance of the next observation `[..., O, O]` and the gain `[..., D, O]`."""
    c = model.observation
    spread = c @ covariance @ c.T + variance * np.eye(c.shape[0])
    variances = np.linalg.eigvalsh(spread)
    if np.any(variances[..., 0] <= 1e-14 * variances[..., -1]):
        raise ValueError(
            "An observation is certain before it is made: the level is 0 and so is the variance "
            "of what is observed. Use a positive level, or a disturbance that reaches it."
        )
    return spread, np.swapaxes(np.linalg.solve(spread, c @ covariance), -1, -2)


def _after(
    model: LinearModel, covariance: FloatArray, gain: FloatArray, variance: FloatArray | float
) -> FloatArray:
    """Return the covariance of the error after an update with any gain, `[..., D, D]`.

    Joseph's form: positive semi-definite whatever the rounding, and right for every gain.
    """
    kept = np.eye(model.dynamics.shape[0]) - gain @ model.observation
    noise = variance * (gain @ np.swapaxes(gain, -1, -2))
    return np.asarray(kept @ covariance @ np.swapaxes(kept, -1, -2) + noise)


class MixtureFilter:
    """The posterior of (x, sigma) in N systems whose level is one of L, the same at every step.

    Starts before the first observation. Call `update` with every observation and `predict` with
    every action.

    Args:
        model: The systems.
        levels: The L levels.
        n: Number of systems.
        prior: Probability of every level, equal if not given.
        move: Dynamics of the means in place of the model's, from `[N, L, D]` and the action
            `[N, A]` to `[N, L, D]`: the extended filter of a system that is nearly linear.
    """

    def __init__(
        self,
        model: LinearModel,
        levels: Sequence[float],
        n: int,
        prior: Sequence[float] | None = None,
        move: Callable[[FloatArray, FloatArray], FloatArray] | None = None,
    ) -> None:
        self.model, self._move = model, move
        self.levels = np.asarray(levels, dtype=np.float64)
        count, size = self.levels.size, model.dynamics.shape[0]
        # The covariances depend on the level alone, never on what is seen.
        start = np.broadcast_to(model.start, (count, size, size))
        self.parts = Gaussian(np.zeros((n, count, size)), start)
        weight = np.full(count, 1 / count) if prior is None else np.asarray(prior)
        self._log_weight = np.broadcast_to(np.log(weight), (n, count))

    def update(self, observation: npt.ArrayLike) -> None:
        """Take in an observation `[N, O]`."""
        o = np.asarray(observation, dtype=np.float64)[:, None]
        self.parts, log_density = update(self.model, self.parts, o, self.levels)
        self._log_weight = self._log_weight + log_density

    def predict(self, action: npt.ArrayLike) -> None:
        """Take in an action `[N, A]`."""
        u = np.asarray(action, dtype=np.float64)
        before = self.parts
        self.parts = predict(self.model, before, u[:, None])
        if self._move is not None:
            self.parts = Gaussian(self._move(before.mean, u), self.parts.covariance)

    @property
    def noise(self) -> FloatArray:
        """P(sigma = level) for every level, `[N, L]`."""
        weight = np.exp(self._log_weight - self._log_weight.max(1, keepdims=True))
        return np.asarray(weight / weight.sum(1, keepdims=True))

    @property
    def mean(self) -> FloatArray:
        """E[x], `[N, D]`."""
        return np.asarray((self.noise[:, :, None] * self.parts.mean).sum(1))

    @property
    def covariance(self) -> FloatArray:
        """Covariance of x, within and between the parts, `[N, D, D]`."""
        noise = self.noise
        off = self.parts.mean - self.mean[:, None]
        between = np.einsum("nl,nld,nle->nde", noise, off, off)
        return np.asarray(np.einsum("nl,lde->nde", noise, self.parts.covariance) + between)


def error_covariances(model: LinearModel, level: float, assumed: float, horizon: int) -> FloatArray:
    """Return E[(x - m)(x - m)^T] after every observation, of a filter with an assumed level.

    m is the mean of a Kalman filter that takes the level for `assumed` while it is `level`. The
    error depends neither on the actions nor on what is seen.

    Args:
        model: The system.
        level: True standard deviation of the sensors' noise.
        assumed: Level that the filter assumes.
        horizon: Number of observations H.

    Returns:
        `[H, D, D]`.
    """
    a = model.dynamics
    error = believed = model.start
    errors = []
    for _ in range(horizon):
        _, gain = _spread_and_gain(model, believed, assumed**2)
        error = _after(model, error, gain, level**2)
        errors.append(error)
        believed = _after(model, believed, gain, assumed**2)
        error, believed = (a @ p @ a.T + model.disturbance for p in (error, believed))
    return np.stack(errors)
