"""Observations that carry the action that led to them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from doxastic.envs.observations import action_vector_space
from doxastic.envs.wrappers.appended import AppendedEntries
from doxastic.envs.wrappers.episodic import (
    EpisodeTransform,
    EpisodeWrapper,
    VectorEpisodeWrapper,
)
from doxastic.envs.wrappers.trees import Rows, Space


class _PreviousAction(EpisodeTransform):
    """Adds "previous_action" and "episode_start"."""

    def __init__(self, space: Space, action_space: Space) -> None:
        self._vectors = ActionVectors(action_space)
        action, start = self._vectors.box, spaces.Box(0.0, 1.0, (1,), np.float32)
        self._size = action.shape[0]
        self._entries = AppendedEntries(space, {"previous_action": action, "episode_start": start})
        self.space = self._entries.space

    def begin(self, rows: Rows, observation: Any) -> Any:
        """Return first observations with no action and the start flag set."""
        none = np.zeros((rows.size, self._size), np.float32)
        return self._added(observation, none, np.ones((rows.size, 1), np.float32))

    def advance(self, observation: Any, action: Any, reward: npt.NDArray[Any]) -> Any:
        """Return observations with the actions, and the start flag clear."""
        vectors = self._vectors(np.asarray(action))
        return self._added(observation, vectors, np.zeros((len(vectors), 1), np.float32))

    def _added(self, observation: Any, action: Any, start: Any) -> Any:
        return self._entries.add(observation, {"previous_action": action, "episode_start": start})


class ActionVectors:
    """Writes N actions as float32 vectors `[N, size]`: one-hot if discrete, else their values.

    Args:
        space: Space of one action: Discrete, MultiDiscrete, MultiBinary or Box.

    Attributes:
        box: Space of the vector of one action.

    Raises:
        ValueError: If the action space is another one.
    """

    def __init__(self, space: Space) -> None:
        self.box = action_vector_space(space)
        self._offsets: npt.NDArray[Any] | None = None
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            counts = np.reshape(space.n if isinstance(space, spaces.Discrete) else space.nvec, -1)
            self._offsets = np.cumsum(counts) - counts - np.reshape(space.start, -1)

    def __call__(self, actions: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return the vectors of actions `[N, ...]`."""
        n = len(actions)
        if self._offsets is None:
            return actions.reshape(n, -1).astype(np.float32)
        vectors = np.zeros((n, *self.box.shape), np.float32)
        vectors[np.arange(n)[:, None], actions.reshape(n, -1) + self._offsets] = 1
        return vectors


class PreviousAction(EpisodeWrapper, RecordConstructorArgs):
    """Adds the previous action and a flag for the start of an episode to the observation.

    The action is one-hot for Discrete and MultiDiscrete, its values for MultiBinary and Box, and
    zeros at the start of an episode, where the flag is 1. A one-dimensional Box becomes one
    float32 vector `[observation, previous action, start]`; a Dict gets the entries
    "previous_action" and "episode_start"; any other observation becomes a Dict of
    "observation", "previous_action" and "episode_start".

    A vector version of the wrapper exists: `VectorPreviousAction`.

    Args:
        env: Any environment with Discrete, MultiDiscrete, MultiBinary or Box actions.

    Raises:
        ValueError: If the action space is another one, or the names are taken already.

    Example:
        >>> import gymnasium as gym
        >>> from doxastic.envs.wrappers import PreviousAction
        >>> env = PreviousAction(gym.make("CartPole-v1"))
        >>> env.reset(seed=1)[0][-3:]
        array([0., 0., 1.], dtype=float32)
        >>> env.step(1)[0][-3:]
        array([0., 1., 0.], dtype=float32)
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        EpisodeWrapper.__init__(self, env, _PreviousAction(env.observation_space, env.action_space))


class VectorPreviousAction(VectorEpisodeWrapper, RecordConstructorArgs):
    """Adds the previous actions and start flags to the observations of N environments.

    See `PreviousAction`. `info["final_obs"]` carries the last actions of the episodes that ended.

    Args:
        env: Any vector environment with Discrete, MultiDiscrete, MultiBinary or Box actions.

    Raises:
        ValueError: If the action space is another one, the names are taken already, or the
            environments do not reset themselves.

    Example:
        >>> import gymnasium as gym
        >>> import numpy as np
        >>> from doxastic.envs.wrappers import VectorPreviousAction
        >>> env = VectorPreviousAction(gym.make_vec("CartPole-v1", num_envs=2))
        >>> env.reset(seed=1)[0][:, -3:]
        array([[0., 0., 1.],
               [0., 0., 1.]], dtype=float32)
        >>> env.step(np.array([0, 1]))[0][:, -3:]
        array([[1., 0., 0.],
               [0., 1., 0.]], dtype=float32)
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        transform = _PreviousAction(env.single_observation_space, env.single_action_space)
        VectorEpisodeWrapper.__init__(self, env, transform)
