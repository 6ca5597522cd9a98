"""Pictures of the memory tasks: what was shown, what is shown, what is asked for."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from doxastic.envs.labels import RANKS
from doxastic.envs.pictures.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    LINE,
    SHADE,
    SUIT_COLORS,
    SUITS,
    State,
    board,
    box,
    card,
    disc,
    grid,
    marks,
    points,
    progress,
    stage,
    text,
)
from doxastic.envs.tasks.autoencode import Autoencode
from doxastic.envs.tasks.copying import DISTRACTOR, RECALL, Copy
from doxastic.envs.tasks.count_recall import CountRecall
from doxastic.envs.tasks.repeat_first import RepeatFirst
from doxastic.envs.tasks.repeat_previous import RepeatPrevious
from doxastic.envs.tasks.t_maze import LEFT, TMaze


def t_maze(task: TMaze, axes: Axes, state: State) -> None:
    """Draw the corridor from the cue to the junction, with the agent in it."""
    side, position, end = int(state["side"]), int(state["position"]), task.length
    stage(axes, (-0.8, end + 0.8), (-0.33 * end - 1.6, 0.33 * end + 1.4))
    cells = [(x, 0) for x in range(end + 1)] + [(end, 1), (end, -1)]
    for x, y in cells:
        box(axes, x, y, 0.94, 0.94, SHADE)
    goal = 1 if side == LEFT else -1
    box(axes, end, goal, 0.94, 0.94, GREEN)
    tall = min(14.0, points(axes, 0.5))
    text(axes, end, goal, "+1", color="white", fontweight="bold", fontsize=tall)
    text(axes, end, -goal, "-1", color=FAINT, fontsize=tall)
    # An agent that walks to the right has its left hand above.
    words = "cue: left" if side == LEFT else "cue: right"
    text(axes, -0.5, 0.95, words, color=GREEN, ha="left", fontweight="bold")
    disc(axes, position, 0, 0.3, BLUE, zorder=4)
    axes.plot([position + 0.1], [0], ">", color="white", markersize=tall / 3, zorder=5)
    progress(axes, state["steps"] / task.horizon, f"step {int(state['steps'])} of {task.horizon}")


def repeat_first(task: RepeatFirst, axes: Axes, state: State) -> None:
    """Draw the card of the present and the first one, which is asked for."""
    suits, dealt = state["suits"], int(state["dealt"])
    stage(axes, (-2.1, 2.1), (-1.35, 1.55))
    for x, suit, words in ((-1, suits[0], "first: asked for"), (1, suits[dealt - 1], "just dealt")):
        edge = {"edgecolor": GREEN, "linewidth": 2.5} if x < 0 else {}
        _suit_card(axes, x, 0.0, int(suit), scale=1.35, **edge)
        text(axes, x, 1.2, words, color=GREEN if x < 0 else FAINT, fontsize=10)
    _dealt(axes, dealt, task.cards)


def repeat_previous(task: RepeatPrevious, axes: Axes, state: State) -> None:
    """Draw the last k cards, the one that is asked for first."""
    suits, dealt, k = state["suits"], int(state["dealt"]), task.k
    rows, columns = grid(k, 2.2, 6)
    stage(axes, (-0.7, columns - 0.3), (-1.4 * rows + 0.1, 1.3))
    for i in range(k):
        place, x, y = dealt - k + i, i % columns, -1.4 * (i // columns)
        if place < 0:
            card(axes, x, y, "", facecolor=SHADE, edgecolor=LINE)
            continue
        asked = {"edgecolor": GREEN, "linewidth": 2.5} if i == 0 else {}
        _suit_card(axes, x, y, int(suits[place]), **asked)
    words = "asked for" if dealt >= k else f"asked for from card {k} on"
    text(axes, -0.43, 0.95, words, color=GREEN, ha="left", fontsize=10)
    text(axes, columns - 0.57, 0.95, "just dealt", color=FAINT, ha="right", fontsize=10)
    _dealt(axes, dealt, task.cards)


def autoencode(task: Autoencode, axes: Axes, state: State) -> None:
    """Draw all cards in the order in which they are shown, and how far that has come."""
    suits, steps, n = state["suits"], int(state["steps"]), task.cards
    answered = max(steps - (n - 1), 0)
    shown, asked = min(steps + 1, n), n - 1 - answered
    rows, columns = grid(n)
    is_recall = steps >= n - 1
    faces = [SHADE if i >= shown else "#DDE6EE" for i in range(n)]
    if is_recall:
        faces = ["#DDE6EE" if i <= asked else "#CFE8DF" for i in range(n)]
    board(axes, rows, columns, faces)
    axes.set_ylim(rows + 0.9, -1.4)
    place = np.arange(n)
    for suit, symbol in enumerate(SUITS):
        for seen in (False, True):
            here = place[(suits == suit) & ((place < shown) == seen)]
            style = {"alpha": 1.0 if seen else 0.25, "markersize": points(axes, 0.45)}
            marks(axes, here % columns, here // columns, symbol, SUIT_COLORS[suit % 2], **style)
    now = asked if is_recall else shown - 1
    if now >= 0:
        look = {"edgecolor": GREEN if is_recall else BLUE, "linewidth": 2}
        box(axes, now % columns, now // columns, 0.96, 0.96, "none", **look)
    words = "recall: from the last to the first" if is_recall else "watch: the cards one by one"
    color = GREEN if is_recall else BLUE
    text(axes, -0.5, -1.0, words, color=color, ha="left", fontsize=10)
    progress(axes, steps / (2 * n - 1), f"step {steps} of {2 * n - 1}")


def count_recall(task: CountRecall, axes: Axes, state: State) -> None:
    """Draw how often every kind has been dealt, and which is asked for."""
    counts, last = state["counts"], int(state["dealt"]) - 1
    value, query = int(state["values"][last]), int(state["queries"][last])
    most, kinds = task.cards // task.kinds, task.kinds
    axes.set_xlim(-0.8, kinds - 0.2)
    axes.set_ylim(-0.34 * most, 1.3 * most)
    axes.set_aspect("auto")
    axes.axis("off")
    axes.plot([-0.6, kinds - 0.4], [0, 0], color=FAINT, linewidth=1)
    for kind, count in enumerate(counts):
        color = GREEN if kind == query else FAINT
        box(axes, kind, count / 2, 0.6, float(count), color if kind == query else LINE)
        text(axes, kind, count + 0.06 * most, str(int(count)), color=color, fontweight="bold")
        tall = 12 if kinds <= 4 else 10
        text(axes, kind, -0.08 * most, _kind(task, kind), color=_color(task, kind), fontsize=tall)
    text(axes, -0.6, 1.2 * most, f"asked for: {_kind(task, query)}", color=GREEN, ha="left")
    text(axes, kinds - 0.4, 1.2 * most, f"just dealt: {_kind(task, value)}", ha="right")
    _dealt(axes, last + 1, task.cards)


def copying(task: Copy, axes: Axes, state: State) -> None:
    """Draw the sequence with its marked symbols, and the answers that are due."""
    marks, symbols, steps = state["marks"], state["symbols"], int(state["steps"])
    shown = len(marks) - task.length
    rows, columns = grid(shown, 3.0, task.length)
    faces = [SHADE if mark == DISTRACTOR else "#FBE3B5" for mark in marks[:shown]]
    board(axes, rows, columns, faces)
    wide = max(columns, task.length)
    axes.set_xlim(-0.6, wide - 0.4)
    axes.set_ylim(rows + 3.1, -1.4)
    tall = min(16.0, points(axes, 0.5))
    for i, symbol in enumerate(symbols[:shown]):
        style = {"alpha": 1.0 if i <= steps else 0.3}
        color = INK if marks[i] == DISTRACTOR else "#8A5A00"
        text(axes, i % columns, i // columns, str(symbol), fontsize=tall, color=color, **style)
    text(axes, -0.5, -1.0, "the sequence; marked symbols are to be repeated", ha="left")
    text(axes, -0.5, rows + 0.35, "answers, in order", ha="left", color=GREEN)
    given = max(steps - shown, 0)
    for i, target in enumerate(state["targets"]):
        face = "#CFE8DF" if i < given else "none"
        box(axes, i, rows + 1.3, 0.92, 0.92, face, edgecolor=GREEN, linewidth=1)
        text(axes, i, rows + 1.3, str(target), fontsize=tall, color=GREEN)
    now = min(steps, len(marks) - 1)
    x, y = (now % columns, now // columns) if marks[now] != RECALL else (now - shown, rows + 1.3)
    box(axes, x, y, 0.98, 0.98, "none", edgecolor=BLUE, linewidth=2.2)
    progress(axes, steps / len(marks), f"step {steps} of {len(marks)}")


def _suit_card(axes: Axes, x: float, y: float, suit: int, **style: object) -> None:
    card(axes, x, y, SUITS[suit], SUIT_COLORS[suit % 2], **style)  # type: ignore[arg-type]


def _kind(task: CountRecall, kind: int) -> str:
    names = {"colors": ("black", "red"), "suits": tuple(SUITS), "ranks": RANKS}
    return names[task.kind][kind]


def _color(task: CountRecall, kind: int) -> str:
    return INK if task.kind == "ranks" else SUIT_COLORS[kind % 2]


def _dealt(axes: Axes, dealt: int, cards: int) -> None:
    progress(axes, dealt / cards, f"card {int(np.minimum(dealt, cards))} of {cards}")
