"""Which part of a state the sensors show, and their noise."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, TypeVar

from array_api_compat import device

from doxastic.envs.batched import Array, Random, namespace

Observed = Literal["position", "velocity", "full"]
Bounds = tuple[tuple[float, ...], tuple[float, ...]]

_Entries = TypeVar("_Entries")


def seen_entries(observed: str, entries: Mapping[str, _Entries]) -> _Entries:
    """Return what `entries` holds for `observed`.

    Raises:
        ValueError: If it is none of the keys.
    """
    if observed not in entries:
        raise ValueError(f"observed is {observed!r}; expected one of {list(entries)}.")
    return entries[observed]


def noisy_reading(seen: Array, level: Array, bounds: Bounds, random: Random) -> Array:
    """Return `seen + level * epsilon`, clipped to the bounds, `[N, D]`.

    Args:
        seen: What sensors without noise would show, `[N, D]`.
        level: Standard deviation of the noise of each environment, `[N]`.
        bounds: Lower and upper bounds of the D entries.
        random: Stream of epsilon, `[N, D]` standard normal numbers.
    """
    xp, n = namespace(seen), seen.shape[0]
    noisy = seen + level[:, None] * random.normal(seen.shape)
    # NumPy broadcasts over few columns slowly. The number of environments that reset at once keeps
    # changing, so rows are kept in powers of two.
    low, high = _rows(bounds, 1 << (n - 1).bit_length(), xp, seen.dtype, device(seen))
    return xp.minimum(xp.maximum(noisy, low[:n]), high[:n])


@lru_cache(maxsize=64)
def _rows(bounds: Bounds, n: int, xp: Any, dtype: Any, where: Any) -> tuple[Array, Array]:
    """Return the lower and the upper bounds `n` times, each `[n, D]`."""
    low, high = (xp.asarray([row] * n, dtype=dtype, device=where) for row in bounds)
    return low, high
