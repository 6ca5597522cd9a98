"""Observations of any space, one or many, as trees of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array

Space = gymnasium.Space[Any]
Rows = npt.NDArray[np.intp]
_ARRAYS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def map_leaves(function: Callable[..., Any], space: Space, *trees: Any) -> Any:
    """Return the tree of `function(leaf space, leaf, ...)` over Dict and Tuple spaces."""
    # The common case first: an instance check of these abstract classes is slow.
    if type(space) in _ARRAYS:
        return function(space, *trees)
    if isinstance(space, spaces.Dict):
        return {
            name: map_leaves(function, part, *(tree[name] for tree in trees))
            for name, part in space.items()
        }
    if isinstance(space, spaces.Tuple):
        parts = zip(space.spaces, *trees, strict=True)
        return tuple(map_leaves(function, part, *values) for part, *values in parts)
    return function(space, *trees)


def leaf_spaces(space: Space) -> tuple[Space, ...]:
    """Return the spaces at the leaves, in the order of `leaves`."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.values() if isinstance(space, spaces.Dict) else space.spaces
        return tuple(leaf for part in parts for leaf in leaf_spaces(part))
    return (space,)


def leaves(space: Space, tree: Any) -> tuple[Any, ...]:
    """Return what is at the leaves of a tree."""
    found: list[Any] = []
    map_leaves(lambda _, leaf: found.append(leaf), space, tree)
    return tuple(found)


def rebuilt(space: Space, values: Sequence[Any]) -> Any:
    """Return the tree that has these leaves."""
    following = iter(values)
    return map_leaves(lambda _: next(following), space)


def batch_of_one(space: Space, observation: Any) -> Any:
    """Return one observation as a batch, as a vector environment would."""

    def batched(leaf: Space, value: Any) -> Any:
        if isinstance(leaf, _ARRAYS):
            return np.asarray(value, leaf.dtype)[None]
        return (value,)

    return map_leaves(batched, space, observation)


def row_of(space: Space, batch: Any, row: int) -> Any:
    """Return one observation out of a batch."""

    def picked(leaf: Space, value: Any) -> Any:
        # A Box without dimensions holds arrays, not NumPy's scalars.
        return np.asarray(value[row]) if isinstance(leaf, spaces.Box) else value[row]

    return map_leaves(picked, space, batch)


def rows_of(space: Space, batch: Any, rows: Rows) -> Any:
    """Return some rows of a batch, copied."""

    def picked(_: Space, value: Any) -> Any:
        return value[rows] if isinstance(value, np.ndarray) else tuple(value[i] for i in rows)

    return map_leaves(picked, space, batch)


def with_rows(space: Space, batch: Any, rows: Rows, values: Any) -> Any:
    """Return a copy of a batch with some rows replaced."""

    def replaced(_: Space, old: Any, new: Any) -> Any:
        if isinstance(old, np.ndarray):
            out = old.copy()
            out[rows] = new
            return out
        given = dict(zip(rows.tolist(), new, strict=True))
        return tuple(given.get(i, value) for i, value in enumerate(old))

    return map_leaves(replaced, space, batch, values)


def final_rows(space: Space, final: Any, rows: Rows) -> Any:
    """Return rows of `info["final_obs"]` as a batch.

    Args:
        space: Space of one observation.
        final: Gymnasium's object array `[N]` of single observations, or a batch of all N.
        rows: Environments whose episode has ended.
    """
    if isinstance(final, np.ndarray) and final.dtype == object:
        out: Any = create_empty_array(space, len(rows))
        return concatenate(space, [final[row] for row in rows], out)
    return rows_of(space, final, rows)
