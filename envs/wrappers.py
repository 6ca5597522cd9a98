"""Wrappers that make any Gymnasium environment fit for agents with a memory."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium import spaces

from doxastic.envs.observations import action_vector, action_vector_space


class PreviousAction(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds the previous action and a flag for the start of an episode to the observation.

    The action is one-hot for Discrete and MultiDiscrete, its values for MultiBinary and Box, and
    zeros at the start of an episode, where the flag is 1. A one-dimensional Box becomes one
    float32 vector `[observation, previous action, start]`; a Dict gets the entries
    "previous_action" and "episode_start"; any other observation becomes a Dict of
    "observation", "previous_action" and "episode_start".

    Args:
        env: Any environment with Discrete, MultiDiscrete, MultiBinary or Box actions.

    Raises:
        ValueError: If the action space is another one, or the names are taken already.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        observed = env.observation_space
        action = action_vector_space(env.action_space)
        self._no_action = np.zeros(action.shape, np.float32)
        start = spaces.Box(0.0, 1.0, (1,), np.float32)
        self._concatenate = isinstance(observed, spaces.Box) and len(observed.shape) == 1
        if isinstance(observed, spaces.Box) and self._concatenate:
            low = np.concatenate([observed.low, action.low, start.low])
            high = np.concatenate([observed.high, action.high, start.high])
            self.observation_space = spaces.Box(
                low.astype(np.float32), high.astype(np.float32), dtype=np.float32
            )
            return
        entries = {"observation": observed}
        if isinstance(observed, spaces.Dict):
            entries = dict(observed.spaces)
            taken = {"previous_action", "episode_start"} & set(entries)
            if taken:
                raise ValueError(
                    f"The observation already has the entries {sorted(taken)}; "
                    "set previous_action=False."
                )
        self.observation_space = spaces.Dict(
            {**entries, "previous_action": action, "episode_start": start}
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return the first observation with no action and the start flag set."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._extended(observation, self._no_action.copy(), 1.0), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Return the step of the wrapped environment with `action` in the observation."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        vector = action_vector(self.env.action_space, action)
        return self._extended(observation, vector, 0.0), reward, terminated, truncated, info

    def _extended(self, observation: Any, action: Any, start: float) -> Any:
        flag = np.array([start], dtype=np.float32)
        if self._concatenate:
            return np.concatenate([observation, action, flag], dtype=np.float32, casting="unsafe")
        if not isinstance(observation, dict):
            observation = {"observation": observation}
        return {**observation, "previous_action": action, "episode_start": flag}


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
        return type(data)(_copied(value) for value in data)
    return data.copy() if isinstance(data, np.ndarray) else data


class NumericEntries(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Leaves out the entries of a Dict observation that are no numbers, as MiniGrid's mission.

    Attributes:
        dropped: Names of the entries left out.

    Raises:
        ValueError: If the observation is no Dict, or nothing would be left of it.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Dict):
            raise ValueError(f"The observation space is {space}; expected a Dict.")
        kept = {name: entry for name, entry in space.items() if is_numeric(entry)}
        if not kept:
            raise ValueError(f"Nothing in the observation space {space} is a number.")
        self.dropped = tuple(name for name in space if name not in kept)
        self.observation_space = spaces.Dict(kept)

    def observation(self, observation: Any) -> Any:
        """Return the observation without the dropped entries."""
        return {name: value for name, value in observation.items() if name not in self.dropped}


def is_numeric(space: gymnasium.Space[Any]) -> bool:
    """Return whether elements of the space are numbers that an encoder can read."""
    numeric = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Dict)
    return isinstance(space, numeric)
