"""How good a probabilistic prediction is, with intervals over episodes.

Steps of one episode hang together, so a bootstrap draws episodes. Every measure is a function of
sums over the steps of an episode, and a resample is a weighted sum of those: `Sums` holds them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

BINS = 15
CONFIDENCE = 0.95
RESAMPLES = 1000
# Of a predicted distribution function, for the calibration of numbers.
QUANTILES = np.arange(0.05, 0.96, 0.05)
# Entries of a block of resamples at once.
_BLOCK = 2**21


class Estimate(NamedTuple):
    """A number with its 95 % interval over episodes; NaN where there is none."""

    value: float
    low: float
    high: float


UNKNOWN = Estimate(np.nan, np.nan, np.nan)


class Curve(NamedTuple):
    """What was observed against what was predicted, with intervals."""

    predicted: FloatArray
    observed: FloatArray
    low: FloatArray
    high: FloatArray


def episode_sums(columns: Array, episodes: Array) -> FloatArray:
    """Return the sums of `columns` `[S, D]` over the steps of every episode, `[E, D]`."""
    _, index = np.unique(episodes, return_inverse=True)
    sums = [np.bincount(index, weights=column) for column in columns.T]
    return np.stack(sums, axis=1)


def resampled(
    sums: FloatArray, statistic: Callable[[Array], Array], *, seed: int = 0
) -> FloatArray:
    """Return a statistic of bootstrap resamples of the episodes, `[R, ...]`.

    Args:
        sums: Sums of every episode, `[E, D]`.
        statistic: From the sums of all episodes `[R, D]` to the statistic `[R, ...]`.
        seed: Seed of the resamples.
    """
    count = len(sums)
    block = max(1, min(RESAMPLES, _BLOCK // count))
    sizes = [min(block, RESAMPLES - first) for first in range(0, RESAMPLES, block)]
    # A resample may hold no step of a bin.
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = [statistic(_weights(count, n, (seed, i)) @ sums) for i, n in enumerate(sizes)]
    return np.concatenate(parts)


# Most measures are of the same number of episodes: they share their resamples.
@lru_cache(maxsize=4)
def _weights(count: int, size: int, seed: tuple[int, int]) -> FloatArray:
    """Return how often each of `count` episodes is in each of `size` resamples."""
    drawn = np.random.default_rng(seed).integers(count, size=(size, count))
    drawn += count * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(float)


def estimate(sums: FloatArray, statistic: Callable[[Array], Array]) -> Estimate:
    """Return a statistic of the sums `[E, D]` of every episode with its percentile interval."""
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(sums.sum(0, keepdims=True))[0])
        if not np.isfinite(value):
            return UNKNOWN
        draws = resampled(sums, statistic)
    return Estimate(value, *_percentiles(draws[np.isfinite(draws)]))


def mean_estimate(values: Array, episodes: Array) -> Estimate:
    """Return the mean of `values` `[S]` over steps."""
    columns = np.stack([values, np.ones(len(values))], axis=1)
    return estimate(episode_sums(columns, episodes), lambda s: s[:, 0] / s[:, 1])


def explained_variance(y: Array, predicted: Array, episodes: Array) -> Estimate:
    """Return R^2 = 1 - squared error / squared distance from the mean, of `[S, K]` targets."""
    size = y.shape[1]
    squares = ((y - predicted) ** 2).sum(1, keepdims=True), (y**2).sum(1, keepdims=True)
    columns = np.concatenate([np.ones((len(y), 1)), *squares, y], axis=1)

    def statistic(s: Array) -> Array:
        count, error, square = s[:, 0], s[:, 1], s[:, 2]
        spread = square - (s[:, 3 : 3 + size] ** 2).sum(1) / count
        # Rounding leaves a little of the spread of what is constant.
        return 1 - error / np.where(spread > 1e-9 * np.maximum(square, 1e-30), spread, np.nan)

    return estimate(episode_sums(columns, episodes), statistic)


def rank_correlation(a: Array, b: Array, episodes: Array) -> Estimate:
    """Return Spearman's correlation of `a` and `b` `[S]`; unknown where one is constant.

    The ranks are those in all steps, in every resample.
    """
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return UNKNOWN
    # Centred and scaled, so that the sums of squares lose no digits.
    x, y = (rankdata(values) / len(values) - 0.5 for values in (a, b))
    columns = np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)

    def statistic(s: Array) -> Array:
        n, sx, sy, sxx, syy, sxy = s.T
        return (n * sxy - sx * sy) / np.sqrt((n * sxx - sx**2) * (n * syy - sy**2))

    return estimate(episode_sums(columns, episodes), statistic)


def coverage(y: Array, mean: Array, variance: Array, episodes: Array) -> Estimate:
    """Return the share of `y` `[S]` within two deviations of the mean, .954 if Gaussian."""
    return mean_estimate((np.abs(y - mean) <= 2 * np.sqrt(variance)).astype(np.float64), episodes)


def reliability(p: Array, outcome: Array, episodes: Array) -> tuple[Estimate, Curve]:
    """Return the expected calibration error of probabilities, and the reliability curve.

    The error is the mean over steps of |share of outcomes - mean probability| of their bin, of
    `BINS` bins of equal mass; equal probabilities share a bin.

    Args:
        p: Probability of an event, `[S]`.
        outcome: Whether it took place, `[S]`.
        episodes: Number of each step's episode, `[S]`.

    Source:
        Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
        binning", AAAI 2015; bins of equal mass after Nguyen and O'Connor, 2015.
    """
    inner = np.unique(np.quantile(p, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = np.searchsorted(inner, p, side="right")
    # Where a quantile is the smallest value, the bin below it is empty.
    bins = np.unique(bins, return_inverse=True)[1]
    size = bins.max() + 1
    member = np.eye(size)[bins]
    columns = np.concatenate([member, member * p[:, None], member * outcome[:, None]], axis=1)
    sums = episode_sums(columns, episodes)

    def errors(s: Array) -> Array:
        count, predicted, observed = np.split(s, 3, axis=1)
        return (observed - predicted) / count.sum(1, keepdims=True)

    total = sums.sum(0)
    share = resampled(sums, lambda s: s[:, 2 * size :] / s[:, :size])
    low, high = percentile_bands(share)
    shares = total[size : 2 * size] / total[:size], total[2 * size :] / total[:size]
    return mean_error(sums, errors), Curve(*shares, low, high)


def quantile_reliability(
    y: Array, mean: Array, variance: Array, episodes: Array
) -> tuple[Estimate, Curve]:
    """Return the calibration error of Gaussian predictions of numbers, and the curve.

    The error is the mean of |share of y below the predicted quantile q - q| over `QUANTILES`.

    Source:
        Kuleshov, Fenner and Ermon, "Accurate uncertainties for deep learning using calibrated
        regression", ICML 2018.
    """
    below = norm.cdf((y - mean) / np.sqrt(variance))[:, None] <= QUANTILES
    columns = np.concatenate([np.ones((len(y), 1)), below], axis=1)
    sums = episode_sums(columns, episodes)

    def shares(s: Array) -> Array:
        return s[:, 1:] / s[:, :1]

    low, high = percentile_bands(resampled(sums, shares))
    observed = shares(sums.sum(0, keepdims=True))[0]
    error = mean_error(sums, lambda s: (shares(s) - QUANTILES) / len(QUANTILES))
    return error, Curve(QUANTILES.copy(), observed, low, high)


def mean_error(sums: FloatArray, errors: Callable[[Array], Array]) -> Estimate:
    """Return the sum of the absolute errors, at least 0, less bias that sampling gives it.

    Of finitely many steps it is above 0 even where all is calibrated, and that of a resample is
    above it again: value and interval are mirrored at the plain estimate (the basic bootstrap).
    That takes away the whole bias of errors well above their noise and two fifths of it at 0; so
    the interval begins at 0 unless the plain estimate is above 97.5 % of what the noise of the
    resamples alone would give.

    Args:
        sums: Sums of every episode, `[E, D]`.
        errors: From the sums of all episodes `[R, D]` to the signed errors `[R, K]`.

    Source:
        Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 10.
    """
    own = errors(sums.sum(0, keepdims=True))
    plain = float(np.abs(own).sum())
    draws = resampled(sums, errors)
    drawn, noise = np.abs(draws).sum(1), np.abs(draws - own).sum(1)
    low, high = _percentiles(drawn)
    mirrored = 2 * plain - np.array([drawn.mean(), high, low])
    if plain <= np.percentile(noise, _ENDS[1]):
        mirrored[1] = 0.0
    return Estimate(*np.maximum(mirrored, 0.0).tolist())


_ENDS = (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE))


def percentile_bands(draws: Array) -> tuple[FloatArray, FloatArray]:
    """Return the ends of the 95 % interval of each of `[R, D]` statistics; NaN is left out."""
    low, high = np.nanpercentile(draws, _ENDS, axis=0)
    return low, high


def _percentiles(draws: Array) -> tuple[float, float]:
    low, high = np.percentile(draws, _ENDS)
    return float(low), float(high)
