"""Observations as trees: an array, or a dictionary of such."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import concatenate, create_empty_array
from torch import Tensor


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """Return the tree of `function(leaf, *leaves of the others at the same place)`."""
    if isinstance(tree, dict):
        return {
            key: tree_map(function, part, *(other[key] for other in others))
            for key, part in tree.items()
        }
    return function(tree, *others)


def concatenate_rows(trees: list[Any]) -> Any:
    """Return one tree of arrays from several, joined along the first dimension."""
    return tree_map(lambda *leaves: np.concatenate(leaves), *trees)


def final_observations(final: Any, rows: np.ndarray, space: gym.Space) -> Any:
    """Return `rows` of `info["final_obs"]` as one batch.

    Args:
        final: An array `[N, ...]`, a dictionary of such, or Gymnasium's object array `[N]`
            that holds one observation per finished episode and None elsewhere.
        rows: Indices of the environments wanted.
        space: Observation space of one environment.
    """
    if isinstance(final, np.ndarray) and final.dtype == object:
        batch: Any = create_empty_array(space, len(rows))
        return concatenate(space, [final[row] for row in rows], batch)
    return tree_map(lambda leaf: leaf[rows], final)


def first_non_finite(tree: Any) -> int | None:
    """Return the first row that holds a NaN or an infinity, None where there is none."""
    if isinstance(tree, dict):
        found = (first_non_finite(part) for part in tree.values())
        return next((row for row in found if row is not None), None)
    if tree.dtype.kind != "f" or np.isfinite(tree).all():
        return None
    return int(np.argmin(np.isfinite(tree).reshape(len(tree), -1).all(axis=1)))


def flatten_tree(name: str, tree: Any) -> dict[str, Tensor]:
    """Return copies of the arrays of a tree as tensors under dotted names."""
    if isinstance(tree, dict):
        parts = [flatten_tree(f"{name}.{key}", part) for key, part in tree.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {name: torch.from_numpy(tree.copy())}


def unflatten_tree(name: str, like: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the tree of arrays that `flatten_tree` took apart, structured as `like`."""
    if isinstance(like, dict):
        return {key: unflatten_tree(f"{name}.{key}", part, tensors) for key, part in like.items()}
    return tensors[name].cpu().numpy().copy()
