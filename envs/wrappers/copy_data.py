"""Observations and info that nobody writes to again."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium
import numpy as np


class CopyData(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Copies observations and info, for environments that write to what they returned.

    Several POPGym environments return the same arrays and dictionaries at every step.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return copies of the first observation and info."""
        observation, info = self.env.reset(seed=seed, options=options)
        return _copied(observation), _copied(info)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Return the step of the wrapped environment with observation and info copied."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return _copied(observation), reward, terminated, truncated, _copied(info)


def _copied(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _copied(value) for key, value in data.items()}
    if isinstance(data, tuple | list):
        parts = [_copied(value) for value in data]
        # A named tuple takes its fields one by one.
        return type(data)(*parts) if hasattr(data, "_fields") else type(data)(parts)
    return data.copy() if isinstance(data, np.ndarray) else data
