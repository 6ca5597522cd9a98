"""Observations of which a part is hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from doxastic.envs.wrappers.episodic import (
    EpisodeTransform,
    EpisodeWrapper,
    VectorEpisodeWrapper,
)
from doxastic.envs.wrappers.trees import Rows, Space


class _Mask(EpisodeTransform):
    """Leaves entries out of a vector or a Dict."""

    def __init__(self, space: Space, hidden: Sequence[int | str]) -> None:
        if isinstance(space, spaces.Dict):
            names: tuple[Any, ...] = tuple(space.spaces)
        elif isinstance(space, spaces.Box) and len(space.shape) == 1:
            names = tuple(range(space.shape[0]))
        else:
            raise ValueError(
                f"The observation space is {space}; entries can be hidden in a Box of one "
                "dimension and in a Dict. Wrap the environment in "
                "gymnasium.wrappers.FlattenObservation first."
            )
        unknown = [name for name in hidden if name not in names]
        self._kept = [name for name in names if name not in hidden]
        if unknown or len(hidden) == 0 or not self._kept:
            raise ValueError(
                f"hidden is {hidden!r}; expected some, but not all, of the entries {list(names)}."
            )
        if isinstance(space, spaces.Dict):
            self.space: Space = spaces.Dict({name: space[name] for name in self._kept})
        else:
            assert isinstance(space, spaces.Box)
            low, high = space.low[self._kept], space.high[self._kept]
            self.space = spaces.Box(low, high, dtype=space.dtype.type)

    def begin(self, rows: Rows, observation: Any) -> Any:
        """Return what is left of first observations."""
        return self._left(observation)

    def advance(self, observation: Any, action: Any, reward: npt.NDArray[Any]) -> Any:
        """Return what is left of the observations."""
        return self._left(observation)

    def _left(self, observation: Any) -> Any:
        if isinstance(observation, np.ndarray):
            return observation[:, self._kept]
        return {name: observation[name] for name in self._kept}


class Mask(EpisodeWrapper, RecordConstructorArgs):
    """Hides entries of the observation: they are left out, of its space too.

    A vector version of the wrapper exists: `VectorMask`.

    Args:
        env: The environment to wrap; its observation is a Box of one dimension or a Dict.
        hidden: Indices into the Box, or names of the Dict's entries.

    Raises:
        ValueError: If the observation is neither, an entry does not exist, or none or all would
            be hidden.

    Example:
        >>> import gymnasium as gym
        >>> from doxastic.envs.wrappers import Mask
        >>> env = Mask(gym.make("CartPole-v1"), hidden=[1, 3])
        >>> env.observation_space
        Box([-4.8        -0.41887903], [4.8        0.41887903], (2,), float32)
        >>> env.reset(seed=123)[0]
        array([ 0.01823519, -0.02796401], dtype=float32)
    """

    def __init__(self, env: gymnasium.Env[Any, Any], hidden: Sequence[int | str]) -> None:
        RecordConstructorArgs.__init__(self, hidden=hidden)
        EpisodeWrapper.__init__(self, env, _Mask(env.observation_space, hidden))


class VectorMask(VectorEpisodeWrapper, RecordConstructorArgs):
    """Hides entries of the observations of N environments, of `info["final_obs"]` too.

    See `Mask`.

    Args:
        env: The vector environment to wrap; an observation is a Box of one dimension or a Dict.
        hidden: Indices into the Box, or names of the Dict's entries.

    Raises:
        ValueError: If the observation is neither, an entry does not exist, none or all would be
            hidden, or the environments do not reset themselves.

    Example:
        >>> import gymnasium as gym
        >>> from doxastic.envs.wrappers import VectorMask
        >>> env = VectorMask(gym.make_vec("CartPole-v1", num_envs=2), hidden=[0, 1, 3])
        >>> env.reset(seed=123)[0].shape
        (2, 1)
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], hidden: Sequence[int | str]) -> None:
        RecordConstructorArgs.__init__(self, hidden=hidden)
        VectorEpisodeWrapper.__init__(self, env, _Mask(env.single_observation_space, hidden))
