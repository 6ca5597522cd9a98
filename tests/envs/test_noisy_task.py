import gymnasium
import numpy as np
import pytest
from replay import assert_numpy_equals_torch

from doxastic.envs import CartPole, NoisyTask, NumpyRandom, POMDPVectorEnv, SequentialTest

LEVELS = {
    "student": (0.0, 0.1, 0.3),
    "flicker": (0.0, 0.5),
    "bias": (0.05, 0.1),
    "delay": (0.0, 1.0, 4.0),
}


def quiet(**arguments):
    return CartPole(noise=0.0, **arguments)


@pytest.mark.parametrize("kind", LEVELS)
def test_numpy_and_torch_agree_given_the_same_draws(kind):
    assert_numpy_equals_torch(NoisyTask(quiet(), LEVELS[kind], kind))


@pytest.mark.parametrize("kind", LEVELS)
def test_the_dynamics_are_those_of_the_task(kind):
    noisy = POMDPVectorEnv(NoisyTask(quiet(observed="full"), LEVELS[kind], kind), 8)
    clean = POMDPVectorEnv(quiet(observed="full"), 8)
    noisy.reset(seed=1), clean.reset(seed=1)
    arrays, data = noisy.get_state()
    inner, given = clean.get_state()
    inner["state/physics"] = arrays["state/physics"]
    clean.set_state(inner, given)
    for action in np.random.default_rng(0).integers(0, 2, (8, 8)):
        noisy.step(action), clean.step(action)
        np.testing.assert_array_equal(noisy.hidden()[:, :4], clean.hidden()[:, :4])
    noisy.set_state(arrays, data)
    np.testing.assert_array_equal(noisy.hidden()[:, 4], arrays["state/noise"])


@pytest.mark.parametrize("kind", LEVELS)
def test_levels_are_drawn_uniformly_per_episode(kind):
    task = NoisyTask(quiet(), LEVELS[kind], kind)
    state = task.reset(20_000, NumpyRandom(np.random.default_rng(0)))
    levels, counts = np.unique(state["noise"], return_counts=True)
    np.testing.assert_array_equal(levels, LEVELS[kind])
    np.testing.assert_allclose(counts / 20_000, 1 / len(levels), atol=0.02)


def test_a_constant_error_is_hidden_state():
    task = NoisyTask(quiet(observed="full"), (0.01,), "bias")
    random = NumpyRandom(np.random.default_rng(0))
    state = task.reset(5, random)
    assert task.hidden_names[-5:] == ("noise", "bias_0", "bias_1", "bias_2", "bias_3")
    hidden = task.hidden(state)
    assert hidden.shape == (5, len(task.hidden_names))
    np.testing.assert_allclose(hidden[:, :4] + hidden[:, 5:], task.observe(state, random))


def test_delayed_observations_are_earlier_ones_of_the_same_episode():
    env = POMDPVectorEnv(NoisyTask(quiet(observed="full"), (2.0,), "delay"), 16)
    env.reset(seed=0)
    past = [env.hidden()[:, :4].astype(np.float32)] * 3
    ended = 0
    for action in np.random.default_rng(0).integers(0, 2, (120, 16)):
        observation, _, _, _, info = env.step(action)
        now = env.hidden()[:, :4].astype(np.float32)
        done = info.get("_final_obs", np.zeros(16, bool))
        past = [*past[1:], now]
        if done.any():
            ended += done.sum()
            np.testing.assert_array_equal(info["final_obs"][done, :4], past[0][done])
            past = [np.where(done[:, None], now, old) for old in past]
        np.testing.assert_array_equal(observation[:, :4], past[0])
    assert ended > 50


def test_the_draws_are_the_same_whatever_the_levels():
    a, b = (NoisyTask(SequentialTest(noise=0.0), (s,), "student") for s in (1.0, 2.0))
    x, y = (NumpyRandom(np.random.default_rng(3)) for _ in range(2))
    first, second = a.reset(50, x), b.reset(50, y)
    np.testing.assert_array_equal(first["sign"], second["sign"])
    sign = first["sign"][:, None]
    np.testing.assert_allclose(2 * (a.observe(first, x) - sign), b.observe(second, y) - sign)


def test_the_registered_ids_take_a_kind_of_noise():
    env = gymnasium.make("doxastic/CartPole-v0", noise_kind="flicker", noise=1.0)
    observation, info = env.reset(seed=0)
    assert info["noise"] == 1.0
    np.testing.assert_array_equal(observation, [0, 0, 0, 0, 1])
    own = gymnasium.make("doxastic/CartPole-v0", noise_kind="gaussian")
    assert isinstance(own.unwrapped.pomdp, CartPole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_kind": "flicker"}, "there are no levels; give noise="),
        ({"noise_kind": "flicker", "noise": 2.0}, "at most 1"),
        ({"noise_kind": "flickr", "noise": 0.1}, "expected one of gaussian"),
        ({"noise_kind": "delay", "noise": 0.5}, "a whole one"),
    ],
)
def test_what_cannot_be_had_is_named(arguments, message):
    for make in (gymnasium.make, gymnasium.make_vec):
        with pytest.raises(ValueError, match=message):
            make("doxastic/CartPole-v0", **arguments)


def test_a_task_with_noise_of_its_own_is_refused():
    with pytest.raises(ValueError, match=r"CartPole has noise of its own.*noise=0"):
        NoisyTask(CartPole(), (0.1,), "student")
