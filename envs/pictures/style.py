"""Colours and shapes that the pictures of all tasks share.

Pictures are drawn into Matplotlib axes as wide as high or wider, in units of the task or of cards
and squares. What is hidden from the agent is drawn as it is: these are pictures of the true state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

# Okabe and Ito, "Color Universal Design"; the same as in doxastic/plotting.py.
BLUE, VERMILION, GREEN, PINK, SKY, ORANGE, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
)
INK = "#333333"
FAINT = "#8A8A8A"
LINE = "#C9CED4"
SHADE = "#EEF2F6"
PAPER = "white"

# Symbols and colours of the suits in POPGym's order: spades, diamonds, clubs, hearts.
SUITS = "♠♦♣♥"
SUIT_COLORS = (INK, VERMILION)

State = dict[str, Any]


def stage(axes: Axes, width: tuple[float, float], height: tuple[float, float]) -> None:
    """Show this rectangle of the plane in equal scale, without ticks."""
    axes.set_xlim(*width)
    axes.set_ylim(*height)
    axes.set_aspect("equal")
    axes.axis("off")


def text(axes: Axes, x: float, y: float, words: str, **style: Any) -> None:
    """Write words centred at a point."""
    axes.text(x, y, words, **{"ha": "center", "va": "center", "color": INK, "fontsize": 9, **style})


def marks(axes: Axes, x: Any, y: Any, words: str, color: str, **style: Any) -> None:
    """Write one short word at many points, far quicker than as texts; `style` of the markers."""
    look = {"linestyle": "none", "markeredgewidth": 0, "color": color, **style}
    axes.plot(x, y, marker=f"${words}$", **look)


def disc(axes: Axes, x: float, y: float, radius: float, color: str, **style: Any) -> None:
    """Draw a filled circle."""
    axes.add_patch(Circle((x, y), radius, facecolor=color, **{"linewidth": 0, **style}))


def box(axes: Axes, x: float, y: float, w: float, h: float, color: str, **style: Any) -> None:
    """Draw a filled rectangle of the given centre and size."""
    corner = (x - w / 2, y - h / 2)
    axes.add_patch(Rectangle(corner, w, h, facecolor=color, **{"linewidth": 0, **style}))


def card(
    axes: Axes,
    x: float,
    y: float,
    words: str,
    color: str = INK,
    *,
    scale: float = 1.0,
    **style: Any,
) -> None:
    """Draw a playing card of height 1.4 `scale` around (x, y).

    Args:
        axes: Where to draw.
        x: Centre.
        y: Centre.
        words: What is written on it.
        color: Colour of the words.
        scale: Width of the card in the units of the axes.
        style: Of the card: facecolor, edgecolor, linewidth.
    """
    w, h = 0.86 * scale, 1.26 * scale
    round_corner = f"round,pad=0,rounding_size={0.1 * scale}"
    look = {"facecolor": PAPER, "edgecolor": FAINT, "linewidth": 1.0, **style}
    axes.add_patch(FancyBboxPatch((x - w / 2, y - h / 2), w, h, boxstyle=round_corner, **look))
    if words:
        # The symbols stand above the middle of their line.
        tall = points(axes, (0.62 - 0.08 * len(words)) * h)
        text(axes, x, y - 0.04 * h, words, color=color, fontsize=tall)


def points(axes: Axes, height: float) -> float:
    """Return the font size in points that is about `height` in the units of the axes."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    place, (w, h) = axes.get_position(), figure.get_size_inches()
    wide, high = abs(np.diff(axes.get_xlim())[0]), abs(np.diff(axes.get_ylim())[0])
    return float(72 * height * min(place.width * w / wide, place.height * h / high))


def progress(axes: Axes, share: float, words: str) -> None:
    """Draw how much of the episode is over as a bar along the lower edge of the axes."""
    share = min(max(share, 0.0), 1.0)
    place: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "linewidth": 0}
    axes.add_patch(Rectangle((0.0, 0.0), 1.0, 0.018, facecolor=SHADE, **place))
    axes.add_patch(Rectangle((0.0, 0.0), share, 0.018, facecolor=FAINT, **place))
    style: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 8, "color": FAINT}
    axes.text(1.0, 0.03, words, transform=axes.transAxes, **style)


def board(axes: Axes, rows: int, columns: int, faces: Sequence[Any]) -> None:
    """Draw squares with white seams, row 0 on top, each of side 1 around (column, row).

    Args:
        axes: Where to draw; its vertical axis points downwards afterwards.
        rows: Number of rows.
        columns: Number of columns.
        faces: Colours of the squares, row by row.
    """
    stage(axes, (-0.6, columns - 0.4), (rows - 0.4, -0.6))
    squares = [
        Rectangle((i % columns - 0.46, i // columns - 0.46), 0.92, 0.92) for i in range(len(faces))
    ]
    axes.add_collection(PatchCollection(squares, facecolors=list(faces), linewidths=0))


def grid(count: int, aspect: float = 1.5, narrowest: int = 1) -> tuple[int, int]:
    """Return rows and columns for `count` things, about `aspect` times as many columns as rows.

    There are `narrowest` columns or more, if there are as many things.
    """
    widest = max(math.ceil(math.sqrt(aspect * count)), narrowest)
    rows = math.ceil(count / widest)
    return rows, math.ceil(count / rows)


def number(value: float) -> str:
    """Return a noise level or another number in few digits."""
    return f"{value:.3g}"
