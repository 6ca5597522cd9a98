"""The test returns of all memories on one task, and the measures of them that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]

MEASURES = ("mixture", "hardest", "held-out")
"""What agents are compared by: the mean over the levels of training, the hardest of these, and the
mean over the levels beyond it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskReturns:
    """Test returns on one task; a column of episodes is the same episode for all agents."""

    task: str
    """Name of the task."""

    memories: tuple[str, ...]
    """Names of the memories."""

    seeds: tuple[int, ...]
    """Seeds of training, the same for all memories."""

    levels: tuple[float | None, ...]
    """Noise levels; None for the environment's own noise."""

    trained: tuple[float, ...]
    """Levels that agents were trained on; empty for the environment's own noise."""

    returns: npt.NDArray[np.float32]
    """Returns `[memories, seeds, levels, episodes]`."""

    random: float
    """Return of random actions."""

    best: tuple[float, ...]
    """Return of the best policy known at each level."""

    best_mixture: float
    """Return of the best policy known over the levels of training."""

    has_best_levels: bool = True
    """Whether `best` is known level by level; if not, it repeats `best_mixture`."""

    def __post_init__(self) -> None:
        """Raise `ValueError` if the shapes do not belong together."""
        shape = (len(self.memories), len(self.seeds), len(self.levels))
        if self.returns.ndim != 4 or self.returns.shape[:3] != shape:
            raise ValueError(
                f"returns of {self.task} has shape {list(self.returns.shape)}; expected "
                f"[memories, seeds, levels, episodes] = [{', '.join(map(str, shape))}, episodes]."
            )
        if self.best_mixture <= self.random:
            raise ValueError(
                f"The best known return of {self.task}, {self.best_mixture:.3f}, is not above that "
                f"of random actions, {self.random:.3f}; returns cannot be normalised. Correct best."
            )

    @cached_property
    def means(self) -> npt.NDArray[np.float64]:
        """Mean returns over episodes, `[memories, seeds, levels]`."""
        return self.returns.mean(3, dtype=np.float64)

    @property
    def scale(self) -> float:
        """What returns are divided by: the range from random actions to the best policy known."""
        return self.best_mixture - self.random

    def weights(self, measure: str) -> npt.NDArray[np.float64] | None:
        """Return the weight `[levels]` of every level in a measure, None if it has no levels."""
        levels = np.array([np.nan if level is None else level for level in self.levels])
        seen = np.isin(levels, self.trained) if self.trained else np.ones(len(levels), bool)
        if measure == "mixture":
            chosen = seen
        elif not self.trained:
            return None
        elif measure == "hardest":
            chosen = levels == max(self.trained) if len(self.trained) > 1 else np.zeros_like(seen)
        else:
            chosen = levels > max(self.trained)
        return chosen / chosen.sum() if chosen.any() else None

    def best_of(self, measure: str) -> float | None:
        """Return the return of the best policy known in a measure.

        None if the measure has no levels, or that return is known over the mixture only.
        """
        weights = self.weights(measure)
        if weights is None or (measure != "mixture" and not self.has_best_levels):
            return None
        return self.best_mixture if measure == "mixture" else float(weights @ np.array(self.best))

    def normalized(self, values: FloatArray, measure: str) -> npt.NDArray[np.float64] | None:
        """Return scores `[..., levels] -> [...]`: 1 is the best policy known under this noise.

        `1 - (best - return) / (best over the mixture - random)`: the unit is the same for every
        measure of a task, the return that there is to be had by acting well on the mixture.
        For the mixture itself random actions are 0. Where the best is not known under this noise,
        it is that over the mixture: of such scores the differences mean something, no more.
        """
        weights, best = self.weights(measure), self.best_of(measure)
        if weights is None:
            return None
        if best is None:
            best = self.best_mixture
        return np.asarray(1.0 - (best - values @ weights) / self.scale, np.float64)


def common_memories(tasks: Sequence[TaskReturns]) -> list[str]:
    """Return all memories of the tasks, in the order of their first appearance."""
    return list(dict.fromkeys(name for task in tasks for name in task.memories))
