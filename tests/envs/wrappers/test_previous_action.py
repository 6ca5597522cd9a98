import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from scripted import MODES, Scripted, assert_vector_equals_single, check_wrapped

from doxastic.envs.wrappers import PreviousAction, VectorPreviousAction


class Fixed(gymnasium.Env):
    """Given spaces; returns the same observation for ever."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space
        self.observation = observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation, {}

    def step(self, action):
        return self.observation, 0.0, False, False, {}


VECTOR = spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.mark.parametrize(
    ("space", "action", "expected"),
    [
        (spaces.Discrete(3), 2, [0, 0, 1]),
        (spaces.Discrete(2, start=5), 5, [1, 0]),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
        (spaces.MultiDiscrete([2, 3], start=[4, -1]), np.array([4, 1]), [1, 0, 0, 0, 1]),
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
    vector = VectorPreviousAction(
        SyncVectorEnv([lambda: Fixed(VECTOR, space)] * 2, autoreset_mode=MODES[0])
    )
    vector.reset()
    batch, *_ = vector.step(np.stack([action, action]))
    np.testing.assert_array_equal(batch[:, 2:], [[*expected, 0]] * 2)


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


def test_double_precision_bounds_beyond_single_precision_become_infinite():
    wide = spaces.Box(-1e300, 1e300, (1,), np.float64)
    env = PreviousAction(Fixed(wide, spaces.Discrete(2)))
    assert (env.observation_space.low[0], env.observation_space.high[0]) == (-np.inf, np.inf)


@pytest.mark.parametrize("kind", ["vector", "symbol", "dict", "tuple"])
def test_gymnasiums_checker_passes(kind):
    check_wrapped(PreviousAction(Scripted(kind=kind)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["vector", "symbol", "dict", "tuple"])
def test_the_vector_form_equals_the_single_one(mode, kind):
    assert_vector_equals_single(PreviousAction, VectorPreviousAction, mode, kind=kind)


def test_taken_names_are_refused():
    with pytest.raises(ValueError, match="already has the entries"):
        PreviousAction(Fixed(spaces.Dict(episode_start=VECTOR), spaces.Discrete(2)))


def test_other_action_spaces_are_refused():
    with pytest.raises(ValueError, match="Set previous_action=False"):
        PreviousAction(Fixed(VECTOR, spaces.Text(3)))
