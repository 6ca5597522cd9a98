from typing import NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from doxastic.envs.wrappers import CopyData


class Shared(gymnasium.Env):
    """Returns the same observation object and info dictionary for ever."""

    def __init__(self):
        box = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space, self.action_space = spaces.Tuple([box, box]), spaces.Discrete(2)
        self.observation, self.info = self.observation_space.sample(), {"list": [np.zeros(1)]}

    def reset(self, *, seed=None, options=None):
        return self.observation, self.info

    def step(self, action):
        return self.observation, 0.0, False, False, self.info


def test_copies_share_nothing_with_the_environment():
    env = CopyData(Shared())
    (observation, info), (later, _, _, _, later_info) = env.reset(), env.step(0)
    assert not np.shares_memory(observation[0], later[0])
    assert not np.shares_memory(observation[0], env.unwrapped.observation[0])
    assert info["list"][0] is not later_info["list"][0]


class Pair(NamedTuple):
    first: np.ndarray
    second: int


def test_named_tuples_are_copied_as_what_they_are():
    env = CopyData(Shared())
    env.unwrapped.info = {"pair": Pair(np.zeros(2), 3)}
    pair, original = env.reset()[1]["pair"], env.unwrapped.info["pair"]
    assert isinstance(pair, Pair) and pair.second == 3
    assert not np.shares_memory(pair.first, original.first)
