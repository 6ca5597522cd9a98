"""Observations of which only what an encoder can read is left."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from doxastic.envs.wrappers.trees import Space

_NUMERIC = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class NumericEntries(gymnasium.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Leaves out the entries that are no numbers, as MiniGrid's mission, and names those of Tuples.

    A Tuple becomes a Dict with the entries "0", "1", ...; both may be nested. Box, Discrete,
    MultiDiscrete and MultiBinary entries stay, others are left out.

    Args:
        env: The environment to wrap; its observation is a Dict or a Tuple.

    Attributes:
        dropped: Names of the entries left out, "outer.inner" where they are nested.

    Raises:
        ValueError: If the observation is neither, or nothing would be left of it.

    Example:
        >>> import gymnasium as gym
        >>> from doxastic.envs.wrappers import NumericEntries
        >>> env = NumericEntries(gym.make("Blackjack-v1"))
        >>> env.observation_space
        Dict('0': Discrete(32), '1': Discrete(11), '2': Discrete(2))
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.ObservationWrapper.__init__(self, env)
        space = env.observation_space
        if not isinstance(space, spaces.Dict | spaces.Tuple):
            raise ValueError(f"The observation space is {space}; expected a Dict or a Tuple.")
        dropped: list[str] = []
        kept = _numeric(space, "", dropped)
        if kept is None:
            raise ValueError(f"Nothing in the observation space {space} is a number.")
        self.dropped = tuple(dropped)
        self.observation_space = kept

    def observation(self, observation: Any) -> Any:
        """Return the observation without the dropped entries, Tuples as Dicts."""
        return _picked(self.observation_space, observation)


def _numeric(space: Space, name: str, dropped: list[str]) -> Space | None:
    """Return what is left of a space; write the names of what is not to `dropped`."""
    if isinstance(space, _NUMERIC):
        return space
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        dropped.append(name)
        return None
    pairs = space.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    kept = {}
    for key, part in pairs:
        left = _numeric(part, f"{name}.{key}".removeprefix("."), dropped)
        if left is not None:
            kept[str(key)] = left
    return spaces.Dict(kept) if kept else None


def _picked(space: Space, observation: Any) -> Any:
    if not isinstance(space, spaces.Dict):
        return observation
    if isinstance(observation, tuple):
        return {key: _picked(part, observation[int(key)]) for key, part in space.items()}
    return {key: _picked(part, observation[key]) for key, part in space.items()}
