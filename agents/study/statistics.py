"""Aggregates of normalised scores over runs and tasks, with bootstrap intervals.

The measures are those of Agarwal et al., "Deep reinforcement learning at the edge of the
statistical precipice" (2021), and of their library rliable. They are written out because tasks may
have different numbers of seeds, memories are paired by seed and by episode, and the noise of the
evaluation is to be in the intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from doxastic.agents.study.resampling import RESAMPLES, interval, resampled_means, tail_share
from doxastic.agents.study.returns import TaskReturns

FloatArray = npt.NDArray[np.floating]

ENOUGH_RUNS = 5
"""Of fewer runs an interval is said to exclude nothing."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic with its 95 % interval."""

    value: float
    """The statistic of the runs."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    runs: int
    """Number of runs it is over. No resampling of n runs leaves their range, which covers at most
    1 - 2^(1 - n): 75 % of three, 94 % of five."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero, and is one of about 95 %."""
        return self.runs >= ENOUGH_RUNS and (self.low > 0 or self.high < 0)


def interquartile_mean(scores: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the mean of the middle half of the scores, `[..., runs] -> [...]`.

    A run on the edge of the middle half counts with the part of its weight that lies inside, so
    that every number of runs has one; where a quarter of the runs is a whole number it is the
    mean trimmed by 25 % on each side.

    Args:
        scores: Scores of runs.
        weights: Weight `[runs]` of each; they add up to 1.
    """
    order = np.argsort(scores, axis=-1, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=-1)
    ends = np.cumsum(weights[order], axis=-1)
    starts = ends - weights[order]
    inside = np.clip(np.minimum(ends, 0.75) - np.maximum(starts, 0.25), 0.0, None)
    return (inside * ordered).sum(-1) / inside.sum(-1)


def optimality_gap(scores: FloatArray, weights: FloatArray) -> FloatArray:
    """Return by how much scores fall short of 1 on average, `[..., runs] -> [...]`.

    Runs above 1, better than the best policy known, do not make up for others.
    """
    return (np.clip(1.0 - scores, 0.0, None) * weights).sum(-1)


def improvement(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return P(first > second) + P(equal) / 2 over all pairs of runs, `[..., runs] -> [...]`."""
    above = first[..., :, None] - second[..., None, :]
    return ((above > 0) + 0.5 * (above == 0)).mean((-2, -1))


class Comparison:
    """Statistics of memories over the tasks of a study.

    Every statistic is taken from the same bootstrap samples, drawn once.

    Args:
        tasks: Returns by task.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
    """

    def __init__(
        self, tasks: Sequence[TaskReturns], *, resamples: int = RESAMPLES, seed: int = 0
    ) -> None:
        random = np.random.default_rng(seed)
        self.tasks = tuple(tasks)
        self._samples = {
            task.task: np.concatenate(
                (task.means[None].astype(np.float32), resampled_means(task, resamples, random))
            )
            for task in tasks
        }

    def returns(self, task: TaskReturns, memory: str, levels: FloatArray) -> Estimate:
        """Return the IQM over seeds of the mean return under weights `[levels]` of levels."""
        samples = self._samples[task.task][:, task.memories.index(memory)] @ levels
        seeds = len(task.seeds)
        return _estimate(interquartile_mean(samples, np.full(seeds, 1 / seeds)), [task])

    def tasks_of(self, measure: str, *memories: str) -> list[TaskReturns]:
        """Return the tasks that have the measure and all of the memories."""
        return [
            task
            for task in self.tasks
            if task.weights(measure) is not None and set(memories) <= set(task.memories)
        ]

    def tasks_with_best(self, measure: str, *memories: str) -> list[TaskReturns]:
        """Return those of `tasks_of` where the best policy under that noise is known."""
        tasks = self.tasks_of(measure, *memories)
        return [task for task in tasks if task.best_of(measure) is not None]

    def score(
        self, measure: str, memory: str, tasks: Sequence[TaskReturns] | None = None
    ) -> Estimate | None:
        """Return the IQM of the normalised scores of a memory, None if it has none."""
        return self._aggregate(interquartile_mean, measure, memory, tasks)

    def gap(self, measure: str, memory: str) -> Estimate | None:
        """Return the optimality gap of a memory, None if it has no scores."""
        return self._aggregate(optimality_gap, measure, memory, None)

    def difference(
        self, measure: str, first: str, second: str, tasks: Sequence[TaskReturns] | None = None
    ) -> Estimate | None:
        """Return the IQM over runs of the differences of two memories, paired by seed.

        In units of the normalised score; positive if the first is better.

        Args:
            measure: One of `MEASURES`.
            first: A memory.
            second: What it is compared with.
            tasks: Tasks to take; by default all that have both memories and the measure.
        """
        found = self.tasks_of(measure, first, second)
        found = [task for task in found if tasks is None or task in tasks]
        if not found:
            return None
        pairs = [self._scores(task, measure, first) for task in found]
        others = [self._scores(task, measure, second) for task in found]
        differences = [a - b for a, b in zip(pairs, others, strict=True)]
        weights = _weights(differences)
        value = interquartile_mean(np.concatenate(differences, axis=-1), weights)
        return _estimate(value, found)

    def improvement(self, measure: str, first: str, second: str) -> Estimate | None:
        """Return the probability that a run of the first beats one of the second, over tasks."""
        found = self.tasks_of(measure, first, second)
        if not found:
            return None
        by_task = [
            improvement(self._scores(task, measure, first), self._scores(task, measure, second))
            for task in found
        ]
        return _estimate(np.mean(by_task, axis=0), found)

    def profile(
        self, measure: str, memory: str, thresholds: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray] | None:
        """Return the share of runs above each threshold, with its interval, `[thresholds]` each."""
        found = self.tasks_with_best(measure, memory)
        if not found:
            return None
        shares = np.mean(
            [
                (self._scores(task, measure, memory)[..., None] > thresholds).mean(1)
                for task in found
            ],
            axis=0,
        )
        tail = tail_share(min(len(task.seeds) for task in found), len(found))
        low, high = np.quantile(shares[1:], [tail, 1 - tail], axis=0)
        return shares[0], low, high

    def _aggregate(
        self,
        statistic: Callable[[FloatArray, FloatArray], FloatArray],
        measure: str,
        memory: str,
        tasks: Sequence[TaskReturns] | None,
    ) -> Estimate | None:
        found = self.tasks_with_best(measure, memory)
        found = [task for task in found if tasks is None or task in tasks]
        if not found:
            return None
        scores = [self._scores(task, measure, memory) for task in found]
        weights = _weights(scores)
        return _estimate(statistic(np.concatenate(scores, axis=-1), weights), found)

    def _scores(self, task: TaskReturns, measure: str, memory: str) -> FloatArray:
        """Return scores of the runs, then of their samples, `[1 + resamples, runs]`."""
        samples = self._samples[task.task][:, task.memories.index(memory)]
        scores = task.normalized(samples, measure)
        assert scores is not None  # tasks_of leaves out those without the measure
        return scores


def _weights(scores: Sequence[FloatArray]) -> FloatArray:
    """Return the weight of every run: tasks count alike, whatever their number of seeds."""
    return np.concatenate(
        [np.full(task.shape[-1], 1 / (len(scores) * task.shape[-1])) for task in scores]
    )


def _estimate(samples: FloatArray, tasks: Sequence[TaskReturns]) -> Estimate:
    """Return the first entry with the interval of the others."""
    seeds = min(len(task.seeds) for task in tasks)
    low, high = interval(samples[1:], seeds, len(tasks))
    runs = sum(len(task.seeds) for task in tasks)
    return Estimate(value=float(samples[0]), low=low, high=high, runs=runs)
