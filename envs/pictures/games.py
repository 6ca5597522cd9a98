"""Pictures of the games: the whole board or deck, what is hidden paler."""

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
    SKY,
    SUIT_COLORS,
    VERMILION,
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
from doxastic.envs.tasks.battleship import Battleship
from doxastic.envs.tasks.concentration import Concentration
from doxastic.envs.tasks.higher_lower import HigherLower
from doxastic.envs.tasks.mine_sweeper import MineSweeper

_WATER, _SHIP = "#DCEAF5", "#9AA3AD"


def higher_lower(task: HigherLower, axes: Axes, state: State) -> None:
    """Draw the present card, and how many cards of every rank are left."""
    ranks, dealt = state["ranks"], int(state["dealt"])
    count = len(RANKS)
    left = np.bincount(ranks[dealt:], minlength=count)
    now, most = int(ranks[dealt - 1]), 4 * task.decks
    stage(axes, (-0.8, count + 3.9), (-2.6, 7.4))
    axes.plot([-0.5, count - 0.5], [0, 0], color=FAINT, linewidth=1)
    for rank in range(count):
        color = VERMILION if rank < now else FAINT if rank == now else BLUE
        height = 5 * left[rank] / most
        box(axes, rank, height / 2, 0.7, height, color)
        text(axes, rank, height + 0.35, str(left[rank]), fontsize=8, color=FAINT)
        weight = "bold" if rank == now else "normal"
        text(axes, rank, -0.5, RANKS[rank], fontsize=9, fontweight=weight)
    card(axes, count + 1.9, 2.6, RANKS[now], scale=3.2)
    text(axes, count + 1.9, 5.4, "present card", color=FAINT)
    lower, higher = int(left[:now].sum()), int(left[now + 1 :].sum())
    text(axes, -0.5, 6.6, "cards left:", ha="left", fontsize=10)
    text(axes, 3.6, 6.6, f"{lower} lower", ha="left", color=VERMILION, fontsize=10)
    text(axes, 7.2, 6.6, f"{higher} higher", ha="left", color=BLUE, fontsize=10)
    progress(axes, dealt / task.cards, f"card {dealt} of {task.cards}")


def concentration(task: Concentration, axes: Axes, state: State) -> None:
    """Draw all cards: matched ones green, turned ones outlined, those face down pale."""
    kinds, matched, shown = state["kinds"], state["matched"], state["shown"]
    n = task.cards
    rows, columns = grid(n)
    faces = [
        "#CFE8DF" if up else "#FBE3B5" if seen else SHADE
        for up, seen in zip(matched, shown, strict=True)
    ]
    board(axes, rows, columns, faces)
    axes.set_ylim(rows + 0.9, -1.4)
    size, place, is_up = points(axes, 0.5), np.arange(n), shown | matched
    for kind in range(task.kinds):
        for up in (False, True):
            here = place[(kinds == kind) & (is_up == up)]
            words, color = r"\bullet", SUIT_COLORS[kind % 2]
            if task.kind == "ranks":
                words, color = RANKS[kind], INK
            style = {"alpha": 1.0 if up else 0.35, "markersize": 0.8 * size}
            marks(axes, here % columns, here // columns, words, color, **style)
    for i in np.flatnonzero(shown & ~matched).tolist():
        box(axes, i % columns, i // columns, 0.94, 0.94, "none", edgecolor="#8A5A00", linewidth=2)
    pairs = int(state["pairs"])
    text(axes, -0.5, -1.0, f"{pairs} of {n // 2} pairs found", ha="left", fontsize=10)
    progress(axes, pairs / (n // 2), "")


def battleship(task: Battleship, axes: Axes, state: State) -> None:
    """Draw the ships, with a cross on every hit and a dot on every miss."""
    ship, shot, size = state["ship"], state["shot"], task.size
    board(axes, size, size, [_SHIP if covered else _WATER for covered in ship])
    axes.set_ylim(size + 0.5, -1.3)
    hit, miss = np.flatnonzero(ship & shot), np.flatnonzero(shot & ~ship)
    mark = 0.5 * points(axes, 1.0)
    marks(axes, hit % size, hit // size, r"\times", VERMILION, markersize=mark)
    marks(axes, miss % size, miss // size, r"\bullet", SKY, markersize=mark / 2)
    words = f"{int(state['hits'])} of {task.targets} squares of ships hit"
    text(axes, -0.5, -0.95, words, ha="left", fontsize=10)
    progress(axes, shot.sum() / task.squares, f"{int(shot.sum())} squares shot at")


def mine_sweeper(task: MineSweeper, axes: Axes, state: State) -> None:
    """Draw the mines and the numbers of the uncovered squares."""
    mine, around, uncovered = state["mine"], state["around"], state["uncovered"]
    size = task.size
    board(axes, size, size, [_WATER if open_ else LINE for open_ in uncovered])
    axes.set_ylim(size + 0.5, -1.3)
    tall = 0.5 * points(axes, 1.0)
    for i in range(task.squares):
        x, y = i % size, i // size
        if mine[i]:
            disc(axes, x, y, 0.26, INK)
        elif uncovered[i]:
            color = GREEN if around[i] == 0 else VERMILION
            text(axes, x, y, str(int(around[i])), fontsize=tall, color=color, fontweight="bold")
    safe = task.squares - task.mines
    done = safe - int(state["left"])
    text(axes, -0.5, -0.95, f"{done} of {safe} squares uncovered", ha="left", fontsize=10)
    progress(axes, done / safe, f"{task.mines} mines")
