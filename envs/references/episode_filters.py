"""Posteriors of one episode from the filters over discrete variables and known statistics."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from doxastic.envs.batched import BatchedPOMDP, State
from doxastic.envs.references.bandit_policy import solve_bandit
from doxastic.envs.references.belief_policy import BeliefFilter, BeliefPolicy
from doxastic.envs.references.episode import Categorical, EpisodeReference, Marginal, Moments
from doxastic.envs.references.light_dark_policy import LightDarkPolicy
from doxastic.envs.references.repeat_first import repeat_first_posterior
from doxastic.envs.references.sequential_test import (
    sequential_test_posterior,
    solve_sequential_test,
)
from doxastic.envs.references.tiger import solve_tiger
from doxastic.envs.tasks.cards import KINDS
from doxastic.envs.tasks.light_dark import LightDark
from doxastic.envs.tasks.noisy_bandit import NoisyBandit
from doxastic.envs.tasks.repeat_first import RepeatFirst
from doxastic.envs.tasks.sequential_test import SequentialTest
from doxastic.envs.tasks.tiger import Tiger


class FilteredReference(EpisodeReference):
    """Reads a `BeliefFilter`; the policy is made when it first acts."""

    def __init__(self, task: BatchedPOMDP, belief_filter: BeliefFilter[Any]) -> None:
        super().__init__(task)
        self.task, self.filter = task, belief_filter
        self._belief: Any = None

    def first(self, observation: npt.NDArray[Any]) -> None:
        """Take in the first observation."""
        self._belief = self.filter.first(np.asarray(observation)[None])

    def following(self, action: Any, observation: npt.NDArray[Any]) -> None:
        """Take in an action and the observation that followed it."""
        rows = np.asarray(action)[None], np.asarray(observation)[None]
        self._belief = self.filter.following(self._belief, *rows)

    def act(self) -> Any:
        """Return what the best known policy on the posterior would do."""
        space = self.task.action_space
        return self.policy.act(self._belief)[0].astype(space.dtype)

    @cached_property
    def policy(self) -> BeliefPolicy[Any]:
        """The best known policy on the posterior."""
        return self._solve()

    @abstractmethod
    def _solve(self) -> BeliefPolicy[Any]: ...


class TigerReference(FilteredReference):
    """`Tiger`: which door the tiger is behind, from the exact filter."""

    task: Tiger

    def _solve(self) -> BeliefPolicy[Any]:
        return solve_tiger(self.task)

    def marginals(self, state: State) -> tuple[Marginal, ...]:
        """Return the posterior of where the tiger is, and of the noise."""
        posterior = self.filter.read(self._belief)
        right = float(posterior.right[0])
        truth = int(state["tiger"][0] > 0)
        side = Categorical("tiger", ("left", "right"), np.array([1 - right, right]), truth)
        return side, self.noise_of(posterior.noise[0], state)


class LightDarkReference(FilteredReference):
    """`LightDark`: the unknown coordinate, from the exact filter."""

    task: LightDark

    def _solve(self) -> BeliefPolicy[Any]:
        return LightDarkPolicy(self.task)

    def marginals(self, state: State) -> tuple[Marginal, ...]:
        """Return the posterior of y, and of the noise."""
        posterior = self.filter.read(self._belief)
        y = state["position"][:1, 1]
        moments = Moments("y", ("y",), posterior.mean, np.sqrt(posterior.variance), y)
        return moments, self.noise_of(posterior.noise[0], state)


class BanditReference(FilteredReference):
    """`NoisyBandit`: what the arms are worth, from the exact filter."""

    task: NoisyBandit

    def _solve(self) -> BeliefPolicy[Any]:
        return solve_bandit(self.task)

    def marginals(self, state: State) -> tuple[Marginal, ...]:
        """Return the posterior of the arms' means, and of the noise."""
        posterior = self.filter.read(self._belief)
        labels = tuple(str(arm) for arm in range(self.task.arms))
        deviation = np.sqrt(posterior.variance[0])
        means = Moments("mean of the arm", labels, posterior.mean[0], deviation, state["means"][0])
        return means, self.noise_of(posterior.noise[0], state)


class SequentialTestReference(EpisodeReference):
    """`SequentialTest`: the sign, from all observations of the episode."""

    def __init__(self, task: SequentialTest) -> None:
        super().__init__(task)
        self.task = task
        self._seen: list[float] = []

    def first(self, observation: npt.NDArray[Any]) -> None:
        """Take in the first observation."""
        self._seen = [float(observation[0])]

    def following(self, action: Any, observation: npt.NDArray[Any]) -> None:
        """Take in an action and the observation that followed it."""
        self._seen.append(float(observation[0]))

    def act(self) -> Any:
        """Return what the best known policy on the posterior would do."""
        solution = solve_sequential_test(self.task)
        n, total, squares = self._statistics()
        return solution.policy(n, np.array([total]), np.array([squares]))[0]

    def marginals(self, state: State) -> tuple[Marginal, ...]:
        """Return the posterior of the sign, and of the noise."""
        posterior = sequential_test_posterior(*self._statistics(), self.task.noise)
        right, truth = float(posterior.right), int(state["sign"][0] > 0)
        sign = Categorical("sign", ("-1", "+1"), np.array([1 - right, right]), truth)
        return sign, self.noise_of(posterior.noise, state)

    def _statistics(self) -> tuple[int, float, float]:
        o = np.array(self._seen)
        return o.size, float(o.sum()), float((o * o).sum())


class RepeatFirstReference(EpisodeReference):
    """`RepeatFirst` with one deck: the first suit, from what was seen of the others."""

    def __init__(self, task: RepeatFirst) -> None:
        super().__init__(task)
        self._first, self._counts = 0, np.zeros(KINDS["suits"], dtype=np.int64)

    def first(self, observation: npt.NDArray[Any]) -> None:
        """Take in the first observation."""
        self._first, self._counts = int(observation), np.zeros_like(self._counts)

    def following(self, action: Any, observation: npt.NDArray[Any]) -> None:
        """Take in an action and the observation that followed it."""
        self._counts[int(observation)] += 1

    def act(self) -> Any:
        """Return what the best known policy on the posterior would do."""
        return np.int64(self._posterior().suit[0].argmax())

    def marginals(self, state: State) -> tuple[Marginal, ...]:
        """Return the posterior of the first suit, and of the noise."""
        posterior = self._posterior()
        labels = ("spades", "diamonds", "clubs", "hearts")
        suit = Categorical("first suit", labels, posterior.suit[0], int(state["suits"][0, 0]))
        return suit, self.noise_of(posterior.noise[0], state)

    def _posterior(self) -> Any:
        return repeat_first_posterior([self._first], self._counts[None], tuple(self.levels))
