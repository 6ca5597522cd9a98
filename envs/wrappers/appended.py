"""Where wrappers put what they add to an observation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from doxastic.envs.wrappers.trees import Space


class AppendedEntries:
    """Adds vectors to observations: behind a vector, else as named entries of a Dict.

    A one-dimensional Box becomes a longer one in float32; a Dict gets the entries under their
    names; any other observation becomes the entry "observation" of a Dict.

    Args:
        space: Space of one observation.
        entries: Spaces of the vectors, by name.

    Attributes:
        space: Space of one observation with the entries added.

    Raises:
        ValueError: If the observation is a Dict that has entries of these names.
    """

    def __init__(self, space: Space, entries: dict[str, spaces.Box]) -> None:
        self._is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1
        self._is_dict = isinstance(space, spaces.Dict)
        self.space: Space
        if isinstance(space, spaces.Box) and self._is_vector:
            boxes = (space, *entries.values())
            # Bounds beyond those of float32 become infinite.
            with np.errstate(over="ignore"):
                low = np.concatenate([box.low for box in boxes]).astype(np.float32)
                high = np.concatenate([box.high for box in boxes]).astype(np.float32)
            self.space = spaces.Box(low, high, dtype=np.float32)
            return
        own = dict(space.spaces) if isinstance(space, spaces.Dict) else {"observation": space}
        taken = sorted(own.keys() & entries.keys())
        if taken:
            raise ValueError(
                f"The observation already has the entries {taken}; they cannot be added again."
            )
        self.space = spaces.Dict({**own, **entries})

    def add(self, observation: Any, values: dict[str, npt.NDArray[np.float32]]) -> Any:
        """Return a batch of observations with the entries `[N, size]` added."""
        if self._is_vector:
            parts = [observation, *values.values()]
            return np.concatenate(parts, axis=1, dtype=np.float32, casting="unsafe")
        if not self._is_dict:
            observation = {"observation": observation}
        return {**observation, **values}
