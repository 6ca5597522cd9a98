"""Exact Bayes filter and optimal return of the sequential test, by dynamic programming.

With the observations o_1 .. o_n, n, sum o and sum o^2 are sufficient for (s, sigma). Written as
the mean m and the mean squared deviation v around it,

    log p(o_1 .. o_n | s, sigma) = -n log sigma - n ((m - s)^2 + v) / (2 sigma^2) + constant,

so the posterior is exact for every state. The value of waiting is computed on a grid over
(|m|, v), the only approximation: the sign of m does not matter by symmetry, and an expectation
over the next observation is a Gauss-Hermite sum for every (s, sigma) with a non-zero posterior.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from doxastic.envs.batched import NumpyRandom
from doxastic.envs.references.statistics_grid import StatisticsGrid, expectation, interpolated
from doxastic.envs.tasks.sequential_test import LEFT, RIGHT, WAIT, SequentialTest

FloatArray = npt.NDArray[np.float64]


class Posterior(NamedTuple):
    """Posterior of the hidden variables of a sequential test."""

    right: FloatArray
    """P(s = +1), of the shape of the statistics."""

    noise: FloatArray
    """P(sigma = level) for every noise level, in a trailing dimension."""


class Returns(NamedTuple):
    """Monte-Carlo returns, one entry per noise level."""

    mean: FloatArray
    standard_error: FloatArray


def sequential_test_posterior(
    count: npt.ArrayLike,
    total: npt.ArrayLike,
    squares: npt.ArrayLike,
    noise: Sequence[float],
) -> Posterior:
    """Return the posterior of (s, sigma) under uniform priors.

    Args:
        count: Number of observations n >= 1.
        total: Sum of the observations.
        squares: Sum of their squares.
        noise: Possible values of sigma, all positive.
    """
    n, total, squares = np.broadcast_arrays(count, total, squares)
    mean = total / n
    weights = _weights(n, mean, np.maximum(squares / n - mean**2, 0.0), noise)
    return Posterior(weights[..., 0, :].sum(-1), weights.sum(-2))


def _weights(n: Any, mean: FloatArray, spread: FloatArray, noise: Sequence[float]) -> FloatArray:
    """Return P(s, sigma | n, m, v) with trailing dimensions (s = +1, -1; sigma)."""
    sigma = np.asarray(noise, dtype=np.float64)
    n, mean, spread = (np.asarray(x, dtype=np.float64)[..., None, None] for x in (n, mean, spread))
    distance = (mean - np.array([[1.0], [-1.0]])) ** 2 + spread
    log_weight = -n * np.log(sigma) - n * distance / (2 * sigma**2)
    weight = np.exp(log_weight - log_weight.max((-2, -1), keepdims=True))
    return np.asarray(weight / weight.sum((-2, -1), keepdims=True))


class SequentialTestSolution(ABC):
    """A policy of a sequential test on (n, sum o, sum o^2), and what it is worth.

    Attributes:
        task: The test it solves.
        value: Expected return under the task's own distribution of noise levels.
    """

    def __init__(self, task: SequentialTest, value: float) -> None:
        self.task = task
        self.value = value

    @abstractmethod
    def policy(
        self, count: int, total: npt.ArrayLike, squares: npt.ArrayLike
    ) -> npt.NDArray[np.int64]:
        """Return the action at every state of `count` observations.

        Args:
            count: Number of observations seen, 1 to `task.horizon`.
            total: Sums of the observations.
            squares: Sums of their squares, of the same shape.
        """

    def returns(self, noise: Sequence[float], episodes: int, seed: int) -> Returns:
        """Return the policy's mean return in the real environment at each noise level.

        Args:
            noise: Levels to play at, also others than those it was solved for.
            episodes: Episodes per level, played all at once.
            seed: Seed of the environments; levels meet the same draws.
        """
        outcomes = np.stack([self._play(level, episodes, seed) for level in noise])
        error = outcomes.std(1, ddof=1) / np.sqrt(episodes)
        return Returns(outcomes.mean(1), error)

    def _play(self, level: float, episodes: int, seed: int) -> FloatArray:
        """Return the returns `[episodes]` of episodes at one noise level."""
        task = copy.copy(self.task)
        task.noise = (level,)
        random = NumpyRandom(np.random.default_rng(seed))
        state = task.reset(episodes, random)
        outcome, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
        total, squares = np.zeros(episodes), np.zeros(episodes)
        for count in range(1, task.horizon + 1):
            o = task.observe(state, random)[:, 0]
            total, squares = total + o, squares + o * o
            action = np.full(episodes, WAIT)
            action[running] = self.policy(count, total[running], squares[running])
            state, reward, ended = task.step(state, action, random)
            outcome += reward * running
            running &= ~ended
            if not running.any():
                break
        return outcome


class _Optimum(SequentialTestSolution):
    """The optimal policy: answer where that is worth more than waiting."""

    def __init__(
        self, task: SequentialTest, value: float, grid: StatisticsGrid, waiting: FloatArray
    ) -> None:
        super().__init__(task, value)
        self._grid = grid
        self._waiting = waiting

    def policy(
        self, count: int, total: npt.ArrayLike, squares: npt.ArrayLike
    ) -> npt.NDArray[np.int64]:
        """Return the optimal action at every state of `count` observations."""
        mean = np.asarray(total, dtype=np.float64) / count
        spread = np.maximum(np.asarray(squares, dtype=np.float64) / count - mean**2, 0.0)
        right = _weights(count, mean, spread, self.task.noise)[..., 0, :].sum(-1)
        answering = _worth_of_answer(right, self.task.wrong_cost)
        waiting = interpolated(
            mean.reshape(-1), spread.reshape(-1), self._waiting[count - 1], *self._grid.scales
        ).reshape(mean.shape)
        answer = np.where(right >= 0.5, RIGHT, LEFT)
        return np.where(waiting > answering, WAIT, answer).astype(np.int64)


def solve_sequential_test(
    task: SequentialTest, *, means: int = 201, spreads: int = 141, nodes: int = 25
) -> SequentialTestSolution:
    """Return the optimal policy and return of a sequential test; remembered per task.

    Args:
        task: The test; every noise level must be positive.
        means: Grid points over the absolute mean.
        spreads: Grid points over the mean squared deviation.
        nodes: Gauss-Hermite nodes of the expectation over the next observation.

    Raises:
        ValueError: If a noise level is 0: one observation then tells everything.
    """
    if min(task.noise) <= 0:
        raise ValueError(
            f"noise is {task.noise}; the dynamic program needs positive levels. "
            "Leave 0 out: at sigma = 0 the first observation decides, and the return is 1."
        )
    costs = task.wait_cost, task.wrong_cost, task.late_cost
    return _solve(*costs, task.horizon, task.noise, means, spreads, nodes)


@lru_cache(maxsize=32)
def _solve(
    wait_cost: float,
    wrong_cost: float,
    late_cost: float,
    horizon: int,
    noise: tuple[float, ...],
    means: int,
    spreads: int,
    nodes: int,
) -> SequentialTestSolution:
    task = SequentialTest(
        wait_cost=wait_cost,
        wrong_cost=wrong_cost,
        late_cost=late_cost,
        horizon=horizon,
        noise=noise,
    )
    grid = StatisticsGrid(noise, means, spreads)
    points, masses = np.polynomial.hermite_e.hermegauss(nodes)
    mean, spread = np.meshgrid(grid.mean, grid.spread, indexing="ij")
    # At the horizon, waiting is no answer.
    waiting = np.full((horizon, means, spreads), -late_cost)
    weights = _weights(horizon, mean, spread, noise)
    answering = _worth_of_answer(weights[..., 0, :].sum(-1), wrong_cost)
    for n in range(horizon - 1, 0, -1):
        weights = _weights(n, mean, spread, noise)
        waiting[n - 1] = -wait_cost + expectation(
            n,
            grid.mean,
            grid.spread,
            weights,
            np.array(noise),
            points,
            masses / masses.sum(),
            np.stack([answering, waiting[n]]),
            *grid.scales,
        )
        answering = _worth_of_answer(weights[..., 0, :].sum(-1), wrong_cost)
    # A single observation has no spread.
    first = np.maximum(answering[:, 0], waiting[0, :, 0])
    return _Optimum(task, _value_at_start(first, grid, noise), grid, waiting)


def _worth_of_answer(right: FloatArray, wrong_cost: float) -> FloatArray:
    """Return the expected reward of the likelier answer, given P(s = +1)."""
    likelier = np.maximum(right, 1 - right)
    return np.asarray(likelier - (1 - likelier) * wrong_cost)


def _value_at_start(first: FloatArray, grid: StatisticsGrid, noise: Sequence[float]) -> float:
    """Return the mean of the value after the first observation, over its distribution."""
    epsilon = np.linspace(-8, 8, 4001)
    density = np.exp(-(epsilon**2) / 2)
    density /= density.sum()
    values = [np.interp(np.abs(1 + sigma * epsilon), grid.mean, first) for sigma in noise]
    return float(np.mean([density @ value for value in values]))
