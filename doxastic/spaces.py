"""Gymnasium spaces as JSON, so that a checkpoint can be loaded without its environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


def space_to_json(space: gym.Space[Any]) -> dict[str, Any]:
    """Return a JSON-able description that `space_from_json` turns back into the space.

    Raises:
        ValueError: If the space is none of Box, Discrete, MultiDiscrete, MultiBinary, Dict
            and Tuple.
    """
    if isinstance(space, spaces.Box):
        bounds = {"low": _pack(space.low), "high": _pack(space.high)}
        return {"kind": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        counts = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return {"kind": "MultiDiscrete", **counts}
    if isinstance(space, spaces.MultiBinary):
        n = space.n if isinstance(space.n, int | np.integer) else list(space.shape)
        return {"kind": "MultiBinary", "n": n if isinstance(n, list) else int(n)}
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "spaces": {k: space_to_json(s) for k, s in space.items()}}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "spaces": [space_to_json(part) for part in space.spaces]}
    raise ValueError(
        f"cannot describe the space {space}; expected Box, Discrete, MultiDiscrete, "
        "MultiBinary, Dict or Tuple. Wrap the environment so that it has one of these."
    )


def space_from_json(data: dict[str, Any]) -> gym.Space[Any]:
    """Return the space that `space_to_json` described."""
    kind = data["kind"]
    if kind == "Box":
        shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
        low, high = (_unpack(data[side], shape, dtype) for side in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(data["n"], start=data["start"])
    if kind == "MultiDiscrete":
        # Without a start it counts from 0: files from before it was written have none.
        return spaces.MultiDiscrete(data["nvec"], start=data.get("start"))
    if kind == "MultiBinary":
        return spaces.MultiBinary(data["n"])
    if kind == "Dict":
        return spaces.Dict({name: space_from_json(part) for name, part in data["spaces"].items()})
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(part) for part in data["spaces"]])
    raise ValueError(f"the checkpoint describes a space of unknown kind {kind!r}")


def check_same_space(what: str, given: gym.Space[Any], expected: gym.Space[Any]) -> None:
    """Raise `ValueError` unless the environment's space is the one of the checkpoint."""
    if space_to_json(given) != space_to_json(expected):
        raise ValueError(
            f"the environment's {what} space is {given}; the checkpoint was trained with "
            f"{expected}. Use the environment and options in the run's config.yaml."
        )


def _pack(bound: np.ndarray[Any, Any]) -> Any:
    """Return one number where all entries are equal, else nested lists; infinities as text."""
    if bound.size and (bound == bound.flat[0]).all():
        return _number(bound.flat[0].item())
    return [_number(x) for x in bound.flatten().tolist()]


def _unpack(data: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if isinstance(data, list):
        return np.array([_value(x, dtype) for x in data], dtype).reshape(shape)
    return np.full(shape, _value(data, dtype), dtype)


def _number(value: float) -> float | str:
    # JSON has no infinity.
    return str(value) if value in (float("inf"), float("-inf")) else value


def _value(value: float | str, dtype: np.dtype[Any]) -> float:
    # An integer bound stays one: a float would lose the last digits of 64 bits.
    return float(value) if np.issubdtype(dtype, np.floating) else int(value)
