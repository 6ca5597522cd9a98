import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from doxastic.envs import PreviousAction
from doxastic.envs.wrappers import CopyData, NumericEntries


class Fixed(gymnasium.Env):
    """Given spaces; returns the same observation object and info dictionary for ever."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
        self.observation, self.info = observation_space.sample(), {"list": [np.zeros(1)]}

    def reset(self, *, seed=None, options=None):
        return self.observation, self.info

    def step(self, action):
        return self.observation, 0.0, False, False, self.info


VECTOR = spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (spaces.Discrete(3), 2, [0, 0, 1]),
        (spaces.Discrete(2, start=5), 5, [1, 0]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
        (spaces.MultiBinary(3), np.array([1, 0, 1]), [1, 0, 1]),
        (spaces.Box(-2.0, 2.0, (2, 1)), np.array([[0.5], [-1.5]], np.float32), [0.5, -1.5]),
    ],
)
def test_actions_of_every_kind_are_appended(space, action, expected):
    env = PreviousAction(Fixed(VECTOR, space))
    first, _ = env.reset()
    observation, *_ = env.step(action)
    np.testing.assert_array_equal(first[2:], [0] * len(expected) + [1])
    np.testing.assert_array_equal(observation[2:], [*expected, 0])
    assert env.observation_space.contains(first)
    assert env.observation_space.contains(observation)


def test_other_observations_become_a_dict():
    env = PreviousAction(Fixed(spaces.Discrete(4), spaces.Discrete(2)))
    observation, _ = env.reset()
    assert set(observation) == {"observation", "previous_action", "episode_start"}
    assert env.observation_space.contains(observation)
    assert env.observation_space.contains(env.step(1)[0])


def test_a_dict_observation_is_extended():
    env = PreviousAction(Fixed(spaces.Dict(image=VECTOR), spaces.Discrete(2)))
    observation, _ = env.reset()
    assert set(observation) == {"image", "previous_action", "episode_start"}
    assert env.observation_space.contains(observation)


def test_taken_names_are_refused():
    with pytest.raises(ValueError, match="already has the entries"):
        PreviousAction(Fixed(spaces.Dict(episode_start=VECTOR), spaces.Discrete(2)))


def test_other_action_spaces_are_refused():
    with pytest.raises(ValueError, match="Set previous_action=False"):
        PreviousAction(Fixed(VECTOR, spaces.Text(3)))


def test_copies_share_nothing_with_the_environment():
    env = CopyData(Fixed(spaces.Tuple([VECTOR, VECTOR]), spaces.Discrete(2)))
    (observation, info), (later, _, _, _, later_info) = env.reset(), env.step(0)
    assert not np.shares_memory(observation[0], later[0])
    assert info["list"][0] is not later_info["list"][0]


def test_entries_that_are_no_numbers_are_dropped():
    env = NumericEntries(Fixed(spaces.Dict(a=VECTOR, mission=spaces.Text(9)), spaces.Discrete(2)))
    observation, _ = env.reset()
    assert set(observation) == set(env.observation_space.spaces) == {"a"}


def test_an_observation_of_text_alone_is_refused():
    with pytest.raises(ValueError, match="Nothing in the observation space"):
        NumericEntries(Fixed(spaces.Dict(mission=spaces.Text(9)), spaces.Discrete(2)))
