"""Observation vectors that carry the previous action and the start of an episode."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from doxastic.envs.batched import Array, BatchedPOMDP

FloatArray = npt.NDArray[np.float32]


def action_vector_space(space: gymnasium.Space[Any]) -> spaces.Box:
    """Return the Box in which `action_vector` writes an action of `space`.

    Raises:
        ValueError: If the action space is none of Discrete, MultiDiscrete, MultiBinary, Box.
    """
    if isinstance(space, spaces.Box):
        # Zeros stand for "no action yet" and must be inside.
        low = np.minimum(space.low, 0).reshape(-1).astype(np.float32)
        high = np.maximum(space.high, 0).reshape(-1).astype(np.float32)
        return spaces.Box(low, high, dtype=np.float32)
    if isinstance(space, spaces.Discrete):
        size = int(space.n)
    elif isinstance(space, spaces.MultiDiscrete):
        size = int(space.nvec.sum())
    elif isinstance(space, spaces.MultiBinary):
        size = int(np.prod(space.shape))
    else:
        raise ValueError(
            f"The action space is {space}; a previous action can be shown for Discrete, "
            "MultiDiscrete, MultiBinary and Box. Set previous_action=False."
        )
    return spaces.Box(0.0, 1.0, (size,), np.float32)


def action_vector(space: gymnasium.Space[Any], action: Any) -> FloatArray:
    """Return an action as a float32 vector: one-hot if discrete, else its values."""
    if isinstance(space, spaces.Discrete):
        vector = np.zeros(int(space.n), dtype=np.float32)
        vector[int(action) - int(space.start)] = 1
        return vector
    if isinstance(space, spaces.MultiDiscrete):
        sizes = space.nvec.reshape(-1)
        vector = np.zeros(int(sizes.sum()), dtype=np.float32)
        offsets = np.cumsum(sizes) - sizes
        vector[offsets + np.reshape(action, -1) - space.start.reshape(-1)] = 1
        return vector
    return np.array(action, dtype=np.float32).reshape(-1)


class ObservationLayout:
    """Writes `[o, previous action, start]` vectors for N environments of a batched task.

    Args:
        pomdp: The task; its actions are Discrete or a Box.
        previous_action: Whether to append the previous action and the start flag at all.

    Attributes:
        space: Space of the vector of one environment.
    """

    def __init__(self, pomdp: BatchedPOMDP, previous_action: bool) -> None:
        box, self._action_space = pomdp.observation_space, pomdp.action_space
        starts_at_zero = getattr(self._action_space, "start", 0) == 0
        if not (isinstance(self._action_space, spaces.Discrete | spaces.Box) and starts_at_zero):
            raise ValueError(
                f"The action space of {type(pomdp).__name__} is {self._action_space}; batched "
                "tasks have Box actions or Discrete ones that start at 0."
            )
        self._previous_action = previous_action
        self._width = self._size = int(box.shape[0])
        self._choices = 0
        if isinstance(self._action_space, spaces.Discrete):
            self._choices = int(self._action_space.n)
        self.space: gymnasium.Space[Any] = box
        if previous_action:
            action = action_vector_space(self._action_space)
            low = np.concatenate([box.low, action.low, np.zeros(1, np.float32)])
            high = np.concatenate([box.high, action.high, np.ones(1, np.float32)])
            self.space = spaces.Box(low, high, dtype=np.float32)
            self._size = low.size
        # Row i: the one-hot of action i and a start flag of 0.
        self._one_hot = np.eye(self._choices, self._choices + 1, dtype=np.float32)

    def first(self, o: Array) -> FloatArray:
        """Return the vectors of the first observations of N episodes: no action, start = 1."""
        if not self._previous_action:
            return np.array(o, dtype=np.float32)
        out = np.zeros((o.shape[0], self._size), dtype=np.float32)
        out[:, : self._width] = o
        out[:, -1] = 1
        return out

    def following(self, o: Array, actions: npt.NDArray[Any]) -> FloatArray:
        """Return the vectors of the observations that followed `actions`: start = 0."""
        if not self._previous_action:
            return np.array(o, dtype=np.float32)
        out = np.empty((o.shape[0], self._size), dtype=np.float32)
        out[:, : self._width] = o
        if self._choices:
            out[:, self._width :] = self._one_hot[actions]
        else:
            out[:, self._width : -1] = actions.reshape(actions.shape[0], -1)
            out[:, -1] = 0
        return out

    def checked_actions(self, actions: Any, n: int) -> npt.NDArray[Any]:
        """Return `actions` as an array of `n` actions.

        Raises:
            ValueError: If they are not `n` elements of the action space.
        """
        checked: npt.NDArray[Any] = np.asarray(actions)
        space = self._action_space
        shape = (n, *(space.shape or ()))
        if checked.shape != shape:
            raise ValueError(f"actions has shape {checked.shape}; expected {shape}, one per row.")
        if self._choices:
            if checked.dtype.kind not in "iu":
                raise ValueError(f"actions has dtype {checked.dtype}; expected integers.")
            inside = bool(checked.min() >= 0 and checked.max() < self._choices)
        else:
            assert isinstance(space, spaces.Box)
            inside = bool(np.all(checked >= space.low) and np.all(checked <= space.high))
        if not inside:
            raise ValueError(f"actions contains {_outside(space, checked)}; expected {space}.")
        return checked


def _outside(space: gymnasium.Space[Any], actions: npt.NDArray[Any]) -> str:
    """Return the first action that is outside the space, with its row."""
    row = next(i for i, action in enumerate(actions) if not space.contains(action))
    return f"{actions[row]} in row {row}"
