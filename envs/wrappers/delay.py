"""Observations that come late."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from doxastic.envs.checks import whole
from doxastic.envs.wrappers.episodic import EpisodeWrapper, VectorEpisodeWrapper
from doxastic.envs.wrappers.observation_noise import NoiseTransform


class Delay(EpisodeWrapper, RecordConstructorArgs):
    """Shows the observation of some steps ago, and the episode's first one until then.

    Gymnasium's `DelayObservation` differs in that it shows zeros at first, which the environment
    may never show, and has no vector version. For a delay that is drawn per episode, see
    `ObservationNoise`.

    A vector version of the wrapper exists: `VectorDelay`.

    Args:
        env: The environment to wrap.
        steps: Number of steps by which observations are late.

    Raises:
        ValueError: If the number is negative or no whole one, or the observation has entries
            other than Box, Discrete, MultiDiscrete and MultiBinary.

    Example:
        >>> import gymnasium as gym
        >>> from doxastic.envs.wrappers import Delay
        >>> env = Delay(gym.make("CartPole-v1"), steps=1)
        >>> env.reset(seed=123)[0]
        array([ 0.01823519, -0.0446179 , -0.02796401, -0.03156282], dtype=float32)
        >>> env.step(0)[0]
        array([ 0.01823519, -0.0446179 , -0.02796401, -0.03156282], dtype=float32)
        >>> env.step(0)[0]
        array([ 0.01734283, -0.23932791, -0.02859527,  0.25216764], dtype=float32)
    """

    def __init__(self, env: gymnasium.Env[Any, Any], steps: int) -> None:
        RecordConstructorArgs.__init__(self, steps=steps)
        levels = (whole("steps", steps, 0),)
        transform = NoiseTransform(env, levels, "delay", tell=False)
        EpisodeWrapper.__init__(self, env, transform)


class VectorDelay(VectorEpisodeWrapper, RecordConstructorArgs):
    """Shows the observations of some steps ago of N environments.

    See `Delay`. A fresh episode starts with its own first observation, and
    `info["final_obs"]` is as late as every other observation of the episode that ended.

    Args:
        env: The vector environment to wrap.
        steps: Number of steps by which observations are late.

    Raises:
        ValueError: If the number is negative or no whole one, the observation has entries other
            than Box, Discrete, MultiDiscrete and MultiBinary, or the environments do not reset
            themselves.

    Example:
        >>> import gymnasium as gym
        >>> from doxastic.envs.wrappers import VectorDelay
        >>> env = VectorDelay(gym.make_vec("CartPole-v1", num_envs=2), steps=3)
        >>> first, _ = env.reset(seed=1)
        >>> (env.step(env.action_space.sample())[0] == first).all()
        np.True_
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], steps: int) -> None:
        RecordConstructorArgs.__init__(self, steps=steps)
        levels = (whole("steps", steps, 0),)
        transform = NoiseTransform(env, levels, "delay", tell=False)
        VectorEpisodeWrapper.__init__(self, env, transform)
