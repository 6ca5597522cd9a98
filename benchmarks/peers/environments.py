"""CartPole-v1 without its velocities: the environment that all arms train on."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv

# Longest episode of CartPole-v1.
HORIZON = 500


class PositionsOnly(gym.Wrapper[np.ndarray, int, np.ndarray, int]):
    """Shows the cart's position and the pole's angle, `[2]`, and hides both velocities.

    A step gives 1 / 500, so that a return is at most 1 and all arms learn, those without value
    normalisation too: as policies improve, episodes and with them the work per step change.
    """

    def __init__(self, env: gym.Env[np.ndarray, int]) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, Box)
        self.observation_space = Box(space.low[::2], space.high[::2], dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the positions at the start of an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation[::2], info

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Return what follows, entries 0 and 2 of (x, x_dot, theta, theta_dot)."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation[::2], float(reward) / HORIZON, terminated, truncated, info


def positions_only() -> gym.Env[np.ndarray, int]:
    """Return one environment, without Gymnasium's checks at its first steps."""
    return PositionsOnly(gym.make("CartPole-v1", disable_env_checker=True))


def vector_positions_only(num_envs: int) -> SyncVectorEnv:
    """Return `num_envs` of them, stepped one after the other, with same-step autoreset."""
    functions: list[Any] = [positions_only] * num_envs
    return SyncVectorEnv(functions, autoreset_mode=AutoresetMode.SAME_STEP)
