"""Environments for the tests of the policies inside Stable-Baselines3."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1, 1, (3,), np.float32),
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(3),
}
IMAGE = spaces.Box(0, 255, (16, 16, 3), np.uint8)
DICT = spaces.Dict({"vector": OBSERVATIONS["box"], "symbol": OBSERVATIONS["discrete"]})
DICT_WITH_IMAGE = spaces.Dict({"image": IMAGE, **DICT.spaces})
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(2),
    "box": spaces.Box(-2, 2, (2,), np.float32),
}


class RandomEnv(gym.Env[Any, Any]):
    """Random observations, episodes of 1 to 12 steps, every third of them truncated."""

    def __init__(self, observation: gym.Space[Any], action: gym.Space[Any], seed: int) -> None:
        self.observation_space, self.action_space = observation, action
        self.observation_space.seed(seed)
        self.random = np.random.default_rng(seed)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.left = int(self.random.integers(1, 13))
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.left -= 1
        done, truncated = self.left == 0, bool(self.random.random() < 1 / 3)
        reward = float(self.random.normal())
        return self.observation_space.sample(), reward, done and not truncated, done, {}


def random_envs(
    observation: gym.Space[Any], action: gym.Space[Any], num_envs: int = 3
) -> DummyVecEnv:
    """Return environments with spaces of their own, the same from call to call."""

    def make(seed: int) -> RandomEnv:
        return RandomEnv(deepcopy(observation), deepcopy(action), seed)

    return DummyVecEnv([lambda seed=seed: make(seed) for seed in range(num_envs)])


class CartPoleWithoutVelocities(CartPoleEnv):
    """Position and angle only, `[2]`."""

    def __init__(self) -> None:
        super().__init__()
        high = np.array([self.x_threshold * 2, self.theta_threshold_radians * 2], np.float32)
        self.observation_space = spaces.Box(-high, high, dtype=np.float32)

    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        return observation[::2], info

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return observation[::2], *rest


def cart_pole() -> gym.Env[Any, Any]:
    """Return a cart-pole without velocities, of at most 500 steps."""
    return TimeLimit(CartPoleWithoutVelocities(), max_episode_steps=500)


def assert_learns(model: BaseAlgorithm, steps: int) -> None:
    """Train, and fail unless every part has moved, target networks apart, and all is finite."""
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(steps)
    parts, moved = set(), set()
    for name, parameter in model.policy.named_parameters():
        assert parameter.isfinite().all(), f"{name} is not finite"
        part = name.split(".")[0]
        if not part.endswith("target"):
            parts.add(part)
            moved |= set() if torch.equal(parameter, before[name]) else {part}
    assert moved == parts
