"""Hidden observation noise for any environment, and the two kinds of it that stand alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper

from doxastic.envs.batched import NumpyRandom, State
from doxastic.envs.corruption import make_corruption
from doxastic.envs.noise import NoiseKind, noise_levels
from doxastic.envs.wrappers.episodic import (
    EpisodeTransform,
    EpisodeWrapper,
    Seed,
    VectorEpisodeWrapper,
)
from doxastic.envs.wrappers.trees import Rows, leaf_spaces, leaves, rebuilt

# Keeps the noise apart from the wrapped environment's own draws from the same seed. The number of
# the random layers below keeps a layer apart from them.
_STREAM = 0x6E6F6973

_Env = gymnasium.Env[Any, Any] | VectorEnv[Any, Any, Any]


class NoiseTransform(EpisodeTransform):
    """Noise of one kind, of a level drawn for each episode.

    Two random streams: what an episode's start draws, for the episodes that start, and what a
    step draws, always for all N, so that the noise one environment meets does not depend on when
    the others' episodes end, nor on the levels.

    Args:
        env: The environment around which the noise is, or a vector of N.
        levels: Levels, one of which is drawn uniformly for each episode.
        kind: What is done to the observations.
        tell: Whether the level is in the info.

    Attributes:
        is_random: Whether anything depends on the random streams: not if the delay is fixed.
    """

    def __init__(self, env: _Env, levels: tuple[float, ...], kind: str, *, tell: bool) -> None:
        if isinstance(env, VectorEnv):
            self.space, num_envs = env.single_observation_space, env.num_envs
        else:
            self.space, num_envs = env.observation_space, 1
        layers = _layers(env)
        self._spawn_key = (_STREAM, layers) if layers else (_STREAM,)
        self.levels = noise_levels(levels, kind)
        self._tell = tell
        self._leaves = leaf_spaces(self.space)
        self._corruption = make_corruption(kind, self._leaves, self.levels)
        self.is_random = kind != "delay" or len(self.levels) > 1
        self._level = np.zeros(num_envs)
        self._memory: State = {}
        self._seed(np.random.SeedSequence())

    def seed(self, seed: Seed) -> None:
        """Start both streams afresh from a seed; without any, or with a list of none, go on."""
        if seed is None:
            return
        entropy = seed if isinstance(seed, int) else [part for part in seed if part is not None]
        if entropy != []:
            self._seed(np.random.SeedSequence(entropy, spawn_key=self._spawn_key))

    def _seed(self, sequence: np.random.SeedSequence) -> None:
        start, step = (NumpyRandom(np.random.default_rng(part)) for part in sequence.spawn(2))
        self._start_random, self._step_random = start, step

    def begin(self, rows: Rows, observation: Any) -> Any:
        """Return noisy first observations after drawing the levels of the episodes."""
        observed = leaves(self.space, observation)
        # One uniform number however many levels there are: common random numbers.
        index = (self._start_random.uniform((rows.size,)) * len(self.levels)).astype(np.intp)
        level = np.asarray(self.levels)[index]
        memory = self._corruption.start(observed, level, self._start_random)
        self._level = _written(self._level, rows, level)
        for name, values in memory.items():
            old = self._memory.get(name)
            self._memory[name] = values if old is None else _written(old, rows, values)
        return self._noisy(observed, level, memory, self._start_random)

    def advance(self, observation: Any, action: Any, reward: npt.NDArray[Any]) -> Any:
        """Return noisy observations."""
        observed = leaves(self.space, observation)
        self._memory = dict(self._corruption.advance(self._memory, observed))
        return self._noisy(observed, self._level, self._memory, self._step_random)

    def info(self) -> dict[str, npt.NDArray[Any]]:
        """Return the levels of the running episodes as "noise", if they are told."""
        return {"noise": self._level} if self._tell else {}

    def _noisy(self, observed: Any, level: Any, memory: State, random: NumpyRandom) -> Any:
        noisy = self._corruption.apply(observed, level, memory, random)
        parts = zip(self._leaves, noisy, strict=True)
        values = [
            leaf.astype(space.dtype, copy=False) if isinstance(leaf, np.ndarray) else leaf
            for space, leaf in parts
        ]
        return rebuilt(self.space, values)


def _layers(env: _Env) -> int:
    """Return how many random layers an environment has already, seeded by the same `reset`.

    Those in other processes, of an AsyncVectorEnv, cannot be seen.
    """
    if isinstance(env, SyncVectorEnv):
        return _layers(env.envs[0])
    if not isinstance(env, gymnasium.Wrapper | VectorWrapper):
        return 0
    transform = env.transform if isinstance(env, EpisodeWrapper | VectorEpisodeWrapper) else None
    is_random = isinstance(transform, NoiseTransform) and transform.is_random
    return is_random + _layers(env.env)


def _written(array: npt.NDArray[Any], rows: Rows, values: Any) -> npt.NDArray[Any]:
    out = array.copy()
    out[rows] = values
    return out


class ObservationNoise(EpisodeWrapper, RecordConstructorArgs):
    """Adds hidden noise to the observations, of a level drawn once per episode.

    The level is in `info["noise"]` and never in the observation. What a level is depends on the
    kind:

    | kind       | what happens                                        | level                    |
    |------------|-----------------------------------------------------|--------------------------|
    | "gaussian" | Gaussian noise is added to every number             | its standard deviation   |
    | "student"  | Student's t noise, 3 degrees of freedom, is added   | its standard deviation   |
    | "bias"     | a Gaussian error, constant in an episode, is added  | its standard deviation   |
    | "flicker"  | the observation is blanked, each time anew          | its probability          |
    | "delay"    | an earlier observation is shown, at first the first | steps, a whole number    |

    The first three change Box entries, wherever they are in a Dict or Tuple, in the units of the
    observation; other entries stay as they are. Results are rounded where the Box holds integers
    and clipped to its bounds. The last two concern whole observations of Box, Discrete,
    MultiDiscrete and MultiBinary entries; a blank is zero, or the nearest value in the Box, or
    the first symbol. For one seed the draws are the same whatever the levels.

    A vector version of the wrapper exists: `VectorObservationNoise`.

    Args:
        env: The environment to wrap.
        noise: A level, or several of which one is drawn uniformly for each episode.
        kind: What is done to the observations.

    Raises:
        ValueError: If the observations cannot have this kind of noise, or a level is outside its
            range.

    Example:
        >>> import gymnasium as gym
        >>> from doxastic.envs.wrappers import ObservationNoise
        >>> env = ObservationNoise(gym.make("CartPole-v1"), noise=(0.0, 0.5), kind="flicker")
        >>> observation, info = env.reset(seed=1)
        >>> info
        {'noise': 0.5}
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        noise: float | Sequence[float],
        kind: NoiseKind = "gaussian",
    ) -> None:
        RecordConstructorArgs.__init__(self, noise=noise, kind=kind)
        self.noise = noise_levels(noise, kind)
        transform = NoiseTransform(env, self.noise, kind, tell=True)
        EpisodeWrapper.__init__(self, env, transform)


