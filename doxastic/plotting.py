"""Figures: the noise sweep and the learning curve.

Both functions return a Matplotlib `Figure` made without pyplot, so that drawing neither needs a
display nor touches the caller's own figures. Save one with `figure.savefig(path)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Okabe and Ito, "Color Universal Design": told apart with every kind of colour blindness.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# What a level of each kind of noise is, for the axis under it; "symbol" and "mixed" are no kinds
# of `EnvConfig`: the own noise of tasks that observe symbols, and several kinds in one figure.
NOISE_LEVELS = {
    "gaussian": "standard deviation",
    "student": "standard deviation, heavy-tailed",
    "bias": "standard deviation of a constant error",
    "flicker": "probability of a blank observation",
    "delay": "delay in steps",
    "symbol": "probability of a wrong symbol",
    "mixed": "level",
}
_MARKERS = "osD^vPX"
_INK = "#333333"
_FAINT = "#8A8A8A"
_SHADE = "#EEF2F6"


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Returns of one agent against the noise it was tested under."""

    label: str
    """Name in the legend."""
    noise: Sequence[float]
    """Test noise levels, ascending."""
    mean: Sequence[float]
    """Mean return at each level."""
    low: Sequence[float]
    """Lower end of the 95 % interval of the mean."""
    high: Sequence[float]
    """Upper end of the 95 % interval of the mean."""
    trained: Sequence[float] = ()
    """Levels the agent was trained under."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A return to compare with: an optimum, another method, a random policy."""

    label: str
    """Name beside the line."""
    value: float | Sequence[float]
    """One return at every level, or one at each of `noise`."""
    noise: Sequence[float] = ()
    """Levels of `value` if it is a sequence."""


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """Mean return of training episodes against environment steps."""

    label: str
    """Name in the legend."""
    steps: Sequence[float]
    """Environment steps at each update."""
    returns: Sequence[float]
    """Mean return at each update; NaN where no episode ended."""


def plot_noise_sweep(
    sweeps: Sequence[Sweep],
    *,
    references: Iterable[Reference] = (),
    title: str = "Return under test noise",
    kind: str = "gaussian",
    unit: str = "",
) -> Figure:
    """Return a figure of return against test noise with 95 % intervals.

    The range of noise seen in training is shaded, and levels outside the trained ones are hollow.

    Args:
        sweeps: One or several agents; each gets a colour and a marker.
        references: Lines to compare with.
        title: What the figure shows.
        kind: Kind of the noise, a key of `NOISE_LEVELS`, for the axis label.
        unit: Unit of the noise, for the axis label.

    Raises:
        ValueError: If there is no sweep, or no such kind of noise.
    """
    if not sweeps:
        raise ValueError("there is no sweep to plot; evaluate a run first")
    if kind not in NOISE_LEVELS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(NOISE_LEVELS)}")
    figure, axes = _figure(title)
    trained = sorted({level for sweep in sweeps for level in sweep.trained})
    levels = sorted({level for sweep in sweeps for level in sweep.noise})
    _shade_trained(axes, trained, levels)
    for reference in references:
        _draw_reference(axes, reference)
    for i, sweep in enumerate(sweeps):
        _draw_sweep(axes, sweep, i)
    axes.set_xlabel(f"Test noise, {NOISE_LEVELS[kind]}" + (f" [{unit}]" if unit else ""))
    axes.set_ylabel("Mean return per episode")
    axes.set_xticks(levels if len(levels) <= 10 else levels[:: -(-len(levels) // 10)])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda level, _: f"{level:g}"))
    if len(levels) == 1:
        axes.set_xlim(levels[0] - 0.5, levels[0] + 0.5)
    _legend_of_sweeps(axes, sweeps)
    return figure


def plot_learning_curves(
    curves: Sequence[LearningCurve], *, title: str = "Return during training"
) -> Figure:
    """Return a figure of the return against environment steps.

    Each run shows its updates faintly and their running mean boldly.

    Raises:
        ValueError: If there is no curve with a finite return.
    """
    if not any(np.isfinite(np.asarray(curve.returns, float)).any() for curve in curves):
        raise ValueError("there is no return to plot; no episode has ended yet")
    figure, axes = _figure(title)
    for i, curve in enumerate(curves):
        _draw_curve(axes, curve, PALETTE[i % len(PALETTE)])
    axes.set_xlabel("Environment steps")
    axes.set_ylabel("Mean return per training episode")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(_count))
    if len(curves) > 1:
        axes.legend(frameon=False, loc="lower right")
    return figure


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 4.4), dpi=160, layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK, pad=12)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0, pad=6)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    return figure, axes


