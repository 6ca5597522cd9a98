import gymnasium
import numpy as np
import pytest
from replay import assert_numpy_equals_torch

from doxastic.envs import Acrobot, NumpyRandom


def start(pomdp, physics, noise=0.0):
    state = pomdp.reset(1, NumpyRandom(np.random.default_rng(0)))
    return {**state, "physics": np.array([physics]), "noise": np.array([noise])}


def follow_gymnasium(choose, *, episode, steps):
    """Compare `steps` steps with Gymnasium's; return whether the episode terminated."""
    pomdp, random = Acrobot(observed="full", noise=0.0), NumpyRandom(np.random.default_rng(0))
    env = gymnasium.make("Acrobot-v1").unwrapped
    env.reset(seed=episode)
    state = start(pomdp, env.state.astype(np.float64))
    env.state = state["physics"][0]
    for step in range(steps):
        action = choose(step, env.state)
        expected, their_reward, their_end, _, _ = env.step(action)
        state, reward, terminated = pomdp.step(state, np.array([action]), random)
        np.testing.assert_allclose(state["physics"][0], env.state, rtol=0, atol=1e-9)
        np.testing.assert_allclose(pomdp.observe(state, random)[0], expected, rtol=1e-6, atol=1e-6)
        assert terminated[0] == their_end
        assert reward[0] * 500 == pytest.approx(their_reward)
        if their_end:
            return True
    return False


def test_physics_equal_gymnasiums_step_by_step_under_random_actions():
    actions = np.random.default_rng(1).integers(0, 3, (10, 100))
    ended = [
        follow_gymnasium(lambda step, _, row=row: row[step], episode=episode, steps=100)
        for episode, row in enumerate(actions)
    ]
    assert not any(ended)


def test_physics_rewards_and_the_end_equal_gymnasiums_when_the_arm_is_swung_up():
    def pump(_, physics):
        return 2 if physics[3] > 0 else 0

    assert all(follow_gymnasium(pump, episode=episode, steps=400) for episode in range(5))


def test_fast_arms_are_wrapped_and_bounded_as_gymnasiums():
    pomdp, random = Acrobot(), NumpyRandom(np.random.default_rng(0))
    env = gymnasium.make("Acrobot-v1").unwrapped
    env.reset(seed=0)
    speeds = np.random.default_rng(2).uniform(-1, 1, (200, 4)) * [np.pi, np.pi, 12.5, 28.0]
    for physics in speeds:
        env.state = physics
        env.step(2)
        state, _, _ = pomdp.step(start(pomdp, physics), np.array([2]), random)
        np.testing.assert_allclose(state["physics"][0], env.state, rtol=0, atol=1e-9)
    assert np.abs(state["physics"]).max() > np.pi


def test_numpy_and_torch_agree_given_the_same_draws():
    for observed in ("position", "velocity", "full"):
        assert_numpy_equals_torch(Acrobot(observed=observed))


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        ("position", [np.cos(0.3), np.sin(0.3), np.cos(-0.4), np.sin(-0.4)]),
        ("velocity", [0.5, -2.0]),
    ],
)
def test_observed_selects_what_is_seen(observed, expected):
    pomdp = Acrobot(observed=observed, noise=0.0)
    state = start(pomdp, [0.3, -0.4, 0.5, -2.0])
    seen = pomdp.observe(state, NumpyRandom(np.random.default_rng(0)))
    np.testing.assert_allclose(seen[0], expected)
    assert pomdp.observation_space.contains(seen[0].astype(np.float32))


def test_noise_has_the_hidden_scale():
    pomdp = Acrobot(observed="velocity")
    state = {
        name: np.repeat(value, 50_000, axis=0)
        for name, value in start(pomdp, [0, 0, 1.0, -1.0], 0.3).items()
    }
    seen = pomdp.observe(state, NumpyRandom(np.random.default_rng(0)))
    np.testing.assert_allclose(seen.std(0), 0.3, rtol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observed": "angle"}, "expected one of"),
        ({"horizon": 0}, "at least 1 step"),
        ({"noise": -0.1}, "must be finite and >= 0"),
    ],
)
def test_arguments_outside_their_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Acrobot(**arguments)