class VectorObservationNoise(VectorEpisodeWrapper, RecordConstructorArgs):
    """Adds hidden noise to the observations of N environments, of a level drawn per episode.

    See `ObservationNoise` for the kinds. The levels of the running episodes are `info["noise"]`
    `[N]`; with SAME_STEP autoreset those of the episodes that ended are in
    `info["final_info"]["noise"]`.

    Args:
        env: The vector environment to wrap.
        noise: A level, or several of which one is drawn uniformly for each episode.
        kind: What is done to the observations.

    Raises:
        ValueError: If the observations cannot have this kind of noise, a level is outside its
            range, or the environments do not reset themselves.

    Example:
        >>> import gymnasium as gym
        >>> from doxastic.envs.wrappers import VectorObservationNoise
        >>> env = VectorObservationNoise(gym.make_vec("CartPole-v1", num_envs=2), noise=0.1)
        >>> observation, info = env.reset(seed=1)
        >>> info["noise"]
        array([0.1, 0.1])
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        noise: float | Sequence[float],
        kind: NoiseKind = "gaussian",
    ) -> None:
        RecordConstructorArgs.__init__(self, noise=noise, kind=kind)
        self.noise = noise_levels(noise, kind)
        transform = NoiseTransform(env, self.noise, kind, tell=True)
        VectorEpisodeWrapper.__init__(self, env, transform)
