"""Figures of a calibration: reliability, variance against the posterior's, and noise shift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from doxastic.agents.calibration.measures import Estimate
from doxastic.agents.calibration.report import (
    HELD_OUT,
    POSTERIOR,
    TRAINED,
    Calibration,
    Measures,
    VariableReport,
)
from doxastic.plotting import PALETTE

INK, FAINT, LINE = "#333333", "#8A8A8A", "#DDDDDD"
# A panel in inches.
PANEL = 3.3
DPI = 150
COLORS = {"belief": PALETTE[0], "h": PALETTE[1], POSTERIOR: INK}
# Share of a Gaussian within two deviations.
GAUSSIAN = 0.954
# Variances below this are drawn as this.
_LEAST = 1e-5
_MARKERS = {"belief": "o", "h": "s", POSTERIOR: "D"}
_WORDS = {"belief": "belief", "h": "summary h", POSTERIOR: "posterior"}


def plot_reliability(calibration: Calibration) -> Figure:
    """Return reliability diagrams of every variable, at the levels of training and at others.

    What was predicted runs along x, how often it came true along y: on the diagonal all is
    calibrated. Bars are 95 % intervals over episodes.
    """
    panels = [
        (variable, group)
        for variable in calibration.variables
        for group in calibration.groups()
        if variable.measures[variable.source][group].curve is not None
    ]
    columns = min(len(panels), 4)
    figure, grid = make_figure(-(-len(panels) // columns), columns, "Reliability", calibration)
    for axes, (variable, group) in zip(grid.flat, panels, strict=False):
        _draw_reliability(axes, variable, group)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    return figure


def plot_variance(calibration: Calibration) -> Figure:
    """Return the predicted variance against the posterior's, step by step, and a channel's.

    Without a posterior, against the squared error. On the left the variance of the probe, on the
    right that of the channel of the belief that follows it best on other steps.
    """
    variables = calibration.variables
    columns = ["variance"] + (["channel"] if "channel" in variables[0].samples[TRAINED] else [])
    title = "Variance of the belief against what it should be"
    figure, grid = make_figure(len(variables), len(columns), title, calibration)
    for row, variable in zip(grid, variables, strict=True):
        for axes, column in zip(row, columns, strict=True):
            _draw_variance(axes, variable, column, calibration.trained)
    return figure


def plot_shift(calibration: Calibration) -> Figure:
    """Return calibration error, coverage and rank correlation against the noise level.

    Whoever does not know the level, the exact posterior included, is calibrated over all levels of
    training together, not at each. The noise level itself is left out: given it, it is no question.
    """
    hidden = [variable for variable in calibration.variables if variable.name != "noise"]
    variables, has_posterior = hidden or calibration.variables, calibration.posterior is not None
    columns: list[tuple[str, Callable[[Measures], Estimate], float | None]] = [
        ("calibration error", lambda m: m.calibration_error, 0.0),
        ("share within 2 deviations", lambda m: m.coverage, GAUSSIAN),
        ("rank correlation,\nvariance and squared error", lambda m: m.rank_error, None),
    ]
    if has_posterior:
        words = "rank correlation,\nvariance and posterior variance"
        columns.append((words, lambda m: m.rank_posterior, 1.0))
    title = "Calibration under noise shift"
    figure, grid = make_figure(len(variables), len(columns), title, calibration)
    for row, variable in zip(grid, variables, strict=True):
        for axes, (name, measure, ideal) in zip(row, columns, strict=True):
            _draw_levels(axes, variable, calibration, measure)
            axes.set_title(f"{title_of(variable)}: {name}", fontsize=8.5, color=INK, loc="left")
            # What has few values is within two deviations more often than a Gaussian, or always.
            if ideal is not None and not (ideal == GAUSSIAN and variable.classes is not None):
                axes.axhline(ideal, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    name_lines(grid[0, 0])
    return figure


def make_figure(
    rows: int, columns: int, title: str, calibration: Calibration, heights: Sequence[float] = ()
) -> tuple[Figure, Any]:
    """Return a figure with a grid of styled axes, `[rows, columns]`; heights are relative."""
    ratios = list(heights) or [1.0] * rows
    size = (PANEL * columns + 0.4, PANEL * 0.86 * sum(ratios) + 0.5)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    words = f"{title}\n{calibration.env_id}, {calibration.memory}"
    style: dict[str, Any] = {"ha": "left", "x": 0.01, "color": INK}
    figure.suptitle(words, fontsize=10, fontweight="bold", **style)
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.tick_params(labelsize=8, colors=INK, length=2, color=FAINT)
        axes.grid(color=LINE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.xaxis.label.set(color=INK, fontsize=8.5)
        axes.yaxis.label.set(color=INK, fontsize=8.5)
    return figure, grid


def name_lines(axes: Axes, place: str = "best") -> None:
    """Name what is drawn in these axes."""
    if axes.get_legend_handles_labels()[1]:
        style: dict[str, Any] = {"frameon": False, "fontsize": 7.5, "labelcolor": INK, "loc": place}
        axes.legend(**style)


def title_of(variable: VariableReport) -> str:
    """Return what a variable is called."""
    return f"log {variable.name}" if variable.is_logarithm else variable.name


def sources_of(variable: VariableReport) -> list[str]:
    """Return the sources that figures show: the belief, h and the posterior, as far as there."""
    return [name for name in ("belief", "h", POSTERIOR) if name in variable.measures]


def _draw_reliability(axes: Axes, variable: VariableReport, group: str) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    for source in sources_of(variable):
        measures = variable.measures[source][group]
        curve = measures.curve
        if curve is None:
            continue
        color = COLORS[source]
        axes.vlines(curve.predicted, curve.low, curve.high, color=color, linewidth=3, alpha=0.25)
        label = f"{_WORDS[source]}, error {measures.calibration_error.value:.3f}"
        style: dict[str, Any] = {"color": color, "marker": _MARKERS[source], "markersize": 3.5}
        axes.plot(curve.predicted, curve.observed, linewidth=1, label=label, **style)
    axes.set(
        xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=_event(variable), ylabel="observed share"
    )
    axes.set_title(f"{title_of(variable)}: levels {group}", fontsize=8.5, color=INK, loc="left")
    name_lines(axes, "upper left")


def _event(variable: VariableReport) -> str:
    """Return what the probability along x is that of."""
    if variable.classes is None:
        return "predicted quantile"
    if len(variable.classes) == 2:
        return f"predicted probability of {variable.classes.max():g}"
    return "predicted probability of the likeliest value"


def _draw_variance(
    axes: Axes, variable: VariableReport, column: str, trained: Sequence[float]
) -> None:
    """Draw the steps of all groups; held-out levels are hollow."""
    against = POSTERIOR if POSTERIOR in variable.samples[TRAINED] else "error"
    for group, sample in variable.samples.items():
        levels = np.unique(sample["level"])
        for level in levels:
            rows = sample["level"] == level
            x, y = (np.maximum(sample[name][rows], _LEAST) for name in (against, column))
            color = _color_of(float(level), trained)
            face = color if group == TRAINED else "none"
            style: dict[str, Any] = {"s": 9, "linewidth": 0.6, "alpha": 0.6, "edgecolor": color}
            axes.scatter(x, y, facecolor=face, label=f"{level:g}", rasterized=True, **style)
    words = "variance of the posterior" if against == POSTERIOR else "squared error"
    whose = "probed variance" if column == "variance" else "variance of the chosen channel"
    axes.set(xscale="log", yscale="log", xlabel=words, ylabel=whose)
    rank = _rank_text(variable, column, against)
    axes.set_title(f"{title_of(variable)}: {rank}", fontsize=8.5, color=INK, loc="left")
    if column == "variance":
        ends = np.array(axes.get_xlim())
        axes.plot(ends, ends, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.legend(
            frameon=False, fontsize=7, labelcolor=INK, title="noise", title_fontsize=7,
            loc="lower right", ncols=2, handletextpad=0.1, columnspacing=0.6,
        )  # fmt: skip


def _color_of(level: float, trained: Sequence[float]) -> Any:
    """Return a colour from light to dark over the levels of training; orange for others."""
    ordered = sorted(trained)
    if level not in ordered:
        return PALETTE[1] if level > ordered[-1] else PALETTE[5]
    shade = 0.2 + 0.8 * (ordered.index(level) + 1) / len(ordered)
    blue = np.array([0.0, 0.447, 0.698])
    return tuple(np.clip(1 - shade * (1 - blue), 0, 1))


def _rank_text(variable: VariableReport, column: str, against: str) -> str:
    """Return the rank correlations in and out of distribution."""
    texts = []
    for group in (TRAINED, HELD_OUT):
        if group not in variable.samples:
            continue
        if column == "channel":
            value = variable.channels[group][against].rank.value
        else:
            measures = variable.measures[variable.source][group]
            value = (measures.rank_posterior if against == POSTERIOR else measures.rank_error).value
        texts.append(f"{value:.2f} {group}")
    return "rank corr. " + ", ".join(texts)


def _draw_levels(
    axes: Axes,
    variable: VariableReport,
    calibration: Calibration,
    measure: Callable[[Measures], Estimate],
) -> None:
    """Draw a measure of every source over the levels, evenly spaced; held-out ones are hollow."""
    places = np.arange(len(calibration.levels))
    is_trained = np.isin(calibration.levels, calibration.trained)
    sources = sources_of(variable)
    for k, source in enumerate(sources):
        by_group = variable.measures[source]
        found = np.array([measure(by_group[f"{level:g}"]) for level in calibration.levels])
        known = np.isfinite(found[:, 0])
        x = places + 0.14 * (k - (len(sources) - 1) / 2)
        color = COLORS[source]
        axes.vlines(x[known], *found[known, 1:].T, color=color, linewidth=3, alpha=0.3)
        label = _WORDS[source] if known.any() else None
        axes.plot(x[known], found[known, 0], color=color, linewidth=1, label=label)
        for mask, face in ((known & is_trained, color), (known & ~is_trained, "white")):
            axes.plot(
                x[mask], found[mask, 0], linestyle="none", marker=_MARKERS[source], markersize=4.5,
                markerfacecolor=face, markeredgecolor=color,
            )  # fmt: skip
    axes.set_xticks(places, [f"{level:g}" for level in calibration.levels])
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("noise level, hollow where held out")
