"""Observation vectors that carry the previous action and the start of an episode."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from doxastic.envs.batched import Array, BatchedPOMDP

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


def action_vector_space(space: gymnasium.Space[Any]) -> spaces.Box:
    """Return the Box of an action as a float32 vector: one-hot if discrete, else its values.

    Raises:
        ValueError: If the action space is none of Discrete, MultiDiscrete, MultiBinary, Box.
    """
    if isinstance(space, spaces.Box):
        # Zeros stand for "no action yet" and must be inside.
        low = np.minimum(space.low, 0).reshape(-1).astype(np.float32)
        high = np.maximum(space.high, 0).reshape(-1).astype(np.float32)
        return spaces.Box(low, high, dtype=np.float32)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        size = int(_choices(space).sum())
    elif isinstance(space, spaces.MultiBinary):
        size = int(np.prod(space.shape))
    else:
        raise ValueError(
            f"The action space is {space}; a previous action can be shown for Discrete, "
            "MultiDiscrete, MultiBinary and Box. Set previous_action=False."
        )
    return spaces.Box(0.0, 1.0, (size,), np.float32)


class ObservationLayout:
    """Writes what the environments return for N environments of a batched task.

    With the previous action that is one float32 vector `[o, previous action, start]`, in which
    every symbol of a Discrete or MultiDiscrete space is one-hot; without it, the observation
    itself, in int64 for symbols and in float32 for a Box.

    Args:
        pomdp: The task. Its observations are Discrete, MultiDiscrete or a Box of one dimension,
            its actions Discrete, MultiDiscrete or a Box.
        previous_action: Whether to append the previous action and the start flag at all.

    Attributes:
        space: Space of what is returned for one environment.

    Raises:
        ValueError: If the task has other spaces.
    """

    def __init__(self, pomdp: BatchedPOMDP, previous_action: bool) -> None:
        observed, self._action_space = pomdp.observation_space, pomdp.action_space
        if not (_is_supported(observed) and len(observed.shape or ()) <= 1):
            raise ValueError(
                f"The observation space of {type(pomdp).__name__} is {observed}; batched tasks "
                "have a Box of one dimension, or Discrete or MultiDiscrete from 0."
            )
        if not _is_supported(self._action_space):
            raise ValueError(
                f"The action space of {type(pomdp).__name__} is {self._action_space}; batched "
                "tasks have Box actions, or Discrete or MultiDiscrete ones from 0."
            )
        self._previous_action = previous_action
        self._dtype = np.float32 if isinstance(observed, spaces.Box) else np.int64
        self._choices = _choices(self._action_space)
        self._kinds = "iu" if self._choices.size else "iuf"
        self._fewest = int(self._choices.min(initial=np.iinfo(np.int64).max))
        self.space: gymnasium.Space[Any] = observed
        # Columns of the one-hot parts are 1 where a symbol's offset plus the symbol say so.
        self._symbol_offsets = _offsets(_choices(observed))
        seen = action_vector_space(observed) if self._symbol_offsets.size else observed
        assert isinstance(seen, spaces.Box)
        self._width = self._size = int(seen.shape[0])
        self._action_offsets = self._width + _offsets(self._choices)
        if previous_action:
            action = action_vector_space(self._action_space)
            low = np.concatenate([seen.low, action.low, np.zeros(1, np.float32)])
            high = np.concatenate([seen.high, action.high, np.ones(1, np.float32)])
            self.space = spaces.Box(low, high, dtype=np.float32)
            self._size = low.size
        # Row i: the one-hot of a Discrete action i and a start flag of 0.
        count = self._fewest if isinstance(self._action_space, spaces.Discrete) else 0
        self._one_hot = np.eye(count, count + 1, dtype=np.float32)

    def first(self, o: Array) -> npt.NDArray[Any]:
        """Return what is observed first in N episodes: no action, start = 1."""
        if not self._previous_action:
            return np.array(o, dtype=self._dtype)
        out = np.zeros((o.shape[0], self._size), dtype=np.float32)
        self._write_observation(out, o)
        out[:, -1] = 1
        return out

    def following(self, o: Array, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what is observed after `actions`: start = 0."""
        if not self._previous_action:
            return np.array(o, dtype=self._dtype)
        out = np.zeros((o.shape[0], self._size), dtype=np.float32)
        self._write_observation(out, o)
        if self._one_hot.size:
            out[:, self._width :] = self._one_hot.take(actions, axis=0)
        elif self._choices.size:
            _set_ones(out, actions.reshape(o.shape[0], -1) + self._action_offsets)
        else:
            out[:, self._width : -1] = actions.reshape(o.shape[0], -1)
        return out

    def _write_observation(self, out: FloatArray, o: Array) -> None:
        if self._symbol_offsets.size:
            _set_ones(out, o.reshape(o.shape[0], -1) + self._symbol_offsets)
        else:
            out[:, : self._width] = o

    def checked_action(self, action: Any) -> npt.NDArray[Any]:
        """Return the action of one environment as an array of one action; see `checked_actions`.

        Raises:
            ValueError: If it is no element of the action space.
        """
        if isinstance(action, int | np.integer) and 0 <= action < self._one_hot.shape[0]:
            # Some microseconds quicker than the general case.
            return np.array([action], dtype=np.int64)
        given: npt.NDArray[Any] = np.asarray(action)[None]
        space = self._action_space
        is_element = given.shape[1:] == space.shape and given.dtype.kind in self._kinds
        if not is_element or not self._are_inside(given):
            raise ValueError(f"action is {action!r}; expected an element of {space}.")
        return self._widened(given)

    def checked_actions(self, actions: Any, n: int) -> npt.NDArray[Any]:
        """Return `actions` as an array of `n` actions, in int64 if they are symbols.

        Raises:
            ValueError: If they are not `n` elements of the action space.
        """
        checked: npt.NDArray[Any] = np.asarray(actions)
        space = self._action_space
        shape = (n, *(space.shape or ()))
        if checked.shape != shape:
            raise ValueError(f"actions has shape {checked.shape}; expected {shape}, one per row.")
        if checked.dtype.kind not in self._kinds:
            expected = "integers" if self._choices.size else "numbers"
            raise ValueError(f"actions has dtype {checked.dtype}; expected {expected}.")
        if not self._are_inside(checked):
            row = next(i for i in range(n) if not self._are_inside(checked[i : i + 1]))
            raise ValueError(f"actions contains {checked[row]} in row {row}; expected {space}.")
        return self._widened(checked)

    def _widened(self, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return symbols in int64, in which the arithmetic of the tasks does not wrap."""
        return actions.astype(np.int64, copy=False) if self._choices.size else actions

    def _are_inside(self, actions: npt.NDArray[Any]) -> bool:
        space = self._action_space
        if isinstance(space, spaces.Box):
            return bool(np.all(actions >= space.low) and np.all(actions <= space.high))
        if actions.min() < 0:
            return False
        # Enough for one symbol, and the quicker test for several with as many values each.
        if actions.max() < self._fewest:
            return True
        return isinstance(space, spaces.MultiDiscrete) and bool(np.all(actions < space.nvec))


def _is_supported(space: gymnasium.Space[Any]) -> bool:
    """Return whether the space is a Box, or symbols that are counted from 0."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return not np.any(space.start)
    return isinstance(space, spaces.Box)


def _choices(space: gymnasium.Space[Any]) -> IntArray:
    """Return how many values each symbol of a space has; none for a Box."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n], dtype=np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.reshape(-1).astype(np.int64)
    return np.zeros(0, dtype=np.int64)


def _offsets(sizes: IntArray) -> IntArray:
    """Return the first column of each one-hot part."""
    return np.asarray(np.cumsum(sizes) - sizes)


def _set_ones(out: FloatArray, columns: IntArray) -> None:
    """Write 1 into the given columns `[N, K]` of the N rows of `out`."""
    rows, size = out.shape
    # One index into the flat array is three times as quick as a pair of indices.
    out.reshape(-1)[columns + np.arange(0, rows * size, size)[:, None]] = 1
