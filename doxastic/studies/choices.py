"""What a study decides by itself: the settings of every memory, by search."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from doxastic.studies.cells import Settings
from doxastic.studies.records import Record


def mean_by_setting(records: Iterable[Record]) -> dict[tuple[str, str], dict[Settings, float]]:
    """Return the mean return of every setting by (task, memory), over levels and seeds.

    Settings that failed on a seed where another did not are left out: a mean over fewer seeds
    would favour what diverges.
    """
    by_pair: dict[tuple[str, str], dict[Settings, dict[int, float]]] = {}
    for record in records:
        settings = by_pair.setdefault((record.task, record.memory), {})
        scores = settings.setdefault(record.settings, {})
        scores[record.seed] = statistics.fmean(record.means)
    means = {}
    for pair, settings in by_pair.items():
        whole = max(len(scores) for scores in settings.values())
        means[pair] = {
            setting: statistics.fmean(scores.values())
            for setting, scores in sorted(settings.items())
            if len(scores) == whole
        }
    return means


def best_settings(records: Iterable[Record]) -> dict[tuple[str, str], Settings]:
    """Return the setting of the highest mean by (task, memory), the smaller one of equals."""
    return {
        pair: min(means, key=lambda setting: (-means[setting], setting))
        for pair, means in mean_by_setting(records).items()
    }
