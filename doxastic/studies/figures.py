"""The figures of a report: returns against noise, learning, performance profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from doxastic.agents.study.efficiency import Curve
from doxastic.agents.study.returns import MEASURES, TaskReturns
from doxastic.agents.study.statistics import Comparison
from doxastic.studies.figure_style import (
    BEST,
    DASHES,
    FAINT,
    INK,
    SHADE,
    Look,
    add_legend,
    handles_of,
    line_width,
    panels_of,
    title_of,
)

# So many that the steps of a profile look upright.
_THRESHOLDS = 801
# Between two memories at one level, levels being 1 apart: their bars must not hide each other.
_DODGE = 0.07


def plot_noise(comparison: Comparison, look: Mapping[str, Look]) -> Figure:
    """Return a figure of the return at every test level, a panel for each task.

    Levels stand at equal distances; those held out of training are hollow and lie outside the
    shade.
    """
    figure, panels = panels_of([task.task for task in comparison.tasks])
    for axes, task in zip(panels, comparison.tasks, strict=True):
        _draw_levels(axes, comparison, task, look)
    handles = [*handles_of(look, marked=True), BEST]
    figure.supylabel("Return, IQM over seeds", color=INK, fontsize=10)
    figure.supxlabel(
        "Test noise; filled: trained on, hollow: held out; bars: 95 % intervals",
        color=INK, fontsize=10,
    )  # fmt: skip
    add_legend(figure, handles)
    return figure


def plot_learning(
    curves: Mapping[str, Sequence[Curve]],
    tasks: Sequence[TaskReturns],
    suite: tuple[str, Sequence[Curve]] | None,
    look: Mapping[str, Look],
) -> Figure:
    """Return a figure of the return reached after so many steps, a panel for each task.

    Args:
        curves: Curves of the memories by task.
        tasks: The tasks.
        suite: Title and curves of the score over several tasks, in a first panel; None for none.
        look: Looks of the memories.
    """
    titles = [task.task for task in tasks]
    figure, panels = panels_of([*([suite[0]] if suite else []), *titles])
    if suite:
        axes = panels.pop(0)
        _draw_curves(axes, suite[1], 1.0, look)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_ylim(bottom=max(axes.get_ylim()[0], -0.1))
    for axes, task in zip(panels, tasks, strict=True):
        _draw_curves(axes, curves[task.task], task.best_mixture, look)
        axes.xaxis.set_major_formatter(FuncFormatter(_count))
        _from_random(axes, task)
    score, share = (" or score", ", or their share") if suite else ("", "")
    figure.supylabel(f"Return{score} on the levels of training, IQM", color=INK, fontsize=10)
    figure.supxlabel(
        f"Environment steps{share}; bands: 95 % intervals over seeds", color=INK, fontsize=10
    )
    add_legend(figure, [*handles_of(look, marked=False), BEST])
    return figure


def plot_profiles(comparison: Comparison, look: Mapping[str, Look]) -> Figure:
    """Return performance profiles: the share of runs above every score, a panel per measure."""
    measures = [measure for measure in MEASURES if comparison.tasks_with_best(measure)]
    titles = [title_of(measure, comparison.tasks_with_best(measure)) for measure in measures]
    figure, panels = panels_of(titles, columns=3)
    for axes, measure in zip(panels, measures, strict=True):
        thresholds = _thresholds(comparison, measure)
        for name, style in look.items():
            found = comparison.profile(measure, name, thresholds)
            if found is None:
                continue
            share, low, high = found
            axes.plot(thresholds, share, color=style.color, linewidth=line_width(style))
            if style.is_named:
                axes.fill_between(thresholds, low, high, color=style.color, alpha=0.13, linewidth=0)
        axes.axvline(1.0, color=FAINT, linestyle=DASHES, linewidth=1.3)
        axes.set_ylim(-0.02, 1.02)
    figure.supylabel("Share of runs above the score", color=INK, fontsize=10)
    figure.supxlabel(
        "Score: 1 (dashed) is the best policy known under that noise; bands: 95 % intervals",
        color=INK, fontsize=10,
    )  # fmt: skip
    add_legend(figure, handles_of(look, marked=False))
    return figure


def _draw_curves(
    axes: Axes, curves: Sequence[Curve], best: float, look: Mapping[str, Look]
) -> None:
    for curve in curves:
        style = look[curve.memory]
        axes.plot(curve.steps, curve.value, color=style.color, linewidth=line_width(style))
        if style.is_named:
            axes.fill_between(
                curve.steps, curve.low, curve.high, color=style.color, alpha=0.15, linewidth=0
            )
    axes.axhline(best, color=FAINT, linestyle=DASHES, linewidth=1.3)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _draw_levels(
    axes: Axes, comparison: Comparison, task: TaskReturns, look: Mapping[str, Look]
) -> None:
    places = np.arange(len(task.levels), dtype=float)
    seen = np.array([not task.trained or level in task.trained for level in task.levels])
    if task.trained:
        inside = places[seen]
        axes.axvspan(inside[0] - 0.4, inside[-1] + 0.4, color=SHADE, zorder=0, linewidth=0)
    # Known over the mixture only, the best is drawn over the levels of the mixture.
    known = places if task.has_best_levels else places[seen]
    best = np.array(task.best)[known.astype(int)]
    axes.plot(known, best, color=FAINT, linestyle=DASHES, linewidth=1.3, zorder=2)
    named = [name for name in task.memories if look[name].is_named]
    for name in task.memories:
        style = look[name]
        shift = _DODGE * (named.index(name) - (len(named) - 1) / 2) if style.is_named else 0.0
        found = [comparison.returns(task, name, row) for row in np.eye(len(task.levels))]
        value = np.array([x.value for x in found])
        low, high = np.array([x.low for x in found]), np.array([x.high for x in found])
        x = places + shift
        width = 1.0 if style.is_named else 0.8
        axes.plot(x, value, color=style.color, linewidth=width, alpha=0.6, zorder=3)
        if not style.is_named:
            continue
        axes.vlines(x, low, high, color=style.color, linewidth=3, alpha=0.4, zorder=3)
        for mask, face in ((seen, style.color), (~seen, "white")):
            axes.plot(
                x[mask], value[mask], linestyle="none", marker=style.marker, markersize=4.5,
                markerfacecolor=face, markeredgecolor=style.color, markeredgewidth=1.2, zorder=4,
            )  # fmt: skip
    labels = ["own" if level is None else f"{level:g}" for level in task.levels]
    axes.set_xticks(places, labels)


def _thresholds(comparison: Comparison, measure: str) -> np.ndarray[Any, Any]:
    """Return scores from below the worst run to above the best."""
    scores = np.concatenate(
        [
            scores.ravel()
            for task in comparison.tasks_with_best(measure)
            if (scores := task.normalized(task.means, measure)) is not None
        ]
    )
    margin = 0.05 * (np.ptp(scores) + 0.02)
    return np.linspace(scores.min() - margin, max(scores.max(), 1.0) + margin, _THRESHOLDS)


def _from_random(axes: Axes, task: TaskReturns) -> None:
    """Cut off what lies far below random actions: the first updates, of no interest."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, task.random - 0.1 * task.scale), high)


def _count(value: float, _: int) -> str:
    """Return a count as 0, 500, 20k, 1.5M."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"
