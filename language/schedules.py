"""Learning-rate schedules: how the rate rises, stays and falls over a run."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["cosine", "wsd", "constant"]


def learning_rate_factor(
    update: int,
    updates: int,
    *,
    schedule: Schedule,
    warmup: int = 0,
    final: float = 0.1,
    decay_fraction: float = 0.2,
) -> float:
    """Return the learning rate of an update as a fraction of the highest.

    The rate rises linearly, `(update + 1) / (warmup + 1)`, over the first `warmup` updates. Then,
    with p in [0, 1] the position between `warmup` and the last update:

    - `cosine`: `final + (1 - final) (1 + cos(pi p)) / 2`;
    - `wsd` (warm-up, stable, decay): 1, and over the last `decay_fraction` of all updates
      `1 - (1 - final) sqrt(q)` with q in [0, 1] the position in them;
    - `constant`: 1.

    Args:
        update: The update, counted from 0; after the last one the rate stays.
        updates: Number of updates of the whole run.
        schedule: Which of the three.
        warmup: Updates before the rate is at its highest.
        final: Fraction that is left in the end.
        decay_fraction: Part of the run in which `wsd` falls.

    Source: the form of the decay is that of Hägele et al., arXiv 2405.18392.
    """
    if update < warmup:
        return (update + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        position = _position(update, warmup, updates)
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * position))
    start = max(warmup, updates - round(decay_fraction * updates))
    return 1.0 - (1.0 - final) * math.sqrt(_position(update, start, updates))


def _position(update: int, start: int, end: int) -> float:
    """Return where an update stands between the first and the last of a stretch, in [0, 1]."""
    if update < start:
        return 0.0
    return min(1.0, (update - start) / max(1, end - 1 - start))
