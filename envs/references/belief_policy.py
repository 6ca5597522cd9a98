"""What the exact filters and the policies on them have in common."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from doxastic.envs.batched import BatchedPOMDP, NumpyRandom
from doxastic.envs.references.sequential_test import FloatArray, Returns

# A NamedTuple of statistics, each with the leading dimension N.
Belief = TypeVar("Belief", bound=tuple[Any, ...])

# What the value of a policy is simulated with, where it is not computed.
_EPISODES_PER_LEVEL = 40_000
_SEED = 2010


class BeliefFilter(ABC, Generic[Belief]):
    """The exact posterior of a task's hidden variables, for N environments at once.

    A belief holds statistics that are sufficient for the posterior; `first` and `following` are
    pure. Observations and actions are the task's own, without the previous action beside them.
    """

    @abstractmethod
    def first(self, observations: npt.NDArray[Any]) -> Belief:
        """Return the beliefs after the first observations of N episodes."""

    @abstractmethod
    def following(
        self, belief: Belief, actions: npt.NDArray[Any], observations: npt.NDArray[Any]
    ) -> Belief:
        """Return the beliefs after N further actions and the observations that followed them."""

    @abstractmethod
    def read(self, belief: Belief) -> Any:
        """Return the posterior of N beliefs, a NamedTuple of arrays with leading dimension N."""

    def posterior(self, observations: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Any:
        """Return the posterior after every observation of N episodes, `[N, T + 1, ...]`.

        Args:
            observations: Observations, the one of the reset included, `[N, T + 1, ...]`.
            actions: The actions between them, `[N, T, ...]`.

        Raises:
            ValueError: If there is not one observation more than there are actions.
        """
        if observations.shape[:2] != (actions.shape[0], actions.shape[1] + 1):
            raise ValueError(
                f"observations has shape {observations.shape} and actions {actions.shape}; "
                "expected [N, T + 1, ...] and [N, T, ...]: the reset's observation comes first."
            )
        belief = self.first(observations[:, 0])
        posteriors = [self.read(belief)]
        for t in range(actions.shape[1]):
            belief = self.following(belief, actions[:, t], observations[:, t + 1])
            posteriors.append(self.read(belief))
        return type(posteriors[0])(
            *(np.stack(field, axis=1) for field in zip(*posteriors, strict=True))
        )


class BeliefPolicy(ABC, Generic[Belief]):
    """A policy on the beliefs of a filter, and what it is worth.

    Args:
        task: The task it acts in; every episode of it ends with a termination.
        belief_filter: The filter whose beliefs it reads.

    Attributes:
        task: The task it acts in.
        filter: The filter whose beliefs it reads.
    """

    def __init__(self, task: BatchedPOMDP, belief_filter: BeliefFilter[Belief]) -> None:
        self.task = task
        self.filter = belief_filter

    @abstractmethod
    def act(self, belief: Belief) -> npt.NDArray[Any]:
        """Return the actions of N beliefs, elements of the task's action space."""

    @cached_property
    def value(self) -> float:
        """Expected return under the task's own distribution of noise levels.

        Simulated with 40,000 episodes per level, unless a subclass computes it.
        """
        return float(self.returns(self.task.noise, _EPISODES_PER_LEVEL, _SEED).mean.mean())

    def returns(self, noise: Sequence[float], episodes: int, seed: int) -> Returns:
        """Return the policy's mean return in the real environment at each noise level.

        Args:
            noise: Levels to play at, also others than those it was made for.
            episodes: Episodes per level, played all at once.
            seed: Seed of the environments; levels meet the same draws.
        """
        outcomes = np.stack([self._play(level, episodes, seed) for level in noise])
        return Returns(outcomes.mean(1), outcomes.std(1, ddof=1) / np.sqrt(episodes))

    def _play(self, level: float, episodes: int, seed: int) -> FloatArray:
        """Return the returns `[episodes]` of episodes at one noise level."""
        task = copy.copy(self.task)
        task.noise = (level,)
        random = NumpyRandom(np.random.default_rng(seed))
        state = task.reset(episodes, random)
        belief = self.filter.first(task.observe(state, random))
        outcome, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
        while True:
            chosen = self.act(type(belief)(*(statistic[running] for statistic in belief)))
            action = np.zeros((episodes, *chosen.shape[1:]), dtype=chosen.dtype)
            action[running] = chosen
            state, reward, ended = task.step(state, action, random)
            outcome += reward * running
            running &= ~ended
            if not running.any():
                return outcome
            belief = self.filter.following(belief, action, task.observe(state, random))


def positive_levels(task: BatchedPOMDP) -> FloatArray:
    """Return the task's noise levels as an array `[L]`.

    Raises:
        ValueError: If one is 0, for which no likelihood exists.
    """
    if min(task.noise) <= 0:
        raise ValueError(
            f"noise is {task.noise}; the exact filter of {type(task).__name__} needs positive "
            "levels. Leave 0 out, or put a small level in its place."
        )
    return np.array(task.noise)
