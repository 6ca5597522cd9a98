"""Sample efficiency: the return reached after so many steps, over seeds, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """Environment steps `[points]`."""
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
    known = [(steps[np.isfinite(y)], y[np.isfinite(y)]) for steps, y in runs]
    if any(len(steps) == 0 for steps, _ in known):
        raise ValueError(f"A run of {memory} has no finite return to draw.")
    start = max(steps[0] for steps, _ in known)
    end = min(steps[-1] for steps, _ in known)
    if end < start:
        raise ValueError(f"The runs of {memory} have no steps in common.")
    grid = np.linspace(start, end, _POINTS)
    returns = np.stack([np.interp(grid, steps, y) for steps, y in known])  # [seeds, points]
    seeds = len(returns)
    drawn = np.random.default_rng(seed).integers(seeds, size=(RESAMPLES, seeds))
    weights = np.full(seeds, 1 / seeds)
    samples = interquartile_mean(np.moveaxis(returns[drawn], 1, -1), weights)  # [R, points]
    ends = np.array([interval(column, seeds) for column in samples.T])
    value = interquartile_mean(returns.T, weights)
    return Curve(memory=memory, steps=grid, value=value, low=ends[:, 0], high=ends[:, 1])


def steps_to(curve: Curve, target: float) -> float | None:
    """Return the first step from which the curve has reached a return, None if it never does."""
    reached = np.flatnonzero(curve.value >= target)
    return float(curve.steps[reached[0]]) if len(reached) else None
