"""Figures of a calibration: episodes, actions against belief, and returns without the belief."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from doxastic.agents.calibration.control import ActionCurve
from doxastic.agents.calibration.report import POSTERIOR, Calibration, Example, VariableReport
from doxastic.calibration_figures import COLORS, FAINT, INK, make_figure, name_lines, title_of
from doxastic.plotting import PALETTE

# More actions than this are not told apart.
_MOST_ACTIONS = len(PALETTE)
_PROBES = {"belief": "belief (probe)", "h": "summary h (probe)"}


def plot_episodes(calibration: Calibration) -> Figure:
    """Return what was believed and what could be known, step by step, in a few episodes.

    Each is the longest of eight at its level, for there to be something to see. Bands are two
    deviations on either side of the mean. Below, what was done.
    """
    variables, examples = calibration.variables, calibration.examples
    title = "Belief and posterior over an episode"
    heights = [*[1.0] * len(variables), 0.4]
    figure, grid = make_figure(len(heights), len(examples), title, calibration, heights)
    for column, example in zip(grid.T, examples, strict=True):
        for axes, variable in zip(column, variables, strict=False):
            _draw_course(axes, variable, example, calibration)
        column[0].set_title(
            f"noise {example.level:g}, {example.group}", fontsize=9, color=INK, loc="left"
        )
        _draw_actions(column[-1], example, calibration)
        column[-1].set_xlabel("step")
        for axes in column:
            axes.set_xlim(-0.5, max(len(example.action) - 0.5, 4.5))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes, variable in zip(grid[:, 0], variables, strict=False):
        axes.set_ylabel(title_of(variable) if variable.is_ordered else f"P({variable.name})")
    grid[-1, 0].set_ylabel("action")
    # Where the most is drawn: the filter knows some of the variables only.
    name_lines(max(grid[:-1, 0], key=lambda axes: len(axes.lines)))
    name_lines(grid[-1, 0])
    return figure


def plot_actions(calibration: Calibration) -> Figure:
    """Return how actions go with what is believed of each variable, and with the posterior."""
    variables = calibration.variables
    columns = [(group, name) for group in calibration.groups() for name in ("mean", "deviation")]
    title = "Actions against belief"
    figure, grid = make_figure(len(variables), len(columns), title, calibration)
    is_share = _are_shares(variables[0])
    for row, variable in zip(grid, variables, strict=True):
        for axes, (group, name) in zip(row, columns, strict=True):
            curves = variable.actions[group]
            if name not in curves:
                axes.set_visible(False)
                continue
            _draw_action_curves(axes, calibration, curves[name], curves.get(f"posterior {name}"))
            axes.set_xlabel(f"{name} of {title_of(variable)}")
            axes.set_title(f"levels {group}", fontsize=8.5, color=INK, loc="left")
            if is_share:
                axes.set_ylim(-0.04, 1.04)
            axes.set_ylabel("share of steps" if is_share else "mean action")
    name_lines(next(axes for axes in grid.flat if axes.get_visible()))
    return figure


def plot_control(calibration: Calibration) -> Figure:
    """Return how much return is lost when the policy is shown another belief.

    Raises:
        ValueError: If the memory has no belief.
    """
    if not calibration.control:
        raise ValueError(
            f"{calibration.memory} keeps no belief, so none was changed: there is nothing to draw."
        )
    title = "Change of the return when the belief shown to the policy is changed"
    figure, grid = make_figure(1, len(calibration.control), title, calibration)
    figure.set_size_inches(4.6 * len(calibration.control), 3.2)
    for i, (axes, (group, control)) in enumerate(
        zip(grid[0], calibration.control.items(), strict=True)
    ):
        names = list(control.effects)
        found = np.array(list(control.effects.values()))
        places = np.arange(len(names))[::-1]
        axes.axvline(0, color=FAINT, linewidth=1)
        style: dict[str, Any] = {"color": COLORS["belief"]}
        axes.hlines(places, found[:, 1], found[:, 2], linewidth=5, alpha=0.3, **style)
        axes.plot(found[:, 0], places, "o", markersize=5, **style)
        axes.set_yticks(places, names if i == 0 else [""] * len(names))
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("mean change per episode, 95 % interval")
        words = f"levels {group}: return {control.baseline.value:.3f}"
        axes.set_title(words, fontsize=8.5, color=INK, loc="left")
    return figure


def _draw_course(
    axes: Axes, variable: VariableReport, example: Example, calibration: Calibration
) -> None:
    course = example.variables[variable.name]
    steps = np.arange(len(course["truth"]))
    kinds = (
        ("posterior ", calibration.posterior, COLORS[POSTERIOR]),
        ("", _PROBES[variable.source], COLORS[variable.source]),
    )
    for prefix, label, color in kinds:
        mean, deviation = course.get(f"{prefix}mean"), course.get(f"{prefix}deviation")
        if mean is None:
            continue
        if deviation is not None:
            ends = np.stack([mean - 2 * deviation, mean + 2 * deviation])
            if variable.classes is not None:
                # Nothing lies beyond the values that there are.
                ends = np.clip(ends, variable.classes.min(), variable.classes.max())
            axes.fill_between(steps, ends[0], ends[1], color=color, alpha=0.15, linewidth=0)
        axes.plot(steps, mean, ".-", color=color, linewidth=1.3, markersize=4, label=label)
    style: dict[str, Any] = {"color": PALETTE[2], "linewidth": 1.6, "linestyle": (0, (4, 2))}
    if variable.classes is None:
        axes.plot(steps, course["truth"], label="true", **style)
        return
    # As wide as the steps: of an episode of one, a line through a point would not be seen.
    truth = np.append(course["truth"], course["truth"][-1])
    axes.step(np.arange(len(truth)) - 0.5, truth, where="post", label="true", **style)


def _draw_actions(axes: Axes, example: Example, calibration: Calibration) -> None:
    steps = np.arange(len(example.action))
    names = calibration.action_names
    if _are_shares(calibration.variables[0]):
        taken = example.action.argmax(1)
        axes.plot(steps, taken, "s", color=INK, markersize=4)
        if len(names) <= _MOST_ACTIONS:
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(-0.5, len(names) - 0.5)
        return
    for k, name in enumerate(names[:_MOST_ACTIONS]):
        axes.plot(steps, example.action[:, k], color=PALETTE[k], linewidth=1.2, label=name)


def _draw_action_curves(
    axes: Axes, calibration: Calibration, curve: ActionCurve, posterior: ActionCurve | None
) -> None:
    for k, name in enumerate(calibration.action_names[:_MOST_ACTIONS]):
        color = PALETTE[k]
        axes.fill_between(curve.x, curve.low[k], curve.high[k], color=color, alpha=0.2, linewidth=0)
        style: dict[str, Any] = {"color": color, "linewidth": 1.3}
        axes.plot(curve.x, curve.mean[k], "o-", markersize=3, label=name, **style)
        if posterior is not None:
            words = "against the posterior" if k == 0 else None
            axes.plot(posterior.x, posterior.mean[k], linestyle=(0, (2, 2)), label=words, **style)


def _are_shares(variable: VariableReport) -> bool:
    """Return whether the action columns of a report are one-hot: then they add up to 1."""
    curve = next(iter(next(iter(variable.actions.values())).values()))
    return bool(np.allclose(curve.mean.sum(0), 1)) and len(curve.mean) > 1
