"""Pictures of an episode: true state, observation, exact posterior and belief side by side.

Every panel holds what was known at one step; what came before stays in the panels over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator

from doxastic.envs.labels import labels
from doxastic.envs.references.episode import Categorical, Marginal, Moments
from doxastic.envs.rendering import draw, underlying
from doxastic.episodes import Episode
from doxastic.plotting import PALETTE

Frame = npt.NDArray[np.uint8]

_INK, _FAINT, _LINE = "#333333", "#8A8A8A", "#DDDDDD"
# Of a panel in inches, and pixels in an inch.
_PANEL, _DPI = 3.5, 90
# Above this many numbers an observation is drawn as an image.
_FEW = len(PALETTE)
# Where the band lies that says which value is true, above probabilities.
_TRUE = 1.4


class EpisodeFigure:
    """Draws the steps of an episode.

    Args:
        episode: The episode.
        title: What stands above the panels.

    Attributes:
        episode: The episode.
    """

    def __init__(self, episode: Episode, title: str) -> None:
        self.episode, self._title = episode, title
        self._labels = labels(underlying(episode.task))
        last = episode.moments[-1]
        self._panels = ["true state", "observation"]
        self._panels += [episode.posterior] if last.marginals else []
        self._panels += ["agent's belief"] if last.belief is not None else []
        size = (_PANEL * len(self._panels), _PANEL)
        self._figure = Figure(figsize=size, dpi=_DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)
        self._grid = GridSpec(
            1,
            len(self._panels),
            left=0.02,
            right=1 - 0.2 / size[0],
            bottom=0.13,
            top=0.79,
            wspace=0.26,
            figure=self._figure,
        )

    def frame(self, t: int) -> Frame:
        """Return the picture of step `t`, uint8 `[H, W, 3]`."""
        self._figure.clear()
        self._write_title(t)
        drawings = {
            "true state": self._draw_state,
            "observation": self._draw_observations,
            "agent's belief": self._draw_belief,
        }
        for i, name in enumerate(self._panels):
            cell = self._grid[0, i]
            drawings.get(name, self._draw_posterior)(cell, t)
            left = cell.get_position(self._figure).x0
            style: dict[str, Any] = {"fontsize": 10, "fontweight": "bold", "color": _INK}
            self._figure.text(left, 0.865, name, ha="left", va="bottom", **style)
        self._canvas.draw()
        return np.array(np.asarray(self._canvas.buffer_rgba())[:, :, :3])

    def _write_title(self, t: int) -> None:
        moment, episode = self.episode.moments[t], self.episode
        if moment.action is not None:
            doing = self._labels.action(moment.action)
        else:
            doing = "the episode is over" if episode.is_over else "the record ends here"
        tall = 10 if len(self._panels) > 2 else 8
        words = f"{self._title}   noise {episode.noise:g}   {episode.actor}"
        self._figure.text(0.012, 0.965, words, ha="left", va="top", fontsize=tall, color=_FAINT)
        words = f"step {t}: {doing}   return so far {moment.total:.3f}"
        place: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": tall, "color": _INK}
        self._figure.text(0.988, 0.965, words, **place)

    def _draw_state(self, cell: Any, t: int) -> None:
        draw(self.episode.task, self._figure.add_subplot(cell), self.episode.moments[t].state)

    def _draw_observations(self, cell: Any, t: int) -> None:
        axes = self._figure.add_subplot(cell)
        observations = np.stack([moment.observation for moment in self.episode.moments])
        task, names = self.episode.task, self._labels
        if observations.shape[1] > _FEW:
            self._draw_image(axes, observations, t)
            return
        self._over_time(axes)
        for i, name in enumerate(names.entries):
            seen = observations[: t + 1, i]
            axes.plot(seen, ".-", color=PALETTE[i], linewidth=0.8, markersize=5, label=name)
        if names.symbols:
            axes.set_yticks(range(len(names.symbols)), names.symbols)
            axes.set_ylim(-0.5, len(names.symbols) - 0.5)
        else:
            is_symbol = not isinstance(task.observation_space, spaces.Box)
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=is_symbol))
            axes.set_ylim(*_limits(observations))
        if len(names.entries) > 1:
            _legend(axes)

    def _draw_image(self, axes: Axes, observations: Any, t: int) -> None:
        shown = np.where(np.arange(len(observations))[:, None] <= t, observations, np.nan)
        axes.imshow(shown.T, aspect="auto", cmap="Blues_r", interpolation="nearest")
        self._over_time(axes)
        axes.grid(visible=False)
        axes.set_ylabel("entry", fontsize=8, color=_INK)

    def _draw_posterior(self, cell: Any, t: int) -> None:
        shown = [k for k, m in enumerate(self.episode.moments[0].marginals) if _is_open(m)]
        rows = cell.subgridspec(len(shown), 1, hspace=0.25 + 0.15 * len(shown))
        for row, k in enumerate(shown):
            axes = self._figure.add_subplot(rows[row])
            path: list[Any] = [moment.marginals[k] for moment in self.episode.moments]
            if isinstance(path[0], Categorical):
                self._draw_probabilities(axes, path[: t + 1])
            elif len(path[0].labels) == 1:
                self._draw_estimate(axes, path, t)
            else:
                _draw_estimates(axes, path[t])
            if row == 0 or isinstance(path[0], Categorical):
                _legend(axes)
            axes.set_title(path[0].name, fontsize=8, color=_INK, loc="left", pad=3)
            if row < len(shown) - 1:
                axes.set_xlabel("")

    def _draw_probabilities(self, axes: Axes, path: Sequence[Categorical]) -> None:
        probability = np.stack([marginal.probability for marginal in path])
        self._over_time(axes)
        for k, name in enumerate(path[0].labels):
            color = PALETTE[k % len(PALETTE)]
            style: dict[str, Any] = {"linewidth": 1.3, "markersize": 3, "label": name}
            axes.plot(probability[:, k], ".-", color=color, **style)
        starts = np.arange(len(path)) - 0.5
        colors = [PALETTE[marginal.truth % len(PALETTE)] for marginal in path]
        axes.hlines([_TRUE] * len(path), starts, starts + 1.1, colors=colors, linewidth=4)
        axes.set_ylim(-0.06, _TRUE + 0.08)
        axes.set_yticks([0, 0.5, 1, _TRUE], ["0", "0.5", "1", "true"])

    def _draw_estimate(self, axes: Axes, path: Sequence[Moments], t: int) -> None:
        mean, deviation, truth = (
            np.array([getattr(marginal, name)[0] for marginal in path])
            for name in ("mean", "deviation", "truth")
        )
        self._over_time(axes)
        low, high = mean - 2 * deviation, mean + 2 * deviation
        axes.set_ylim(*_limits(np.stack([low, high, truth])))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        past = slice(t + 1)
        steps = np.arange(t + 1)
        style: dict[str, Any] = {"color": PALETTE[0], "label": "two deviations"}
        axes.fill_between(steps, low[past], high[past], alpha=0.2, linewidth=0, **style)
        # The present, which is all there is at first.
        axes.vlines([t], low[t], high[t], color=PALETTE[0], linewidth=2.5, alpha=0.4)
        axes.plot(mean[past], ".-", color=PALETTE[0], linewidth=1.3, markersize=3, label="mean")
        axes.plot(truth[past], color=_INK, linewidth=1, linestyle=(0, (3, 2)), label="true")

    def _draw_belief(self, cell: Any, t: int) -> None:
        beliefs = [moment.belief for moment in self.episode.moments if moment.belief is not None]
        means = np.stack([np.asarray(belief.mean) for belief in beliefs])
        deviations = np.sqrt(np.stack([np.asarray(belief.variance) for belief in beliefs]))
        rows = cell.subgridspec(2, 1, hspace=0.55)
        upper, lower = (self._figure.add_subplot(rows[i]) for i in range(2))
        for axes, words in ((upper, "channels, mean and deviation"), (lower, "deviation")):
            axes.set_title(words, fontsize=8, color=_INK, loc="left", pad=3)
        _style(upper)
        low, high = means - deviations, means + deviations
        channels = np.arange(means.shape[1])
        upper.vlines(channels, low[t], high[t], color=PALETTE[0], linewidth=2.5, alpha=0.3)
        upper.plot(channels, means[t], ".", color=PALETTE[0], markersize=4)
        upper.set_ylim(*_limits(np.stack([low, high])))
        upper.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        upper.yaxis.set_major_locator(MaxNLocator(4))
        self._over_time(lower)
        low, middle, high = np.quantile(deviations, (0.1, 0.5, 0.9), axis=1)
        style: dict[str, Any] = {"color": PALETTE[0], "label": "10 to 90 % of them"}
        past, steps = slice(t + 1), np.arange(t + 1)
        lower.fill_between(steps, low[past], high[past], alpha=0.2, linewidth=0, **style)
        lower.plot(
            middle[past], ".-", color=PALETTE[0], linewidth=1.3, markersize=3, label="median"
        )
        lower.set_ylim(0, 1.08 * float(high.max()))
        lower.yaxis.set_major_locator(MaxNLocator(4))
        _legend(lower)

    def _over_time(self, axes: Axes) -> None:
        _style(axes)
        axes.set_xlim(-0.5, max(len(self.episode.moments) - 0.5, 4.5))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("step", fontsize=8, color=_INK)


def _draw_estimates(axes: Axes, marginal: Moments) -> None:
    """Draw several moments of one step beside each other."""
    place = np.arange(len(marginal.labels))
    _style(axes)
    ends = marginal.mean - 2 * marginal.deviation, marginal.mean + 2 * marginal.deviation
    style: dict[str, Any] = {"linewidth": 5, "alpha": 0.25}
    axes.vlines(place, *ends, color=PALETTE[0], label="two deviations", **style)
    axes.plot(place, marginal.mean, "o", color=PALETTE[0], markersize=4, label="mean")
    axes.plot(place, marginal.truth, "x", color=_INK, markersize=5, label="true")
    axes.set_xticks(place, marginal.labels)
    axes.set_ylim(-4, 4)


def _is_open(marginal: Marginal) -> bool:
    """Return whether there is anything to find out: a single noise level is known."""
    return isinstance(marginal, Moments) or len(marginal.labels) > 1


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(labelsize=8, colors=_INK, length=2, color=_FAINT)
    axes.grid(axis="y", color=_LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(axes: Axes) -> None:
    """Name what is drawn above the axes, to the right, where nothing else is."""
    style: dict[str, Any] = {"frameon": False, "fontsize": 7.5, "labelcolor": _INK}
    spacing: dict[str, Any] = {"handlelength": 1.0, "columnspacing": 0.9, "handletextpad": 0.35}
    place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.02, 0.98)}
    count = len(axes.get_legend_handles_labels()[1])
    axes.legend(ncols=count, borderaxespad=0.1, **style, **spacing, **place)


def _limits(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Return limits that leave a margin, and have a height where all values are equal."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin
