import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scripted import MODES, Scripted, assert_vector_equals_single, check_wrapped, vector_of

from doxastic.envs import NOISE_KINDS
from doxastic.envs.wrappers import (
    Delay,
    ObservationNoise,
    VectorDelay,
    VectorObservationNoise,
)

LEVELS = {
    "gaussian": (0.1, 0.5),
    "student": (0.1, 0.5),
    "bias": (0.1, 0.5),
    "flicker": (0.2, 0.7),
    "delay": (0, 1, 2),
}


class Still(gymnasium.Env):
    """Observes zeros for ever."""

    def __init__(self, space):
        self.observation_space = space
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape, self.observation_space.dtype), {}

    def step(self, action):
        return self.reset()[0], 0.0, False, False, {}


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


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_noisy_observations_stay_in_the_space(kind):
    env = ObservationNoise(Still(box(0.1)), 1.0, kind)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)


def test_integer_observations_are_rounded():
    env = ObservationNoise(Still(box(100, dtype=np.int16)), 3.0)
    observation, _ = env.reset(seed=0)
    assert observation.dtype == np.int16
    assert observation.std() == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_only_box_entries_get_what_is_added(kind):
    env = ObservationNoise(Scripted(kind=kind), 0.1)
    first, _ = env.reset(seed=0)
    symbol, vector = (first["s"], first["v"]) if kind == "dict" else first
    np.testing.assert_array_equal(symbol, 3 if kind == "dict" else [1, 0])
    assert not np.array_equal(vector, [0, 0])


@pytest.mark.parametrize("kind", ["gaussian", "student", "bias"])
def test_draws_are_common_to_all_levels(kind):
    a, b = (ObservationNoise(Still(box(np.inf)), s, kind) for s in ((1.0,), (2.0, 2.0)))
    a.reset(seed=3), b.reset(seed=3)
    np.testing.assert_allclose(2 * a.step(0)[0], b.step(0)[0], rtol=1e-6)


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_gymnasiums_checker_passes_and_the_seed_fixes_the_noise(kind):
    env = ObservationNoise(gymnasium.make("CartPole-v1"), LEVELS[kind], kind)
    check_wrapped(env)
    runs = [[env.reset(seed=5)[0], *(env.step(0)[0] for _ in range(5))] for _ in range(2)]
    np.testing.assert_array_equal(*runs)


@pytest.mark.parametrize("kind", ["vector", "dict", "tuple"])
@pytest.mark.parametrize("noise_kind", NOISE_KINDS)
def test_a_vector_of_one_equals_the_single_form(kind, noise_kind):
    assert_vector_equals_single(
        lambda env: ObservationNoise(env, LEVELS[noise_kind], noise_kind),
        lambda env: VectorObservationNoise(env, LEVELS[noise_kind], noise_kind),
        MODES[0],
        n=1,
        kind=kind,
    )


@pytest.mark.parametrize("mode", MODES)
def test_each_environment_of_a_vector_has_its_own_level_and_bias(mode):
    env = VectorObservationNoise(vector_of(40, mode), LEVELS["bias"], "bias")
    clean = vector_of(40, mode)
    observation, info = env.reset(seed=0)
    plain, _ = clean.reset(seed=0)
    errors, levels = observation - plain, info["noise"]
    assert set(levels) == {0.1, 0.5}
    assert len(np.unique(errors)) > 60
    ended = np.zeros(40, bool)
    for _ in range(12):
        before = ended
        observation, _, terminated, truncated, info = env.step(np.zeros(40, int))
        plain = clean.step(np.zeros(40, int))[0]
        ended = terminated | truncated
        fresh = ended if mode is AutoresetMode.SAME_STEP else before
        np.testing.assert_allclose((observation - plain)[~fresh], errors[~fresh], atol=1e-5)
        np.testing.assert_array_equal(info["noise"][~fresh], levels[~fresh])
        assert not np.any(np.isclose(observation - plain, errors, atol=1e-5)[fresh])
        if mode is AutoresetMode.SAME_STEP:
            np.testing.assert_array_equal(info["final_info"]["noise"][ended], levels[ended])
            np.testing.assert_array_equal(info["final_info"]["_noise"], ended)
        errors, levels = observation - plain, info["noise"]


