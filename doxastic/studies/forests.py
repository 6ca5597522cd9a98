"""Forests: every memory against the baselines, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from doxastic.agents.study.returns import MEASURES, common_memories
from doxastic.agents.study.statistics import Comparison, Estimate
from doxastic.studies.figure_style import FAINT, INK, Look, panels_of, title_of


def plot_pairs(
    comparison: Comparison, baselines: Sequence[str], look: Mapping[str, Look], what: str
) -> Figure:
    """Return a forest of every memory against the baselines, a panel for each measure.

    Args:
        comparison: The statistics.
        baselines: What the memories are compared with; each has its block of rows.
        look: Looks by memory.
        what: `difference`, of scores in pairs, or `improvement`, its probability.
    """
    measures = [measure for measure in MEASURES if comparison.tasks_of(measure)]
    names = common_memories(comparison.tasks)
    pairs = [(name, base) for base in baselines for name in names if name != base]
    height = 0.3 * (len(pairs) + len(baselines)) + 1.2
    titles = [title_of(measure, comparison.tasks_of(measure)) for measure in measures]
    figure, panels = panels_of(titles, columns=3, height=height)
    rows = _rows(pairs)
    for i, (axes, measure) in enumerate(zip(panels, measures, strict=True)):
        for (name, base), row in rows.items():
            statistic = getattr(comparison, what)
            _draw_estimate(axes, statistic(measure, name, base), row, look[name])
        axes.axvline(0.5 if what == "improvement" else 0.0, color=FAINT, linewidth=1.0, zorder=1)
        axes.set_ylim(max(rows.values()) + 0.7, -1.4)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color="#DDDDDD", linewidth=0.7)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_yticks(list(rows.values()), [name for name, _ in rows] if i == 0 else [])
        if what == "improvement":
            axes.set_xlim(-0.03, 1.03)
        if i == 0:
            _name_blocks(axes, rows)
    label = {
        "difference": "Difference of the score in pairs, IQM; right of the line is better",
        "improvement": "Probability that a run is better than one of the baseline",
    }[what]
    figure.supxlabel(f"{label}; bars: 95 % intervals", color=INK, fontsize=10)
    return figure


def _draw_estimate(axes: Axes, found: Estimate | None, row: float, style: Look) -> None:
    color = style.color if style.is_named else FAINT
    if found is None:
        return
    axes.plot([found.low, found.high], [row, row], color=color, linewidth=4, alpha=0.4)
    axes.plot(
        [found.value], [row], marker=style.marker if style.is_named else "o", markersize=5,
        color=color, linestyle="none", zorder=4,
    )  # fmt: skip


def _rows(pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Return the height of every row, a gap before each baseline's block."""
    rows, at, base = {}, 0.0, pairs[0][1]
    for pair in pairs:
        if pair[1] != base:
            at, base = at + 1.2, pair[1]
        rows[pair] = at
        at += 1.0
    return rows


def _name_blocks(axes: Axes, rows: Mapping[tuple[str, str], float]) -> None:
    """Write `against <baseline>` above the first row of every block."""
    first: dict[str, float] = {}
    for (_, base), row in rows.items():
        first.setdefault(base, row)
    for base, row in first.items():
        axes.annotate(
            f"against {base}", xy=(0.0, row - 0.75), xycoords=("axes fraction", "data"),
            xytext=(3, 0), textcoords="offset points", fontsize=8.5, color=FAINT, va="center",
        )  # fmt: skip
