"""Hidden observation noise that stays the same for an episode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

# Keeps the noise apart from the wrapped environment's own draws from the same seed.
_STREAM = 0x6E6F6973


def noise_levels(noise: float | Sequence[float]) -> tuple[float, ...]:
    """Return the noise levels as a tuple.

    Args:
        noise: A level, or several of which one is drawn for each episode.

    Raises:
        ValueError: If there is no level, or one is negative or not finite.
    """
    levels = np.atleast_1d(np.asarray(noise, dtype=np.float64))
    if levels.ndim != 1 or levels.size == 0:
        raise ValueError(f"noise is {noise!r}; expected a number or a non-empty list of numbers.")
    if not all(math.isfinite(level) and level >= 0 for level in levels):
        raise ValueError(
            f"noise is {noise!r}; every level is a standard deviation and must be finite and >= 0."
        )
    return tuple(float(level) for level in levels)


class ObservationNoise(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Adds Gaussian noise, of a level drawn once per episode, to Box observations.

    The noisy observation is clipped to the space where the space is bounded, and rounded where
    it is an integer one. In a Dict observation the Box entries get noise, the others are left as
    they are. The level is in `info["noise"]` and never in the observation. For one seed the
    standard normal draws are the same whatever the levels.

    Args:
        env: Environment whose observations are a Box, or a Dict with at least one Box.
        noise: Standard deviation in the units of the observation, or several levels of which
            one is drawn uniformly for each episode.

    Raises:
        ValueError: If the observations are neither, or a level is negative or not finite.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], noise: float | Sequence[float]) -> None:
        super().__init__(env)
        self.noise = noise_levels(noise)
        _require_box(env.observation_space)
        self._level_random = np.random.default_rng()
        self._noise_random = np.random.default_rng()
        self._level = self.noise[0]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return a noisy first observation after drawing the episode's noise level."""
        if seed is not None:
            levels, noise = np.random.SeedSequence(seed, spawn_key=(_STREAM,)).spawn(2)
            self._level_random = np.random.default_rng(levels)
            self._noise_random = np.random.default_rng(noise)
        observation, info = self.env.reset(seed=seed, options=options)
        # One uniform number however many levels there are: common random numbers.
        self._level = self.noise[int(self._level_random.random() * len(self.noise))]
        return self._noisy(observation), {**info, "noise": self._level}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Return the step of the wrapped environment with a noisy observation."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        info = {**info, "noise": self._level}
        return self._noisy(observation), reward, terminated, truncated, info

    def _noisy(self, observation: Any) -> Any:
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {
                name: self._noisy_box(observation[name], entry)
                if isinstance(entry, spaces.Box)
                else observation[name]
                for name, entry in space.items()
            }
        assert isinstance(space, spaces.Box)
        return self._noisy_box(observation, space)

    def _noisy_box(self, value: npt.NDArray[Any], space: spaces.Box) -> npt.NDArray[Any]:
        noisy = value + self._level * self._noise_random.standard_normal(space.shape)
        if np.issubdtype(space.dtype, np.integer):
            noisy = np.rint(noisy)
        return np.clip(noisy, space.low, space.high).astype(space.dtype)


def _require_box(space: gymnasium.Space[Any]) -> None:
    if isinstance(space, spaces.Box):
        return
    if isinstance(space, spaces.Dict) and any(isinstance(s, spaces.Box) for s in space.values()):
        return
    raise ValueError(
        f"Observation noise needs a Box observation or a Dict with a Box entry; the observation "
        f"space is {space}. Leave the noise out, or turn the observation into a Box first."
    )
