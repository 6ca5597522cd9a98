"""Observations that tell how much of the episode is over."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import SyncVectorEnv, VectorEnv

from doxastic.envs.checks import whole
from doxastic.envs.wrappers.appended import AppendedEntries
from doxastic.envs.wrappers.episodic import (
    EpisodeTransform,
    EpisodeWrapper,
    VectorEpisodeWrapper,
)
from doxastic.envs.wrappers.trees import Rows, Space


class _ElapsedTime(EpisodeTransform):
    """Adds "elapsed_time"."""

    def __init__(self, space: Space, num_envs: int, horizon: int) -> None:
        box = spaces.Box(0.0, 1.0, (1,), np.float32)
        self._entries = AppendedEntries(space, {"elapsed_time": box})
        self.space = self._entries.space
        self._horizon = horizon
        self._steps = np.zeros(num_envs, np.int64)

    def begin(self, rows: Rows, observation: Any) -> Any:
        """Return first observations with a time of 0."""
        self._steps[rows] = 0
        return self._added(observation, self._steps[rows])

    def advance(self, observation: Any, action: Any, reward: npt.NDArray[Any]) -> Any:
        """Return observations with the time after one more step."""
        self._steps += 1
        return self._added(observation, self._steps)

    def _added(self, observation: Any, steps: npt.NDArray[np.int64]) -> Any:
        time = np.minimum(steps / self._horizon, 1).astype(np.float32)[:, None]
        return self._entries.add(observation, {"elapsed_time": time})


def _horizon(env: Any, horizon: int | None) -> int:
    """Return the horizon given, else the limit of the environment's episodes."""
    if horizon is None:
        horizon = _limit(env)
    if horizon is None:
        raise ValueError(
            f"Nothing tells how long an episode of {env} may last; give horizon=, the number of "
            "steps after which the time is 1."
        )
    return whole("horizon", horizon, 1, "step")


def _limit(env: Any) -> int | None:
    """Return the number of steps after which episodes are truncated, None if nothing tells it."""
    inner = env.unwrapped
    if isinstance(inner, SyncVectorEnv):
        # The specification of the vector has the limit of the id, which each may have replaced.
        return _limit(inner.envs[0])
    limits = [getattr(getattr(inner, "pomdp", inner), "max_episode_steps", None)]
    if env.spec is not None:
        # What `make_vec` was asked for stands among the arguments.
        limits.append(env.spec.kwargs.get("max_episode_steps", env.spec.max_episode_steps))
    return min((limit for limit in limits if limit is not None), default=None)


class ElapsedTime(EpisodeWrapper, RecordConstructorArgs):
    """Adds the elapsed part of the episode to the observation: steps / horizon, at most 1.

    What a policy needs where the time that is left matters. A one-dimensional Box becomes one
    float32 vector `[observation, time]`; a Dict gets the entry "elapsed_time"; any other
    observation becomes a Dict of "observation" and "elapsed_time". Gymnasium's
    `TimeAwareObservation` differs in that it refuses environments that truncate by themselves, as
    the tasks of doxastic do, and has no vector version.

    A vector version of the wrapper exists: `VectorElapsedTime`.

    Args:
        env: The environment to wrap.
        horizon: Steps at which the time is 1; by default the limit of the episode's length.

    Raises:
        ValueError: If there is neither a horizon nor a limit, the horizon is no whole number of at
            least 1, or the name is taken already.

    Example:
        >>> import gymnasium as gym
        >>> from doxastic.envs.wrappers import ElapsedTime
        >>> env = ElapsedTime(gym.make("CartPole-v1"))
        >>> env.reset(seed=1)[0][-1], env.step(1)[0][-1]
        (np.float32(0.0), np.float32(0.002))
    """

    def __init__(self, env: gymnasium.Env[Any, Any], horizon: int | None = None) -> None:
        RecordConstructorArgs.__init__(self, horizon=horizon)
        transform = _ElapsedTime(env.observation_space, 1, _horizon(env, horizon))
        EpisodeWrapper.__init__(self, env, transform)


class VectorElapsedTime(VectorEpisodeWrapper, RecordConstructorArgs):
    """Adds the elapsed part of their episodes to the observations of N environments.

    See `ElapsedTime`. `info["final_obs"]` carries the length of the episodes that ended.

    Args:
        env: The vector environment to wrap.
        horizon: Steps at which the time is 1; by default the limit of the episode's length.

    Raises:
        ValueError: If there is neither a horizon nor a limit, the horizon is no whole number of at
            least 1, the name is taken already, or the environments do not reset themselves.

    Example:
        >>> import gymnasium as gym
        >>> from doxastic.envs.wrappers import VectorElapsedTime
        >>> env = VectorElapsedTime(gym.make_vec("CartPole-v1", num_envs=2), horizon=4)
        >>> env.reset(seed=1)[0][:, -1]
        array([0., 0.], dtype=float32)
        >>> env.step(env.action_space.sample())[0][:, -1]
        array([0.25, 0.25], dtype=float32)
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], horizon: int | None = None) -> None:
        RecordConstructorArgs.__init__(self, horizon=horizon)
        space, n = env.single_observation_space, env.num_envs
        transform = _ElapsedTime(space, n, _horizon(env, horizon))
        VectorEpisodeWrapper.__init__(self, env, transform)