def test_the_noise_of_one_environment_does_not_depend_on_the_others_episodes():
    a, b = (vector_of(3, MODES[0]), SyncVectorEnv([Scripted] * 3, autoreset_mode=MODES[0]))
    a, b = (VectorObservationNoise(env, 0.5, "gaussian") for env in (a, b))
    a.reset(seed=2), b.reset(seed=2)
    for _ in range(2):
        # The first environment is the same in both; the others' episodes have other lengths.
        x, *_, info = a.step(np.zeros(3, int))
        y, *_ = b.step(np.zeros(3, int))
        assert info.get("_final_obs", np.ones(1)).any()
        np.testing.assert_array_equal(x[0], y[0])


def test_a_list_of_seeds_is_taken():
    env = VectorObservationNoise(vector_of(2, MODES[0]), 0.5)
    first, again = env.reset(seed=[1, 2])[0], env.reset(seed=[1, 2])[0]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, env.reset(seed=[1, 3])[0])


def test_observations_without_a_box_are_refused():
    with pytest.raises(ValueError, match="needs a Box observation"):
        ObservationNoise(Scripted(kind="symbol"), 0.1)


def test_a_negative_level_is_refused():
    with pytest.raises(ValueError, match="must be finite and >= 0"):
        ObservationNoise(Still(box(1.0)), -0.1)


@pytest.mark.parametrize("below", [lambda env: env, lambda env: Delay(env, 2)])
def test_one_random_layer_draws_from_the_stream_of_the_seed(below):
    env = ObservationNoise(below(Still(box(np.inf))), 1.0)
    env.reset(seed=4)
    _, step = np.random.SeedSequence(4, spawn_key=(0x6E6F6973,)).spawn(2)
    expected = np.random.default_rng(step).standard_normal(1000)
    np.testing.assert_array_equal(env.step(0)[0], expected.astype(np.float32))


def noisy_stack(layers):
    """Return zeros under layers of noise of level 1, with other wrappers between them."""
    env = Still(box(np.inf))
    for _ in range(layers):
        env = Delay(ObservationNoise(env, 1.0), 0)
    return env


@pytest.mark.parametrize("mode", MODES)
def test_the_errors_of_stacked_layers_are_independent(mode):
    vector = SyncVectorEnv([lambda: noisy_stack(1)], autoreset_mode=mode)
    vector = VectorDelay(VectorObservationNoise(vector, 1.0), 0)
    for env, action, layers in ((noisy_stack(3), 0, 3), (vector, np.zeros(1, int), 2)):
        for observation in (env.reset(seed=1)[0], env.step(action)[0]):
            assert observation.std() == pytest.approx(layers**0.5, rel=0.1)


def test_a_list_of_no_seeds_lets_the_noise_go_on():
    def errors(seed):
        env = VectorObservationNoise(SyncVectorEnv([lambda: Still(box(np.inf))] * 2), 1.0)
        return env.reset(seed=7)[0], env.reset(seed=seed)[0]

    (first, following), (_, again) = errors([None, None]), errors(None)
    np.testing.assert_array_equal(following, again)
    assert not np.array_equal(first, following)


@pytest.mark.parametrize("kind", ["gaussian", "student", "bias"])
def test_bits_flip_where_the_noise_exceeds_a_half(kind):
    env = ObservationNoise(Still(spaces.Box(0, 1, (20_000,), bool)), 0.1, kind)
    observation, _ = env.reset(seed=0)
    assert observation.dtype == bool
    assert observation.mean() < 0.01
    loud = ObservationNoise(Still(spaces.Box(0, 1, (20_000,), bool)), 1.0)
    # P(z > 1/2) of a standard normal z.
    assert loud.reset(seed=0)[0].mean() == pytest.approx(0.3085, abs=0.015)
