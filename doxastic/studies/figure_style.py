"""How the figures of a report look: colours of memories, panels, legends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from doxastic.agents.study.returns import TaskReturns, common_memories
from doxastic.plotting import PALETTE

INK, FAINT, SHADE = "#333333", "#8A8A8A", "#EEF2F6"
DASHES: Any = (0, (4, 3))
BEST = Line2D([], [], color=FAINT, linestyle=DASHES, label="best known")
"""The entry of the best policy known in a legend."""
_MARKERS = "osD^vPX"
_PANEL = (4.6, 3.5)


@dataclass(frozen=True)
class Look:
    """How a memory is drawn in all figures."""

    color: str
    """Its colour."""
    marker: str
    """Its marker."""
    is_named: bool = True
    """Whether it is told apart; the rest is drawn faintly."""


def looks(memories: Sequence[str], first: Sequence[str]) -> dict[str, Look]:
    """Return a look for every memory in their order; colours go to the `first` ones first."""
    ordered = dict.fromkeys([*first, *memories])
    named = [name for name in ordered if name in memories][: len(PALETTE)]
    shown = {name: Look(PALETTE[i], _MARKERS[i]) for i, name in enumerate(named)}
    return {name: shown.get(name, Look("#C4C4C4", ".", False)) for name in memories}


def title_of(measure: str, tasks: Sequence[TaskReturns]) -> str:
    """Return a measure with the number of its tasks, in which all memories need not take part."""
    memories = common_memories(tasks)
    most = "" if all(set(memories) <= set(task.memories) for task in tasks) else "up to "
    return f"{measure}, {most}{len(tasks)} task{'s' if len(tasks) > 1 else ''}"


def panels_of(
    titles: Sequence[str], *, columns: int | None = None, height: float = _PANEL[1]
) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels in the style of `doxastic.plotting`."""
    count = len(titles)
    columns = min(count, columns or (3 if count > 4 else 2))
    rows = -(-count // columns)
    width = 7.2 if count == 1 else _PANEL[0] * columns
    figure = Figure(
        figsize=(width, (height + 0.3) * rows + 0.6), dpi=160, layout="constrained",
        facecolor="white",
    )  # fmt: skip
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = list(grid.ravel())
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=8)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color(FAINT)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, length=0, pad=5, labelsize=9)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    return figure, panels[:count]


def add_legend(figure: Figure, handles: list[Line2D]) -> None:
    """Put the legend above the panels."""
    columns = 6 if figure.get_figwidth() < 12 else 9
    figure.legend(
        handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=9,
        labelcolor=INK,
    )  # fmt: skip


def handles_of(look: Mapping[str, Look], *, marked: bool) -> list[Line2D]:
    """Return an entry of the legend for every named memory, and one for all others."""
    named = {name: style for name, style in look.items() if style.is_named}
    rest = [style for style in look.values() if not style.is_named]
    entries = [*named.items(), *[("others", style) for style in rest[:1]]]
    return [
        Line2D(
            [], [], color=style.color, marker=style.marker if marked else "", markersize=5,
            linewidth=1.0 if marked else 2.0, label=name,
        )
        for name, style in entries
    ]  # fmt: skip


def line_width(style: Look) -> float:
    """Return the width of a memory's line."""
    return 1.8 if style.is_named else 0.9
