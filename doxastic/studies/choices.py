"""What a study decides by itself: the settings of every memory, by search."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from doxastic.studies.cells import Settings
from doxastic.studies.records import Record


def mean_by_setting(records: Iterable[Record]) -> dict[Settings, float]:
    """Return the mean return of every setting of one memory on one task, over levels and seeds.

    Settings that failed on a seed where another did not are left out: a mean over fewer seeds
    would favour what diverges.
    """
    scores: dict[Settings, dict[int, float]] = {}
    for record in records:
        scores.setdefault(record.settings, {})[record.seed] = statistics.fmean(record.means)
    whole = max((len(by_seed) for by_seed in scores.values()), default=0)
    return {
        setting: statistics.fmean(by_seed.values())
        for setting, by_seed in sorted(scores.items())
        if len(by_seed) == whole
    }


def best_setting(records: Iterable[Record]) -> Settings | None:
    """Return the setting of the highest mean, the smaller one of equals; None without records."""
    means = mean_by_setting(records)
    return min(means, key=lambda setting: (-means[setting], setting), default=None)
