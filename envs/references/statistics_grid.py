"""A grid over (|m|, v), the mean and the spread of the observations of a sequential test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit

# Components with less posterior weight than this do not move the value.
_NEGLIGIBLE = 1e-12


class StatisticsGrid:
    """Grid over (|m|, v): asinh spacing of the mean, logarithmic spacing of the spread."""

    def __init__(self, noise: Sequence[float], means: int, spreads: int) -> None:
        reach = 6 * max(noise)
        self.mean_unit = 0.1
        self.spread_unit = 0.02 * min(noise) ** 2
        self.mean_step = np.arcsinh((1 + reach) / self.mean_unit) / (means - 1)
        self.spread_step = np.log1p(reach**2 / self.spread_unit) / (spreads - 1)
        self.mean = self.mean_unit * np.sinh(self.mean_step * np.arange(means))
        self.spread = self.spread_unit * np.expm1(self.spread_step * np.arange(spreads))

    @property
    def scales(self) -> tuple[float, float, float, float]:
        """Units and steps of both axes, as the compiled functions take them."""
        return self.mean_unit, float(self.mean_step), self.spread_unit, float(self.spread_step)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _cell(x: float, unit: float, step: float, size: int, mean: bool) -> tuple[int, float]:
    """Return the grid cell of a coordinate and the position in it, in [0, 1]."""
    position = (np.arcsinh(x / unit) if mean else np.log1p(x / unit)) / step
    index = min(int(position), size - 2)
    return index, min(position - index, 1.0)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _blend(table: Any, i: int, j: int, x: float, y: float) -> Any:
    low = (1 - y) * table[i, j] + y * table[i, j + 1]
    high = (1 - y) * table[i + 1, j] + y * table[i + 1, j + 1]
    return (1 - x) * low + x * high


@njit(cache=True)  # type: ignore[untyped-decorator]
def interpolated(
    mean: Any,
    spread: Any,
    table: Any,
    mean_unit: float,
    mean_step: float,
    spread_unit: float,
    spread_step: float,
) -> Any:
    """Return the bilinear interpolation of `table` at every (|m|, v)."""
    out = np.empty(mean.size)
    for k in range(mean.size):
        i, x = _cell(abs(mean[k]), mean_unit, mean_step, table.shape[0], True)
        j, y = _cell(spread[k], spread_unit, spread_step, table.shape[1], False)
        out[k] = _blend(table, i, j, x, y)
    return out


@njit(cache=True)  # type: ignore[untyped-decorator]
def expectation(
    n: int,
    means: Any,
    spreads: Any,
    weights: Any,
    noise: Any,
    points: Any,
    masses: Any,
    tables: Any,
    mean_unit: float,
    mean_step: float,
    spread_unit: float,
    spread_step: float,
) -> Any:
    """Return E[max(answering, waiting)] after one more observation, at every grid point.

    Interpolating the two smooth tables, not their maximum, keeps its kink sharp.
    """
    out = np.zeros((means.size, spreads.size))
    for a in range(means.size):
        for b in range(spreads.size):
            for s in range(2):
                for k in range(noise.size):
                    weight = weights[a, b, s, k]
                    if weight < _NEGLIGIBLE:
                        continue
                    for q in range(points.size):
                        o = 1.0 - 2.0 * s + noise[k] * points[q]
                        mean = (n * means[a] + o) / (n + 1)
                        spread = (n * spreads[b] + (o - means[a]) * (o - mean)) / (n + 1)
                        i, x = _cell(abs(mean), mean_unit, mean_step, means.size, True)
                        j, y = _cell(spread, spread_unit, spread_step, spreads.size, False)
                        answering = _blend(tables[0], i, j, x, y)
                        waiting = _blend(tables[1], i, j, x, y)
                        out[a, b] += weight * masses[q] * max(answering, waiting)
    return out
