"""Sample efficiency: the return reached after so many steps, over seeds, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from doxastic.agents.study.resampling import RESAMPLES, interval
from doxastic.agents.study.statistics import interquartile_mean

FloatArray = npt.NDArray[np.floating]
_POINTS = 60


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The IQM over seeds of the return in training, with its 95 % interval."""

    memory: str
    """Name of the memory."""
    steps: FloatArray
    """Environment steps `[points]`; over several tasks, shares of each one's steps."""
    value: FloatArray
    """IQM at each."""
    low: FloatArray
    """Lower ends."""
    high: FloatArray
    """Upper ends."""


def efficiency_curve(
    memory: str, runs: Sequence[tuple[FloatArray, FloatArray]], *, seed: int = 0
) -> Curve:
    """Return the curve of several runs, interpolated to common steps, bootstrapped over seeds.

    Args:
        memory: Name of the memory.
        runs: Steps and returns `[updates]` of every seed, NaN where nothing was known yet.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If the runs have no steps in common.
    """
    known = [_known(memory, run) for run in runs]
    start = max(steps[0] for steps, _ in known)
    end = min(steps[-1] for steps, _ in known)
    if end < start:
        raise ValueError(f"The runs of {memory} have no steps in common.")
    grid = np.linspace(start, end, _POINTS)
    returns = np.stack([np.interp(grid, steps, y) for steps, y in known])  # [seeds, points]
    return _over_runs(memory, grid, [returns], seed)


class TaskRuns(NamedTuple):
    """The runs of a memory on one task, and what their returns are measured by."""

    runs: Sequence[tuple[FloatArray, FloatArray]]
    """Steps and returns `[updates]` of every seed."""
    best: float
    """Return of the best policy known."""
    scale: float
    """Range from the return of random actions to the best."""


def suite_curve(memory: str, tasks: Sequence[TaskRuns], *, seed: int = 0) -> Curve:
    """Return the curve of the score `1 - (best - return) / scale` over several tasks.

    Over the share of each task's steps, tasks weighing alike; seeds are drawn again within tasks.

    Args:
        memory: Name of the memory.
        tasks: Its runs on every task.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If a run has no finite return.
    """
    known = [[_known(memory, run) for run in task.runs] for task in tasks]
    start = max(steps[0] / steps[-1] for runs in known for steps, _ in runs)
    grid = np.linspace(start, 1.0, _POINTS)
    scores = [
        1 - (task.best - np.stack([np.interp(grid, x / x[-1], y) for x, y in runs])) / task.scale
        for task, runs in zip(tasks, known, strict=True)
    ]
    return _over_runs(memory, grid, scores, seed)


def _known(memory: str, run: tuple[FloatArray, FloatArray]) -> tuple[FloatArray, FloatArray]:
    """Return steps and returns without those that are not finite."""
    steps, values = run
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError(f"A run of {memory} has no finite return to draw.")
    return steps[finite], values[finite]


def _over_runs(memory: str, grid: FloatArray, tasks: Sequence[FloatArray], seed: int) -> Curve:
    """Return the IQM of the values `[seeds, points]` of every task, with its interval."""
    random = np.random.default_rng(seed)
    counts = [len(values) for values in tasks]
    weights = np.concatenate([np.full(n, 1 / (len(tasks) * n)) for n in counts])
    again = np.concatenate(
        [
            values[random.integers(n, size=(RESAMPLES, n))]
            for values, n in zip(tasks, counts, strict=True)
        ],
        axis=1,
    )
    samples = interquartile_mean(np.moveaxis(again, 1, -1), weights)  # [R, points]
    ends = np.array([interval(column, min(counts), len(tasks)) for column in samples.T])
    value = interquartile_mean(np.concatenate(tasks).T, weights)
    return Curve(memory=memory, steps=grid, value=value, low=ends[:, 0], high=ends[:, 1])


def steps_to(curve: Curve, target: float) -> float | None:
    """Return the first step from which the curve has reached a return, None if it never does."""
    reached = np.flatnonzero(curve.value >= target)
    return float(curve.steps[reached[0]]) if len(reached) else None
