"""Optimal control of linear systems with quadratic costs, and what it returns.

Step t of H costs x^T Q x + u^T R u. With the Riccati recursion from S_H = 0,

    M_t = R + B^T S_{t+1} B,   K_t = M_t^-1 B^T S_{t+1} A,   S_t = Q + A^T S_{t+1} (A - B K_t),

every policy has the expected cost

    tr(S_0 P_0) + sum_t tr(S_{t+1} W) + sum_t E[(u_t + K_t x_t)^T M_t (u_t + K_t x_t)],

of which the last sum alone depends on the policy. Acting cannot improve what is seen: take the
known effect of the actions off the observations, and the rest is the same whatever was done. So
u_t = -K_t E[x_t | what was seen] is optimal, also for an unknown noise level, under which the
posterior is no Gaussian: without a dual effect, certainty equivalence is exact (Bar-Shalom and
Tse, 1974). The last sum is then that of tr(K_t^T M_t K_t E[e e^T]) over the errors e of the
estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from doxastic.envs.batched import NumpyRandom
from doxastic.envs.references.kalman import LinearModel, MixtureFilter, error_covariances
from doxastic.envs.tasks.linear_gaussian import LinearGaussian

FloatArray = npt.NDArray[np.float64]


class Regulator(NamedTuple):
    """The optimal linear feedback u_t = -K_t x_t over H steps."""

    gains: FloatArray
    """K_t, `[H, A, D]`."""

    values: FloatArray
    """S_t, `[H + 1, D, D]`: x^T S_t x is the cost from step t on without disturbance."""

    error_costs: FloatArray
    """K_t^T M_t K_t, `[H, D, D]`: what an error in the estimate of x_t costs."""


class Estimator(Protocol):
    """Follows N systems and estimates their states, as `MixtureFilter` does."""

    def update(self, observation: npt.ArrayLike) -> None:
        """Take in an observation `[N, O]`."""

    def predict(self, action: npt.ArrayLike) -> None:
        """Take in an action `[N, A]`."""

    @property
    def mean(self) -> FloatArray:
        """Estimate of the state, `[N, D]`."""


def solve_regulator(
    dynamics: FloatArray,
    control: FloatArray,
    state_cost: FloatArray,
    action_cost: FloatArray,
    horizon: int,
) -> Regulator:
    """Return the optimal feedback over `horizon` steps, by the Riccati recursion."""
    a, b = dynamics, control
    s = np.zeros_like(state_cost)
    gains, values, error_costs = [], [s], []
    for _ in range(horizon):
        m = action_cost + b.T @ s @ b
        k = np.linalg.solve(m, b.T @ s @ a)
        s = state_cost + a.T @ s @ (a - b @ k)
        s = (s + s.T) / 2
        gains.append(k)
        values.append(s)
        error_costs.append(k.T @ m @ k)
    return Regulator(*(np.stack(x[::-1]) for x in (gains, values, error_costs)))


class LinearGaussianSolution:
    """The optimal policy of a `LinearGaussian` task, and what policies are worth.

    All returns are expectations without the limit of the actions.

    Attributes:
        task: The task it solves.
        model: Its dynamics and sensors.
        regulator: Its optimal feedback.
    """

    def __init__(self, task: LinearGaussian) -> None:
        self.task = task
        self.model = linear_model(task)
        self._horizon = task.max_episode_steps
        self.regulator = solve_regulator(
            task.dynamics, task.control, task.state_cost, task.action_cost, self._horizon
        )

    def seeing_return(self) -> float:
        """Return what the optimum gets that sees the state itself: a bound for all others."""
        values = self.regulator.values
        start = np.trace(values[0] @ self.model.start)
        moved = np.einsum("tij,ji->", values[1:], self.model.disturbance)
        return -float(start + moved) / self._horizon

    def idle_return(self) -> float:
        """Return what never acting gets, the best that a policy that sees nothing does."""
        a, covariance, total = self.model.dynamics, self.model.start, 0.0
        for _ in range(self._horizon):
            total += np.trace(self.task.state_cost @ covariance)
            covariance = a @ covariance @ a.T + self.model.disturbance
        return -float(total) / self._horizon

    def kalman_return(self, level: float, assumed: float | None = None) -> float:
        """Return what acting on a Kalman filter gets at a noise level.

        Args:
            level: True noise level.
            assumed: Level that the filter assumes; the true one, the optimum for who knows it, if
                not given.
        """
        assumed = level if assumed is None else assumed
        errors = error_covariances(self.model, level, assumed, self._horizon)
        return self.seeing_return() - self._cost_of_errors(errors)

    def blind_level(self) -> float:
        """Return the level that the best linear policy assumes, the root mean square of all.

        The best linear estimate depends on means and covariances alone, and noise of a level
        that is drawn once per episode has those of white noise of the mean variance. So no
        policy that is linear in the observations does better than this Kalman filter.
        """
        return float(np.sqrt(np.mean(np.square(self.task.noise))))

    def posterior_returns(self, levels: Sequence[float], episodes: int, seed: int) -> FloatArray:
        """Return what the optimal policy gets at each level, by Monte Carlo.

        It acts on the mean of the mixture over `task.noise`. What it loses against who knows the
        level, E[(m - m')^T K^T M K (m - m')] with their estimates m and m', is all that is
        estimated: the standard error is far below that of the returns themselves.

        Args:
            levels: Levels to play at, also others than those of `task.noise`.
            episodes: Episodes per level.
            seed: Seed; levels meet the same draws.
        """
        losses = [self._loss_of_not_knowing(level, episodes, seed) for level in levels]
        known = [self.kalman_return(level) for level in levels]
        return np.subtract(known, losses)

    def play(self, level: float, estimator: Estimator, episodes: int, seed: int) -> FloatArray:
        """Return the returns `[episodes]` of acting on an estimator in the real environment.

        Args:
            level: Noise level of the environment.
            estimator: A fresh one over `episodes` systems.
            episodes: Episodes, played all at once.
            seed: Seed of the environment.
        """
        task, high = self.task, self.task.action_space.high
        random = NumpyRandom(np.random.default_rng(seed))
        state = task.reset(episodes, random)
        state["noise"] = np.full(episodes, level)
        total = np.zeros(episodes)
        for gain in self.regulator.gains:
            estimator.update(task.observe(state, random))
            action = np.clip(-estimator.mean @ gain.T, -high, high)
            state, reward, _ = task.step(state, action, random)
            estimator.predict(action)
            total += reward
        return total

    def _loss_of_not_knowing(self, level: float, episodes: int, seed: int) -> float:
        """Return what the optimal policy loses against the one that knows the level."""
        mixture = MixtureFilter(self.model, self.task.noise, episodes)
        knowing = MixtureFilter(self.model, (level,), episodes)
        pair = _Pair(mixture, knowing, self.regulator.error_costs)
        self.play(level, pair, episodes, seed)
        return pair.loss / self._horizon

    def _cost_of_errors(self, errors: FloatArray) -> float:
        """Return what errors of covariance `[H, D, D]` cost per step."""
        return float(np.einsum("tij,tji->", self.regulator.error_costs, errors)) / self._horizon


class _Pair:
    """Acts on one estimator and adds up what it costs not to act on another."""

    def __init__(self, first: Estimator, second: Estimator, error_costs: FloatArray) -> None:
        self.first, self.second = first, second
        self.loss = 0.0
        self._error_costs = iter(error_costs)

    @property
    def mean(self) -> FloatArray:
        return self.first.mean

    def update(self, observation: npt.ArrayLike) -> None:
        self.first.update(observation)
        self.second.update(observation)
        off = self.first.mean - self.second.mean
        cost = np.einsum("ni,ij,nj->n", off, next(self._error_costs), off)
        self.loss += float(cost.mean())

    def predict(self, action: npt.ArrayLike) -> None:
        self.first.predict(action)
        self.second.predict(action)


def linear_model(task: LinearGaussian) -> LinearModel:
    """Return the dynamics and sensors of a task as the Kalman filter takes them."""
    return LinearModel(
        dynamics=task.dynamics,
        control=task.control,
        disturbance=task.disturbance @ task.disturbance.T,
        observation=task.observation,
        start=task.start @ task.start.T,
    )
