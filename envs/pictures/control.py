"""Pictures of the control tasks: what moves, drawn to scale."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.patches import Wedge

from doxastic.envs.pictures.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    LINE,
    ORANGE,
    SHADE,
    VERMILION,
    State,
    box,
    disc,
    stage,
    text,
)
from doxastic.envs.tasks.acrobot import TARGET_HEIGHT, Acrobot
from doxastic.envs.tasks.cartpole import ANGLE_LIMIT, HALF_POLE_LENGTH, POSITION_LIMIT, CartPole
from doxastic.envs.tasks.linear_gaussian import LinearGaussian
from doxastic.envs.tasks.pendulum import Pendulum

# Size of the cart, which the physics do not have.
_CART = (0.5, 0.26)


def cart_pole(task: CartPole, axes: Axes, state: State) -> None:
    """Draw the cart on its track and the pole, with the limits of both."""
    x, _, theta, _ = state["physics"]
    stage(axes, (-2.75, 2.75), (-1.05, 2.05))
    top, pole = _CART[1], 2 * HALF_POLE_LENGTH
    axes.plot([-POSITION_LIMIT, POSITION_LIMIT], [-0.09] * 2, color=LINE, linewidth=2)
    for end in (-POSITION_LIMIT, POSITION_LIMIT):
        box(axes, end, 0.0, 0.04, 0.5, VERMILION)
    limit = math.degrees(ANGLE_LIMIT)
    cone = Wedge((x, top), 1.35 * pole, 90 - limit, 90 + limit, facecolor=SHADE, linewidth=0)
    axes.add_patch(cone)
    box(axes, x, top / 2, *_CART, INK)
    for side in (-0.14, 0.14):
        disc(axes, x + side, -0.03, 0.07, FAINT)
    tip = (x + pole * math.sin(theta), top + pole * math.cos(theta))
    _rod(axes, [(x, top), tip], ORANGE, 6)
    disc(axes, x, top, 0.06, BLUE, zorder=4)
    text(axes, -POSITION_LIMIT, -0.42, f"-{POSITION_LIMIT} m", color=FAINT)
    text(axes, POSITION_LIMIT, -0.42, f"{POSITION_LIMIT} m", color=FAINT)
    text(axes, 0.0, -0.75, f"x {x:+.2f} m     pole {math.degrees(theta):+.1f} degrees")


def pendulum(task: Pendulum, axes: Axes, state: State) -> None:
    """Draw the rod, its speed as an arc ahead of it, and where it should be."""
    theta, speed = float(state["theta"]), float(state["theta_dot"])
    stage(axes, (-1.75, 1.75), (-1.5, 1.35))
    axes.plot([0, 0], [0, 1.2], color=LINE, linestyle=(0, (4, 3)), linewidth=1.5)
    # Angles count from upright, positive to the left as Gymnasium draws them.
    angle = math.degrees(theta) + 90
    reach = math.degrees(speed) * 0.1
    ahead = Wedge(
        (0, 0), 0.98, min(angle, angle + reach), max(angle, angle + reach), facecolor=SHADE
    )
    axes.add_patch(ahead)
    tip = (-math.sin(theta), math.cos(theta))
    _rod(axes, [(0.0, 0.0), tip], VERMILION, 9)
    disc(axes, 0, 0, 0.07, INK, zorder=4)
    text(axes, 0, -1.36, f"angle {math.degrees(theta):+.0f} degrees     speed {speed:+.1f} rad/s")


def acrobot(task: Acrobot, axes: Axes, state: State) -> None:
    """Draw both links and the line that the free end has to reach."""
    theta1, theta2, *_ = state["physics"]
    stage(axes, (-2.9, 2.9), (-2.35, 2.35))
    elbow = np.array([math.sin(theta1), -math.cos(theta1)])
    end = elbow + np.array([math.sin(theta1 + theta2), -math.cos(theta1 + theta2)])
    axes.plot([-2.7, 2.7], [TARGET_HEIGHT] * 2, color=GREEN, linestyle=(0, (4, 3)), linewidth=1.5)
    text(axes, 2.7, TARGET_HEIGHT + 0.16, "to be reached", color=GREEN, ha="right")
    _rod(axes, [(0.0, 0.0), tuple(elbow)], BLUE, 8)
    _rod(axes, [tuple(elbow), tuple(end)], ORANGE, 8)
    disc(axes, 0, 0, 0.1, INK, zorder=4)
    disc(axes, elbow[0], elbow[1], 0.1, INK, zorder=4)
    disc(axes, end[0], end[1], 0.08, VERMILION, zorder=4)
    text(axes, -2.7, -2.2, f"height {end[1]:+.2f} m", ha="left")


def linear_gaussian(task: LinearGaussian, axes: Axes, state: State) -> None:
    """Draw the mass on its spring, or the entries of the state of another system as bars."""
    default = LinearGaussian()
    is_default = all(
        np.array_equal(getattr(task, name), getattr(default, name))
        for name in ("dynamics", "control", "observation")
    )
    if is_default:
        _mass_on_spring(axes, *state["x"])
    else:
        _bars(axes, state["x"])


def _mass_on_spring(axes: Axes, x: float, speed: float) -> None:
    wall, side = -4.6, 0.8
    stage(axes, (-5, 5), (-2.4, 2.4))
    box(axes, wall - 0.1, 0.0, 0.2, 2.0, FAINT)
    axes.plot([wall, 4.8], [-side / 2 - 0.04] * 2, color=LINE, linewidth=2)
    axes.plot([0, 0], [-0.9, 1.3], color=GREEN, linestyle=(0, (4, 3)), linewidth=1.5)
    left = max(x - side / 2, wall + 0.3)
    coil = np.linspace(wall, left, 26)
    swing = np.where(np.arange(26) % 2, 0.2, -0.2)
    swing[[0, 1, -2, -1]] = 0
    axes.plot(coil, swing, color=INK, linewidth=1.3)
    box(axes, left + side / 2, 0, side, side, BLUE)
    arrow = {"arrowstyle": "-|>", "color": ORANGE, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
    start = (left + side / 2, 0.75)
    if abs(speed) > 0.05:
        axes.annotate("", (start[0] + speed, start[1]), start, arrowprops=arrow)
    text(axes, 0, -1.2, "to be held here", color=GREEN)
    text(axes, 0, -1.9, f"x {x:+.2f} m     speed {speed:+.2f} m/s")


def _bars(axes: Axes, x: npt.NDArray[np.float64]) -> None:
    size = len(x)
    axes.set_xlim(-0.7, size - 0.3)
    axes.set_ylim(-4, 4)
    axes.set_aspect("auto")
    axes.axis("off")
    axes.axhline(0, color=LINE, linewidth=1.5)
    for i, value in enumerate(x):
        height = float(np.clip(value, -3.4, 3.4))
        box(axes, i, height / 2, 0.6, abs(height), BLUE)
        text(axes, i, -3.7, f"x{i + 1} {value:+.2f}")


def _rod(axes: Axes, ends: list[tuple[float, ...]], color: str, width: float) -> None:
    (x0, y0), (x1, y1) = ends
    axes.plot([x0, x1], [y0, y1], color=color, linewidth=width, solid_capstyle="round", zorder=3)
