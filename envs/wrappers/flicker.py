"""Observations that are blanked at random."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv

from doxastic.envs.checks import is_number
from doxastic.envs.wrappers.episodic import EpisodeWrapper, VectorEpisodeWrapper
from doxastic.envs.wrappers.observation_noise import NoiseTransform


class Flicker(EpisodeWrapper, RecordConstructorArgs):
    """Blanks the whole observation with a fixed probability, at every step anew.

    A blank Box or MultiBinary is zero, or the nearest value in its space; a blank Discrete or
    MultiDiscrete is its first symbol; a Dict or Tuple is blanked in all entries at once. The
    flickering of Hausknecht and Stone (2015), "Deep recurrent Q-learning for partially observable
    MDPs". For a probability that is drawn per episode, see `ObservationNoise`.

    A vector version of the wrapper exists: `VectorFlicker`.

    Args:
        env: The environment to wrap.
        probability: Probability that an observation is blanked, the first one included.

    Raises:
        ValueError: If the probability is outside [0, 1], or the observation has entries other
            than Box, Discrete, MultiDiscrete and MultiBinary.

    Example:
        >>> import gymnasium as gym
        >>> from doxastic.envs.wrappers import Flicker
        >>> env = Flicker(gym.make("CartPole-v1"), probability=1.0)
        >>> env.reset(seed=1)
        (array([0., 0., 0., 0.], dtype=float32), {})
    """

    def __init__(self, env: gymnasium.Env[Any, Any], probability: float) -> None:
        RecordConstructorArgs.__init__(self, probability=probability)
        transform = _flicker(env, probability)
        EpisodeWrapper.__init__(self, env, transform)


class VectorFlicker(VectorEpisodeWrapper, RecordConstructorArgs):
    """Blanks whole observations of N environments, each with a fixed probability.

    See `Flicker`. The N environments flicker independently.

    Args:
        env: The vector environment to wrap.
        probability: Probability that an observation is blanked, the first one included.

    Raises:
        ValueError: If the probability is outside [0, 1], the observation has entries other than
            Box, Discrete, MultiDiscrete and MultiBinary, or the environments do not reset
            themselves.

    Example:
        >>> import gymnasium as gym
        >>> from doxastic.envs.wrappers import VectorFlicker
        >>> env = VectorFlicker(gym.make_vec("CartPole-v1", num_envs=2), probability=1.0)
        >>> env.reset(seed=1)[0]
        array([[0., 0., 0., 0.],
               [0., 0., 0., 0.]], dtype=float32)
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], probability: float) -> None:
        RecordConstructorArgs.__init__(self, probability=probability)
        transform = _flicker(env, probability)
        VectorEpisodeWrapper.__init__(self, env, transform)


def _flicker(
    env: gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any], probability: float
) -> NoiseTransform:
    if not (is_number(probability) and 0 <= probability <= 1):
        raise ValueError(f"probability is {probability!r}; expected a number from 0 to 1.")
    return NoiseTransform(env, (float(probability),), "flicker", tell=False)
