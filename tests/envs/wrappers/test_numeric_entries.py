import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from doxastic.envs.wrappers import NumericEntries


class Observed(gymnasium.Env):
    """Samples its observation space."""

    def __init__(self, space):
        self.observation_space, self.action_space = space, spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def test_entries_that_are_no_numbers_are_dropped():
    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    env = NumericEntries(Observed(spaces.Dict(a=box, mission=spaces.Text(9))))
    observation, _ = env.reset()
    assert set(observation) == set(env.observation_space.spaces) == {"a"}
    assert env.dropped == ("mission",)


def test_tuples_become_dicts_and_nested_entries_are_dropped():
    box = spaces.Box(-1.0, 1.0, (2,), np.float32)
    inner = spaces.Tuple([spaces.Text(3), spaces.Discrete(4)])
    env = NumericEntries(Observed(spaces.Tuple([box, spaces.Dict(deep=inner, t=spaces.Text(2))])))
    expected = spaces.Dict({"0": box, "1": spaces.Dict(deep=spaces.Dict({"1": inner[1]}))})
    assert env.observation_space == expected
    assert env.dropped == ("1.deep.0", "1.t")
    assert env.observation_space.contains(env.reset()[0])
    assert env.observation_space.contains(env.step(0)[0])


def test_an_observation_of_text_alone_is_refused():
    with pytest.raises(ValueError, match="Nothing in the observation space"):
        NumericEntries(Observed(spaces.Dict(mission=spaces.Text(9))))


def test_an_observation_without_entries_is_refused():
    with pytest.raises(ValueError, match="expected a Dict or a Tuple"):
        NumericEntries(Observed(spaces.Discrete(2)))
