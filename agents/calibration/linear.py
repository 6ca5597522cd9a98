"""Linear maps: closed-form ridge regression, cross-validated over whole episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

FOLDS = 3
# Of the squared weights of standardised inputs, beside the mean squared error of a step.
RIDGE_PENALTIES = tuple(10.0**k for k in range(-7, 2))


class Linear(NamedTuple):
    """A linear map of inputs `[S, D]` to outputs `[S, K]`."""

    weight: FloatArray
    """`[D, K]`."""

    bias: FloatArray
    """`[K]`."""

    def __call__(self, x: Array) -> FloatArray:
        """Return the outputs."""
        return np.asarray(x @ self.weight + self.bias)


class Standard(NamedTuple):
    """Mean and deviation of the columns of some inputs."""

    mean: FloatArray
    deviation: FloatArray

    def __call__(self, x: Array) -> FloatArray:
        """Return the inputs in these units."""
        return np.asarray((x - self.mean) / self.deviation)


def standard_of(x: Array) -> Standard:
    """Return mean and deviation of the columns `[S, D]`; 1 for the deviation of a constant."""
    x = np.asarray(x, dtype=np.float64)
    deviation = x.std(0)
    return Standard(x.mean(0), np.where(deviation > 1e-9 * np.abs(x).max(0), deviation, 1.0))


def fit_ridge(
    x: Array, y: Array, episodes: Array, penalties: Sequence[float] = RIDGE_PENALTIES
) -> Linear:
    """Return the linear map of least penalised squared error, in closed form.

    With standardised inputs X, the weights are (X'X / S + penalty)^-1 X'Y / S, in units of `x`.

    Args:
        x: Inputs `[S, D]`.
        y: Targets `[S, K]`.
        episodes: Number of each step's episode, `[S]`: a fold holds whole ones.
        penalties: What to choose from.

    Raises:
        ValueError: If there are fewer episodes than folds.
    """
    unit = standard_of(x)
    z, center = unit(x), y.mean(0)
    target = y - center
    folds = folds_of(episodes)
    moments = [(z[f].T @ z[f], z[f].T @ target[f], int(f.sum())) for f in folds]
    gram, cross, count = (sum(part) for part in zip(*moments, strict=True))
    errors = np.zeros(len(penalties))
    for fold, (own_gram, own_cross, own_count) in zip(folds, moments, strict=True):
        held_out = z[fold], target[fold]
        rest = gram - own_gram, cross - own_cross, count - own_count
        for i, weight in enumerate(_ridge_weights(*rest, penalties)):
            errors[i] += ((held_out[1] - held_out[0] @ weight) ** 2).sum()
    (weight,) = _ridge_weights(gram, cross, count, [penalties[int(errors.argmin())]])
    weight = weight / unit.deviation[:, None]
    return Linear(weight, center - unit.mean @ weight)


def folds_of(episodes: Array, count: int = FOLDS) -> list[Array]:
    """Return masks `[S]` that part the episodes into `count` folds of nearly equal size.

    Raises:
        ValueError: If there are fewer episodes than folds.
    """
    numbers = np.unique(episodes)
    if len(numbers) < count:
        raise ValueError(
            f"a probe is to be fitted to {len(numbers)} episodes; expected at least {count}, one "
            "for each fold of its cross-validation. Collect more episodes."
        )
    fold = np.searchsorted(numbers, episodes) % count
    return [fold == k for k in range(count)]


def _ridge_weights(
    gram: Any, cross: Any, count: Any, penalties: Sequence[float]
) -> list[FloatArray]:
    """Return the weights `[D, K]` for every penalty, from one decomposition."""
    values, vectors = np.linalg.eigh(gram / count)
    rotated = vectors.T @ cross / count
    return [
        vectors @ (rotated / (np.maximum(values, 0.0) + penalty)[:, None]) for penalty in penalties
    ]


def principal_axes(x: Array) -> Linear:
    """Return the map of inputs `[S, D]` to their standardised, uncorrelated components."""
    unit = standard_of(x)
    z = unit(x)
    vectors = np.linalg.eigh(z.T @ z / len(z))[1]
    weight = vectors / unit.deviation[:, None]
    return Linear(weight, -unit.mean @ weight)
