"""The posterior of one running episode, as figures show it, and the best known policy on it.

One interface over the filters and policies of this folder, for a single environment;
`doxastic.envs.references.episode_reference` has them by task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from doxastic.envs.batched import BatchedPOMDP, State

FloatArray = npt.NDArray[np.float64]


class Categorical(NamedTuple):
    """Posterior of a variable with few values."""

    name: str
    labels: tuple[str, ...]
    probability: FloatArray
    """Of each value, `[K]`."""

    truth: int
    """Index of the true value."""


class Moments(NamedTuple):
    """Posterior moments of one number, or of several of the same kind."""

    name: str
    labels: tuple[str, ...]
    mean: FloatArray
    """`[K]`."""

    deviation: FloatArray
    """Standard deviations, `[K]`."""

    truth: FloatArray
    """`[K]`."""


Marginal = Categorical | Moments


class EpisodeReference(ABC):
    """The posterior of one episode, and the best known policy on it.

    Call `first` with the observation of the reset, `following` with every action and the
    observation after it; they are the task's own, without the previous action.

    Args:
        task: The task; one of its noise levels, all equally likely before, is the episode's.

    Attributes:
        levels: The noise levels.
        is_exact: Whether the posterior is exact, or that of a linearised system.
    """

    is_exact = True

    def __init__(self, task: BatchedPOMDP) -> None:
        self.levels = np.array(task.noise)

    @abstractmethod
    def first(self, observation: npt.NDArray[Any]) -> None:
        """Take in the first observation."""

    @abstractmethod
    def following(self, action: Any, observation: npt.NDArray[Any]) -> None:
        """Take in an action and the observation that followed it."""

    @abstractmethod
    def act(self) -> Any:
        """Return what the best known policy on the posterior would do."""

    @abstractmethod
    def marginals(self, state: State) -> tuple[Marginal, ...]:
        """Return the posterior of every hidden variable, the noise level last.

        Args:
            state: The true state, of one environment, for the entries `truth`.
        """

    def noise_of(self, probability: FloatArray, state: State) -> Categorical:
        """Return the posterior of the noise level, given the levels' probabilities."""
        labels = tuple(f"{level:g}" for level in self.levels)
        truth = int(np.abs(self.levels - state["noise"][0]).argmin())
        return Categorical("noise", labels, probability, truth)
