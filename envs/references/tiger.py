"""Exact Bayes filter and optimal return of the tiger problem with a hidden accuracy.

Given the probability q of hearing the wrong side, d, the sounds from the right minus those from the
left in a round, is sufficient for where the tiger is:

    P(right | d, q) = 1 / (1 + (q / (1 - q))^d).

So the levels' posterior w, which lasts for the episode, and d make up the whole posterior, and
(t, |d|, w) is the state of the dynamic program: left and right are alike. The value is convex in w
and interpolated on a grid over the simplex, the only approximation, from above.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from doxastic.envs.references.belief_policy import BeliefFilter, BeliefPolicy, positive_levels
from doxastic.envs.references.sequential_test import FloatArray
from doxastic.envs.references.simplex_grid import SimplexGrid
from doxastic.envs.tasks.tiger import LISTEN, OPEN_LEFT, OPEN_RIGHT, SOUND_LEFT, SOUND_RIGHT, Tiger

IntArray = npt.NDArray[np.int64]


class TigerBelief(NamedTuple):
    """Sufficient statistics of N episodes."""

    steps: IntArray
    """Steps taken, `[N]`."""

    difference: IntArray
    """Sounds from the right minus sounds from the left in this round, `[N]`."""

    noise: FloatArray
    """P(noise = level), `[N, L]`."""


class TigerPosterior(NamedTuple):
    """Posterior of the hidden variables."""

    right: FloatArray
    """P(the tiger is on the right), `[N]`."""

    noise: FloatArray
    """P(noise = level), `[N, L]`."""


class TigerFilter(BeliefFilter[TigerBelief]):
    """The exact posterior of (side, noise level).

    Raises:
        ValueError: If a noise level is 0: two sounds that disagree would have no probability.
    """

    def __init__(self, task: Tiger) -> None:
        self._noise = positive_levels(task)

    def first(self, observations: npt.NDArray[Any]) -> TigerBelief:
        """Return the prior: a round starts in silence."""
        n = observations.shape[0]
        zero = np.zeros(n, dtype=np.int64)
        return TigerBelief(zero, zero, np.full((n, self._noise.size), 1 / self._noise.size))

    def following(
        self, belief: TigerBelief, actions: npt.NDArray[Any], observations: npt.NDArray[Any]
    ) -> TigerBelief:
        """Return the beliefs after a sound, or at the start of a round."""
        sound = (observations == SOUND_RIGHT).astype(np.int64) - (observations == SOUND_LEFT)
        ahead = np.abs(belief.difference)
        agrees = sound * np.where(belief.difference < 0, -1, 1) > 0
        on_leading_side = likelihood_ahead(ahead, self._noise)
        likelihood = np.where(agrees[:, None], on_leading_side, 1 - on_leading_side)
        weight = belief.noise * np.where((sound == 0)[:, None], 1.0, likelihood)
        difference = np.where(actions == LISTEN, belief.difference + sound, 0)
        return TigerBelief(belief.steps + 1, difference, weight / weight.sum(1, keepdims=True))

    def read(self, belief: TigerBelief) -> TigerPosterior:
        """Return P(right) and P(noise = level)."""
        leading = (belief.noise * side_ahead(np.abs(belief.difference), self._noise)).sum(1)
        return TigerPosterior(np.where(belief.difference < 0, 1 - leading, leading), belief.noise)


def side_ahead(ahead: IntArray, noise: FloatArray) -> FloatArray:
    """Return P(the tiger is where more sounds came from | they lead by `ahead`, noise).

    Of the shape of `ahead` with a trailing dimension of levels.
    """
    return np.asarray(1 / (1 + (noise / (1 - noise)) ** ahead[..., None]))


def likelihood_ahead(ahead: IntArray, noise: FloatArray) -> FloatArray:
    """Return P(the next sound comes from the leading side | it leads by `ahead`, noise)."""
    leading = side_ahead(ahead, noise)
    return np.asarray(leading * (1 - noise) + (1 - leading) * noise)


class TigerSolution(BeliefPolicy[TigerBelief]):
    """The optimal policy on the posterior.

    Attributes:
        value: Optimal expected return, from above by the error of the interpolation.
    """

    task: Tiger

    def __init__(self, task: Tiger, resolution: int | None = None) -> None:
        super().__init__(task, TigerFilter(task))
        self._listen_cost, self._treasure = task.listen_cost, task.treasure
        self._tiger_cost = task.tiger_cost
        self._noise = positive_levels(task)
        self._grid = SimplexGrid(self._noise.size, resolution)
        self._values = self._solve(task.horizon)
        start = self.filter.first(np.zeros(1))
        self.value = float(np.maximum(*self._gains(start))[0])

    def act(self, belief: TigerBelief) -> IntArray:
        """Return the optimal action of every belief."""
        listen, opened = self._gains(belief)
        other_door = np.where(belief.difference < 0, OPEN_RIGHT, OPEN_LEFT)
        return np.where(listen >= opened, LISTEN, other_door).astype(np.int64)

    def _gains(self, belief: TigerBelief) -> tuple[FloatArray, FloatArray]:
        """Return the values of listening and of opening the other door, `[N]` each."""
        ahead, later = np.abs(belief.difference), belief.steps + 1
        listen = self._listening(self._values, later, self._outcomes(ahead, belief.noise))
        index, share = self._grid.weights(belief.noise)
        following = (self._values[later[:, None], 0, index] * share).sum(1)
        return listen, self._reward(ahead, belief.noise) + following

    def _solve(self, horizon: int) -> FloatArray:
        """Return the values `[t, |d|, point]`, backwards over t."""
        points = self._grid.points
        values = np.zeros((horizon + 1, horizon + 1, len(points)))
        ahead, point = (axis.ravel() for axis in np.indices(values.shape[1:]))
        outcomes = self._outcomes(ahead, points[point])
        reward = self._reward(ahead, points[point])
        for t in reversed(range(horizon)):
            later = np.full(ahead.shape, t + 1)
            listen = self._listening(values, later, outcomes)
            opened = reward + values[t + 1, 0, point]
            values[t] = np.maximum(listen, opened).reshape(values.shape[1:])
        return values

    def _outcomes(self, ahead: IntArray, weights: FloatArray) -> list[_Outcome]:
        """Return what listening may lead to: the sounds agree more, or less."""
        likelihood = likelihood_ahead(ahead, self._noise)
        # A lead beyond the horizon is out of reach.
        more = np.minimum(ahead + 1, self.task.horizon)
        outcomes = []
        for sound, following in ((likelihood, more), (1 - likelihood, np.abs(ahead - 1))):
            joint = weights * sound
            probability = joint.sum(1)
            around = self._grid.weights(joint / probability[:, None])
            outcomes.append(_Outcome(probability, following, *around))
        return outcomes

    def _listening(
        self, values: FloatArray, later: IntArray, outcomes: list[_Outcome]
    ) -> FloatArray:
        """Return the value of listening, given the values of the steps `later`."""
        total = np.full(later.shape, -self._listen_cost)
        for outcome in outcomes:
            here = values[later[:, None], outcome.ahead[:, None], outcome.points]
            total += outcome.probability * (here * outcome.share).sum(1)
        return total

    def _reward(self, ahead: IntArray, weights: FloatArray) -> FloatArray:
        """Return the expected reward of opening the other door."""
        safe = (weights * side_ahead(ahead, self._noise)).sum(1)
        return np.asarray(safe * self._treasure - (1 - safe) * self._tiger_cost)


class _Outcome(NamedTuple):
    """One of two sounds, for every state: how likely it is, and what it leads to."""

    probability: FloatArray
    ahead: IntArray
    points: IntArray
    """Grid points around the levels' posterior, `[..., L]`."""

    share: FloatArray
    """Their weights, `[..., L]`."""


def solve_tiger(task: Tiger, *, resolution: int | None = None) -> TigerSolution:
    """Return the optimal policy and return of a tiger problem; remembered per task.

    With a single level this is the optimum of an agent that is told its accuracy.

    Args:
        task: The problem; every noise level must be positive.
        resolution: Steps per edge of the grid over the levels' posterior.

    Raises:
        ValueError: If a noise level is 0.
    """
    costs = task.listen_cost, task.treasure, task.tiger_cost
    return _solve(*costs, task.horizon, task.noise, resolution)


@lru_cache(maxsize=32)
def _solve(
    listen_cost: float,
    treasure: float,
    tiger_cost: float,
    horizon: int,
    noise: tuple[float, ...],
    resolution: int | None,
) -> TigerSolution:
    task = Tiger(
        listen_cost=listen_cost,
        treasure=treasure,
        tiger_cost=tiger_cost,
        horizon=horizon,
        noise=noise,
    )
    return TigerSolution(task, resolution)
