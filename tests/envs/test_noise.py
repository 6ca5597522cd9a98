import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from doxastic.envs import ObservationNoise


class Still(gymnasium.Env):
    """Observes the middle of its space for ever."""

    def __init__(self, space):
        self.observation_space = space
        self.action_space = spaces.Discrete(2)
        self.value = space.sample()
        if isinstance(space, spaces.Box):
            self.value = np.zeros(space.shape, space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.value, {}

    def step(self, action):
        return self.value, 0.0, False, False, {}


def box(bound, n=1000, dtype=np.float32):
    return spaces.Box(-bound, bound, (n,), dtype)


def test_noise_has_the_level_of_the_episode():
    env = ObservationNoise(Still(box(np.inf, 20_000)), 0.5)
    observation, info = env.reset(seed=0)
    assert observation.std() == pytest.approx(0.5, rel=0.03)
    assert info["noise"] == env.step(0)[4]["noise"] == 0.5


def test_the_level_changes_between_episodes_only():
    env = ObservationNoise(Still(box(1.0)), (0.1, 0.2, 0.3))
    env.reset(seed=0)
    levels = []
    for _ in range(300):
        _, info = env.reset()
        levels.append(info["noise"])
        assert env.step(0)[4]["noise"] == info["noise"]
    values, counts = np.unique(levels, return_counts=True)
    np.testing.assert_array_equal(values, [0.1, 0.2, 0.3])
    assert counts.min() > 60


def test_noisy_observations_stay_in_the_space():
    env = ObservationNoise(Still(box(0.1)), 1.0)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert np.abs(observation).max() == np.float32(0.1)


def test_integer_observations_are_rounded():
    env = ObservationNoise(Still(box(100, dtype=np.int16)), 3.0)
    observation, _ = env.reset(seed=0)
    assert observation.dtype == np.int16
    assert observation.std() == pytest.approx(3.0, rel=0.1)


def test_only_box_entries_of_a_dict_get_noise():
    space = spaces.Dict(a=box(1.0), b=spaces.Discrete(5))
    env = ObservationNoise(Still(space), 0.1)
    observation, _ = env.reset(seed=0)
    assert observation["b"] == env.unwrapped.value["b"]
    assert not np.array_equal(observation["a"], env.unwrapped.value["a"])


def test_normal_draws_are_common_to_all_levels():
    a, b = (ObservationNoise(Still(box(np.inf)), s) for s in ((1.0,), (2.0, 2.0)))
    a.reset(seed=3), b.reset(seed=3)
    np.testing.assert_allclose(2 * a.step(0)[0], b.step(0)[0], rtol=1e-6)


def test_the_same_seed_gives_the_same_noise():
    env = ObservationNoise(gymnasium.make("CartPole-v1"), (0.1, 0.2))
    first = [env.reset(seed=5)[0], env.step(0)[0]]
    again = [env.reset(seed=5)[0], env.step(0)[0]]
    np.testing.assert_array_equal(first, again)


def test_observations_without_a_box_are_refused():
    with pytest.raises(ValueError, match="needs a Box observation"):
        ObservationNoise(Still(spaces.Discrete(3)), 0.1)


def test_a_negative_level_is_refused():
    with pytest.raises(ValueError, match="must be finite and >= 0"):
        ObservationNoise(Still(box(1.0)), -0.1)
