"""The exact posterior of the sequential test as a filter over N episodes at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from doxastic.envs.references.belief_policy import BeliefFilter, positive_levels
from doxastic.envs.references.sequential_test import (
    FloatArray,
    Posterior,
    sequential_test_posterior,
)
from doxastic.envs.tasks.sequential_test import SequentialTest


class SequentialTestBelief(NamedTuple):
    """Sufficient statistics of N episodes, each `[N]`."""

    readings: FloatArray
    """Number of observations."""

    total: FloatArray
    """Their sum."""

    squares: FloatArray
    """The sum of their squares."""


class SequentialTestFilter(BeliefFilter[SequentialTestBelief]):
    """The exact posterior of (sign, noise level).

    Raises:
        ValueError: If a noise level is 0.
    """

    def __init__(self, task: SequentialTest) -> None:
        self._noise = tuple(positive_levels(task))

    def first(self, observations: npt.NDArray[Any]) -> SequentialTestBelief:
        """Return the beliefs after the first observations."""
        o = np.asarray(observations[:, 0], dtype=np.float64)
        return SequentialTestBelief(np.ones(o.size), o, o * o)

    def following(
        self,
        belief: SequentialTestBelief,
        actions: npt.NDArray[Any],
        observations: npt.NDArray[Any],
    ) -> SequentialTestBelief:
        """Return the beliefs after a further observation, whatever was done."""
        o = np.asarray(observations[:, 0], dtype=np.float64)
        return SequentialTestBelief(belief.readings + 1, belief.total + o, belief.squares + o * o)

    def read(self, belief: SequentialTestBelief) -> Posterior:
        """Return P(s = +1) and P(sigma = level)."""
        return sequential_test_posterior(*belief, self._noise)
