"""Pictures of the confidence group: what is true, and how noisy it is seen."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Arc, Circle

from doxastic.envs.pictures.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    LINE,
    ORANGE,
    PAPER,
    SHADE,
    VERMILION,
    State,
    box,
    disc,
    number,
    progress,
    stage,
    text,
)
from doxastic.envs.tasks.light_dark import LightDark
from doxastic.envs.tasks.noisy_bandit import NoisyBandit
from doxastic.envs.tasks.sequential_test import SequentialTest
from doxastic.envs.tasks.tiger import Tiger


def sequential_test(task: SequentialTest, axes: Axes, state: State) -> None:
    """Draw the densities of the observation under both hypotheses, the true one filled."""
    sign, noise = float(state["sign"]), float(state["noise"])
    stage(axes, (-4.2, 4.2), (-1.25, 4.35))
    o = np.linspace(-4, 4, 161)
    for hypothesis in (-sign, sign):
        is_true = hypothesis == sign
        # Of height 3 whatever the noise; without any, the narrowest that can be seen.
        density = 3 * np.exp(-(((o - hypothesis) / max(noise, 0.03)) ** 2) / 2)
        color = BLUE if is_true else FAINT
        if is_true:
            axes.fill_between(o, density, color=BLUE, alpha=0.25, linewidth=0)
        axes.plot(o, density, color=color, linewidth=1.8 if is_true else 1.0)
        weight = "bold" if is_true else "normal"
        words = f"{hypothesis:+.0f}" + (" is true" if is_true else "")
        text(axes, 1.9 * hypothesis, 3.6, words, color=color, fontsize=11, fontweight=weight)
    axes.plot([-4.1, 4.1], [0, 0], color=INK, linewidth=1)
    for tick in range(-4, 5):
        axes.plot([tick, tick], [-0.08, 0], color=INK, linewidth=1)
        text(axes, tick, -0.33, str(tick), fontsize=8, color=FAINT)
    text(axes, -4.1, -0.8, "observation", fontsize=8, color=FAINT, ha="left")
    _steps(axes, state, task.horizon)


def tiger(task: Tiger, axes: Axes, state: State) -> None:
    """Draw both doors with what is behind them, and that a sound is heard if one is.

    The state does not say from which side it seems to come: the observation does.
    """
    side = float(state["tiger"])
    stage(axes, (-3.2, 3.2), (-0.95, 3.75))
    for door in (-1, 1):
        x, is_tiger = 1.5 * door, door == side
        box(axes, x, 1.3, 1.9, 2.6, SHADE, edgecolor=FAINT, linewidth=1.5)
        disc(axes, x - 0.75, 1.2, 0.07, FAINT)
        color, words = (ORANGE, "tiger") if is_tiger else (GREEN, "treasure")
        disc(axes, x, 1.45, 0.55, color)
        if is_tiger:
            for stripe in (-0.25, 0.0, 0.25):
                height = 0.45 * math.sqrt(1 - (stripe / 0.55) ** 2)
                axes.plot([x + stripe] * 2, [1.45 + height / 3, 1.45 + height], color=INK, lw=3)
        text(axes, x, 0.5, words, color=color, fontweight="bold")
        text(axes, x, 2.85, "left" if door < 0 else "right", color=FAINT)
    words = "listened: a sound is heard" if state["listened"] else "a round starts in silence"
    text(axes, 0, 3.45, words, fontsize=10)
    if state["listened"]:
        disc(axes, 0, 1.45, 0.07, BLUE)
        for size in (0.4, 0.65, 0.9):
            for angle in (0, 180):
                ends = {"theta1": angle - 40, "theta2": angle + 40}
                axes.add_patch(Arc((0, 1.45), size, size, color=BLUE, linewidth=2, **ends))
    text(axes, -3.2, -0.5, f"wrong side in {float(state['noise']):.0%} of sounds", ha="left")
    _steps(axes, state, task.horizon)


def light_dark(task: LightDark, axes: Axes, state: State) -> None:
    """Draw the plane as bright as its readings are sharp, the goal and the agent."""
    (x, y), light, r = state["position"], task.light, task.radius
    low, high = min(-1.2, -0.3 * light, x - 0.4), max(1.3 * light, x + 0.4)
    tall = max(2.4 * task.spread, abs(y) + 0.5, 0.4 * (high - low))
    stage(axes, (low, high), (-tall - 0.9, tall))
    line = np.linspace(low, high, 120)
    dark = task.darkness(line)[None, :]
    extent = (low, high, -tall, tall)
    axes.imshow(dark, extent=extent, cmap="Greys", vmin=0, vmax=2.0, aspect="equal", zorder=0)
    axes.plot([light, light], [-tall, tall], color=ORANGE, linewidth=2.5)
    text(axes, light - 0.1, tall - 0.3, "light", color=ORANGE, ha="right", fontweight="bold")
    for size in (2 * r, r):
        ring = Circle((0, 0), size, facecolor="none", edgecolor=GREEN, linewidth=2)
        axes.add_patch(ring)
    text(axes, 0, -2 * r - 0.3, "goal", color=GREEN, fontweight="bold")
    scale = float(state["noise"]) * float(task.darkness(x))
    reach = [max(y - scale, -tall), min(y + scale, tall)]
    axes.plot([x, x], reach, color=BLUE, linewidth=5, alpha=0.3, solid_capstyle="butt")
    disc(axes, x, y, 0.16, BLUE, edgecolor=PAPER, linewidth=1.5, zorder=4)
    words = f"readings deviate by {number(scale)}"
    text(axes, low, -tall - 0.2, words, ha="left", va="top", color=BLUE, fontsize=8)
    _steps(axes, state, task.horizon)


def noisy_bandit(task: NoisyBandit, axes: Axes, state: State) -> None:
    """Draw the mean of every arm and the deviation of its readings."""
    means, scales, pulled = state["means"], state["scales"], int(state["pulled"])
    tall = 4.0
    axes.set_xlim(-0.8, task.arms - 0.2)
    axes.set_ylim(-tall - 1.6, tall + 0.9)
    axes.set_aspect("auto")
    axes.axis("off")
    axes.plot([-0.6, task.arms - 0.4], [0, 0], color=LINE, linewidth=1)
    best = int(np.argmax(means))
    for i, (mean, scale) in enumerate(zip(means, scales, strict=True)):
        color = BLUE if scale == task.reliable_noise else VERMILION
        if i == pulled:
            box(axes, i, -0.2, 0.9, 2 * tall + 0.6, SHADE)
        ends = np.clip([mean - scale, mean + scale], -tall, tall)
        axes.plot([i, i], ends, color=color, linewidth=6, alpha=0.3, solid_capstyle="butt")
        axes.plot([i], [mean], "o", color=color, markersize=7, zorder=3)
        name = {"fontweight": "bold", "color": GREEN} if i == best else {"color": FAINT}
        text(axes, i, -tall - 0.35, str(i), **name)
    text(axes, -0.6, tall + 0.6, "reliable arm", color=BLUE, ha="left")
    text(axes, 0.26 * task.arms, tall + 0.6, "unreliable arm", color=VERMILION, ha="left")
    words = "nothing was pulled" if pulled < 0 else f"arm {pulled} was pulled"
    text(axes, -0.6, -tall - 1.05, f"best arm {best}; {words}", ha="left")
    _steps(axes, state, task.horizon)


def _steps(axes: Axes, state: State, horizon: int) -> None:
    steps = int(state["steps"])
    progress(axes, steps / horizon, f"step {steps} of {horizon}")
