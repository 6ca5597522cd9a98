"""Observations that carry the reward that came with them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from doxastic.envs.wrappers.appended import AppendedEntries
from doxastic.envs.wrappers.episodic import (
    EpisodeTransform,
    EpisodeWrapper,
    VectorEpisodeWrapper,
)
from doxastic.envs.wrappers.trees import Rows, Space


class _PreviousReward(EpisodeTransform):
    """Adds "previous_reward"."""

    def __init__(self, space: Space) -> None:
        box = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self._entries = AppendedEntries(space, {"previous_reward": box})
        self.space = self._entries.space

    def begin(self, rows: Rows, observation: Any) -> Any:
        """Return first observations with a reward of 0."""
        return self._added(observation, np.zeros(rows.size))

    def advance(self, observation: Any, action: Any, reward: npt.NDArray[Any]) -> Any:
        """Return observations with the rewards of the step."""
        return self._added(observation, reward)

    def _added(self, observation: Any, reward: Any) -> Any:
        column = np.asarray(reward, dtype=np.float32)[:, None]
        return self._entries.add(observation, {"previous_reward": column})


class PreviousReward(EpisodeWrapper, RecordConstructorArgs):
    """Adds the reward of the last step to the observation, 0 at the start of an episode.

    What a policy needs where rewards tell about what is hidden, as in bandits. A one-dimensional
    Box becomes one float32 vector `[observation, reward]`; a Dict gets the entry
    "previous_reward"; any other observation becomes a Dict of "observation" and "previous_reward".

    A vector version of the wrapper exists: `VectorPreviousReward`.

    Args:
        env: The environment to wrap.

    Raises:
        ValueError: If the name is taken already.

    Example:
        >>> import gymnasium as gym
        >>> from doxastic.envs.wrappers import PreviousReward
        >>> env = PreviousReward(gym.make("CartPole-v1"))
        >>> env.reset(seed=1)[0][-1], env.step(1)[0][-1]
        (np.float32(0.0), np.float32(1.0))
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        EpisodeWrapper.__init__(self, env, _PreviousReward(env.observation_space))


class VectorPreviousReward(VectorEpisodeWrapper, RecordConstructorArgs):
    """Adds the rewards of the last step to the observations of N environments.

    See `PreviousReward`. `info["final_obs"]` carries the last rewards of the episodes that ended.

    Args:
        env: The vector environment to wrap.

    Raises:
        ValueError: If the name is taken already, or the environments do not reset themselves.

    Example:
        >>> import gymnasium as gym
        >>> from doxastic.envs.wrappers import VectorPreviousReward
        >>> env = VectorPreviousReward(gym.make_vec("CartPole-v1", num_envs=2))
        >>> env.reset(seed=1)[0][:, -1]
        array([0., 0.], dtype=float32)
        >>> env.step(env.action_space.sample())[0][:, -1]
        array([1., 1.], dtype=float32)
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        VectorEpisodeWrapper.__init__(self, env, _PreviousReward(env.single_observation_space))
