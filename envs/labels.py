"""What the entries of observations, their symbols, and actions are called in figures."""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from doxastic.envs.batched import BatchedPOMDP
from doxastic.envs.tasks.acrobot import Acrobot
from doxastic.envs.tasks.autoencode import Autoencode
from doxastic.envs.tasks.battleship import Battleship
from doxastic.envs.tasks.cartpole import COLUMNS, CartPole
from doxastic.envs.tasks.copying import Copy
from doxastic.envs.tasks.count_recall import CountRecall
from doxastic.envs.tasks.higher_lower import HigherLower
from doxastic.envs.tasks.light_dark import LightDark
from doxastic.envs.tasks.noisy_bandit import NoisyBandit
from doxastic.envs.tasks.pendulum import Pendulum
from doxastic.envs.tasks.repeat_first import RepeatFirst
from doxastic.envs.tasks.repeat_previous import RepeatPrevious
from doxastic.envs.tasks.sequential_test import SequentialTest
from doxastic.envs.tasks.t_maze import TMaze
from doxastic.envs.tasks.tiger import Tiger

_SUITS = ("spades", "diamonds", "clubs", "hearts")
RANKS = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")


class Labels(NamedTuple):
    """Names for figures; empty where numbers say as much."""

    entries: tuple[str, ...] = ()
    """Of the entries of an observation."""

    symbols: tuple[str, ...] = ()
    """Of the symbols of a Discrete observation."""

    actions: tuple[str, ...] = ()
    """Of Discrete actions."""

    def action(self, action: Any) -> str:
        """Return what an action is called."""
        if self.actions:
            return self.actions[int(action)]
        values = np.atleast_1d(action)
        if values.dtype.kind in "iu":
            return ", ".join(map(str, values))
        # Plus 0: no negative zero.
        return ", ".join(f"{value:+.2f}" for value in np.round(values, 2) + 0.0)


def labels(task: BatchedPOMDP) -> Labels:
    """Return the names of a task, with an entry for every number it observes."""
    found = _labels(task)
    space = task.observation_space
    size = 1 if isinstance(space, spaces.Discrete) else int(np.prod(space.shape or (1,)))
    if len(found.entries) != size:
        names = ("observation",) if size == 1 else tuple(f"entry {i + 1}" for i in range(size))
        found = found._replace(entries=names)
    return found


@singledispatch
def _labels(task: BatchedPOMDP) -> Labels:
    return Labels()


@_labels.register
def _(task: SequentialTest) -> Labels:
    return Labels(("observation",), (), ("wait", "answer -1", "answer +1"))


@_labels.register
def _(task: Tiger) -> Labels:
    return Labels(("sound",), ("silence", "left", "right"), ("listen", "open left", "open right"))


@_labels.register
def _(task: LightDark) -> Labels:
    return Labels(("x", "reading of y"))


@_labels.register
def _(task: NoisyBandit) -> Labels:
    actions = (f"{verb} {arm}" for verb in ("pull", "take") for arm in range(task.arms))
    return Labels(("reading",), (), tuple(actions))


@_labels.register
def _(task: CartPole) -> Labels:
    names = ("x (m)", "x_dot (m/s)", "theta (rad)", "theta_dot (rad/s)")
    return Labels(tuple(names[i] for i in COLUMNS[task.observed]), (), ("left", "right"))


@_labels.register
def _(task: Pendulum) -> Labels:
    angle, speed = ("cos", "sin"), ("theta_dot (rad/s)",)
    return Labels({"position": angle, "velocity": speed, "full": angle + speed}[task.observed])


@_labels.register
def _(task: Acrobot) -> Labels:
    angles, speeds = ("cos 1", "sin 1", "cos 2", "sin 2"), ("speed 1 (rad/s)", "speed 2 (rad/s)")
    seen = {"position": angles, "velocity": speeds, "full": angles + speeds}
    return Labels(seen[task.observed], (), ("-1 N m", "0 N m", "+1 N m"))


@_labels.register
def _(task: TMaze) -> Labels:
    sights = ("corridor", "junction", "cue left", "cue right")
    return Labels(("sight",), sights, ("forward", "left", "right"))


@_labels.register(RepeatFirst)
@_labels.register(RepeatPrevious)
def _(task: BatchedPOMDP) -> Labels:
    return Labels(("card",), _SUITS, _SUITS)


@_labels.register
def _(task: Autoencode) -> Labels:
    return Labels(("watching", "suit"), (), _SUITS)


@_labels.register
def _(task: CountRecall) -> Labels:
    return Labels(("dealt", "asked for"))


@_labels.register
def _(task: Copy) -> Labels:
    return Labels(("mark", "symbol"))


@_labels.register
def _(task: HigherLower) -> Labels:
    return Labels(("rank",), RANKS, ("higher", "lower"))


@_labels.register
def _(task: Battleship) -> Labels:
    return Labels(("shot",), ("miss", "hit"))
