"""Kinds and levels of the hidden observation noise that stays the same for an episode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

NoiseKind = Literal["gaussian", "student", "flicker", "bias", "delay"]
NOISE_KINDS: tuple[str, ...] = get_args(NoiseKind)


def noise_levels(noise: float | Sequence[float], kind: str = "gaussian") -> tuple[float, ...]:
    """Return the noise levels as a tuple.

    Args:
        noise: A level, or several of which one is drawn for each episode.
        kind: What the level is: a standard deviation for "gaussian", "student" and "bias", a
            probability for "flicker", a number of steps for "delay".

    Raises:
        ValueError: If the kind is unknown, there is no level, or one is no number or outside its
            range.
    """
    if kind not in NOISE_KINDS:
        raise ValueError(f"noise_kind is {kind!r}; expected one of {', '.join(NOISE_KINDS)}.")
    given = np.atleast_1d(np.asarray(noise))
    # Not what NumPy makes numbers of as well: truth values and words.
    if given.ndim != 1 or given.size == 0 or given.dtype.kind not in "iuf":
        raise ValueError(f"noise is {noise!r}; expected a number or a non-empty list of numbers.")
    levels = given.astype(np.float64)
    if not all(math.isfinite(level) and level >= 0 for level in levels):
        raise ValueError(
            f"noise is {noise!r}; every level is {_MEANING[kind]} and must be finite and >= 0."
        )
    if kind == "flicker" and levels.max() > 1:
        raise ValueError(f"noise is {noise!r}; every level is {_MEANING[kind]} and at most 1.")
    if kind == "delay" and np.any(levels % 1):
        raise ValueError(f"noise is {noise!r}; every level is {_MEANING[kind]}, a whole one.")
    return tuple(float(level) for level in levels)


_MEANING = {
    "gaussian": "a standard deviation",
    "student": "a standard deviation",
    "flicker": "a probability",
    "bias": "the standard deviation of a constant error",
    "delay": "a number of steps",
}