def _shade_trained(axes: Axes, trained: Sequence[float], levels: Sequence[float]) -> None:
    """Shade the range of the trained levels; one level alone gets a narrow band."""
    if not trained:
        return
    span = max(*levels, *trained) - min(*levels, *trained) if levels else 0.0
    margin = 0.012 * (span or 1.0)
    low, high = min(trained) - margin, max(trained) + margin
    axes.axvspan(low, high, color=_SHADE, zorder=0, linewidth=0)
    axes.annotate(
        "noise seen in training" if high - low > 0.3 * (span or 1.0) else "seen",
        xy=(low, 0.0),
        xycoords=("data", "axes fraction"),
        xytext=(4, 4),
        textcoords="offset points",
        fontsize=8.5,
        color=_FAINT,
    )


def _draw_reference(axes: Axes, reference: Reference) -> None:
    """Draw a dashed line; a level line is named above its end, a curve beside its end."""
    style: dict[str, Any] = {"color": _FAINT, "linestyle": (0, (4, 3)), "linewidth": 1.3}
    text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8.5, "color": _FAINT}
    if isinstance(reference.value, int | float):
        axes.axhline(reference.value, **style)
        coordinates = ("axes fraction", "data")
        position: dict[str, Any] = {"xy": (1.0, reference.value), "xycoords": coordinates}
        place: dict[str, Any] = {"xytext": (0, 3), "ha": "right", "va": "bottom"}
    else:
        axes.plot(reference.noise, reference.value, **style)
        position = {"xy": (reference.noise[-1], reference.value[-1]), "xycoords": "data"}
        place = {"xytext": (10, 0), "ha": "left", "va": "center"}
    axes.annotate(reference.label, **position, **place, **text)


def _draw_sweep(axes: Axes, sweep: Sweep, index: int) -> None:
    color = PALETTE[index % len(PALETTE)]
    marker = _MARKERS[index % len(_MARKERS)]
    noise, mean = np.asarray(sweep.noise, float), np.asarray(sweep.mean, float)
    axes.plot(noise, mean, color=color, linewidth=1.8, zorder=3)
    axes.vlines(noise, sweep.low, sweep.high, color=color, linewidth=5, alpha=0.35, zorder=2)
    is_held_out = _held_out(noise, sweep.trained)
    for mask, face in ((~is_held_out, color), (is_held_out, "white")):
        axes.plot(
            noise[mask],
            mean[mask],
            linestyle="none",
            marker=marker,
            markersize=6,
            markerfacecolor=face,
            markeredgecolor=color,
            markeredgewidth=1.5,
            zorder=4,
        )


def _held_out(noise: np.ndarray[Any, Any], trained: Sequence[float]) -> np.ndarray[Any, Any]:
    if not trained:
        return np.zeros(len(noise), bool)
    return ~np.isclose(noise[:, None], np.asarray(trained, float)[None, :]).any(axis=1)


def _legend_of_sweeps(axes: Axes, sweeps: Sequence[Sweep]) -> None:
    """Name the runs if there are several, and the hollow markers and the bars in any case."""
    handles = []
    if len(sweeps) > 1:
        for i, sweep in enumerate(sweeps):
            color, marker = PALETTE[i % len(PALETTE)], _MARKERS[i % len(_MARKERS)]
            handles.append(Line2D([], [], color=color, marker=marker, label=sweep.label))
    hollow: dict[str, Any] = {"linestyle": "none", "marker": "o", "markeredgecolor": _INK}
    if any(_held_out(np.asarray(s.noise, float), s.trained).any() for s in sweeps):
        handles.append(Line2D([], [], markerfacecolor=_INK, label="level seen", **hollow))
        handles.append(Line2D([], [], markerfacecolor="white", label="level held out", **hollow))
    handles.append(Line2D([], [], color=_INK, linewidth=5, alpha=0.35, label="95 % interval"))
    axes.legend(handles=handles, frameon=False, fontsize=9, labelcolor=_INK, loc="best")


def _draw_curve(axes: Axes, curve: LearningCurve, color: str) -> None:
    steps, returns = np.asarray(curve.steps, float), np.asarray(curve.returns, float)
    is_known = np.isfinite(returns)
    steps, returns = steps[is_known], returns[is_known]
    axes.plot(steps, returns, color=color, linewidth=1, alpha=0.3)
    axes.plot(steps, _running_mean(returns, 5), color=color, linewidth=2, label=curve.label)


def _running_mean(values: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """Return the mean of `width` values around each, of fewer at the ends; it does not lag."""
    total = np.cumsum(np.concatenate(([0.0], values)))
    place = np.arange(len(values))
    reach = np.minimum(width // 2, np.minimum(place, place[::-1]))
    start, end = place - reach, place + reach + 1
    return (total[end] - total[start]) / (end - start)


def _count(value: float, _: int) -> str:
    """Return a count as 0, 500, 20k, 1.5M."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"
