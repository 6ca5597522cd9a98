"""Environments, networks and data that the tests of the TorchRL modules share."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import GymWrapper

from doxastic.agents.encoders import EncoderConfig
from doxastic.agents.policy import ActorCritic, PolicyConfig
from doxastic.agents.torchrl import MemoryModule, policy_module
from doxastic.memory.baselines import GRUMemory

BATCH, TIME, INPUT, HIDDEN = 4, 12, 5, 6


class Walk(gym.Env):
    """A random walk that terminates far out and truncates after seven steps."""

    observation_space = spaces.Box(-10, 10, (2,))
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.place = 0, self.np_random.normal(size=2)
        return self.place.astype("f4"), {}

    def step(self, action):
        self.steps += 1
        self.place = self.place + 0.3 * (action - 1) + self.np_random.normal(size=2)
        out = bool(np.abs(self.place).max() > 4)
        return np.clip(self.place, -10, 10).astype("f4"), 1.0, out, self.steps == 7, {}


class Rooms(Walk):
    """The same walk, with observations in a dict."""

    observation_space = spaces.Dict(
        {"place": Walk.observation_space, "room": spaces.MultiBinary(2)}
    )

    def reset(self, *, seed=None, options=None):
        place, info = super().reset(seed=seed)
        return {"place": place, "room": np.ones(2, "i1")}, info

    def step(self, action):
        place, *rest = super().step(action)
        return {"place": place, "room": (place > 0).astype("i1")}, *rest


class States(Walk):
    """The same walk, with an item of a dict that TorchRL renames."""

    observation_space = spaces.Dict({"state": Walk.observation_space})

    def reset(self, *, seed=None, options=None):
        place, info = super().reset(seed=seed)
        return {"state": place}, info

    def step(self, action):
        place, *rest = super().step(action)
        return {"state": place}, *rest


def make_env(num_envs=BATCH, seed=0, env_class=Walk):
    vector = SyncVectorEnv([env_class] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    env = GymWrapper(vector, categorical_action_encoding=True)
    env.set_seed(seed)
    return env


def make_policy(memory=None, env_class=Walk, observation=None, action=None):
    torch.manual_seed(0)
    memory = memory or GRUMemory(16, HIDDEN)
    policy = ActorCritic(
        env_class.observation_space if observation is None else observation,
        env_class.action_space if action is None else action,
        EncoderConfig(width=16),
        memory,
        PolicyConfig(),
    )
    torch.nn.init.normal_(policy.action_head.linear.weight)
    return policy


def make_module(**kwargs):
    torch.manual_seed(0)
    return MemoryModule(GRUMemory(INPUT, HIDDEN), in_key="x", out_key="y", **kwargs)


def make_data(zero_restarts):
    """Random inputs and stored states; zeros where an episode starts, as rollouts have them."""
    generator = torch.Generator().manual_seed(1)
    is_init = torch.rand(BATCH, TIME, 1, generator=generator) < 0.3
    state = torch.randn(BATCH, TIME, HIDDEN, generator=generator)
    if zero_restarts:
        state = torch.where(is_init, torch.zeros(()), state)
    x = torch.randn(BATCH, TIME, INPUT, generator=generator)
    return TensorDict({"x": x, "memory_state": state, "is_init": is_init}, [BATCH, TIME])


def collect(policy, frames, env_class=Walk, **kwargs):
    collector = Collector(
        make_env(env_class=env_class),
        policy_module(policy),
        frames_per_batch=frames,
        total_frames=frames,
        auto_register_policy_transforms=True,
        **kwargs,
    )
    (data,) = list(collector)
    collector.shutdown()
    return data
