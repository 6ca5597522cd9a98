import gymnasium
import numpy as np
import pytest
from replay import assert_numpy_equals_torch

from doxastic.envs import NumpyRandom, Pendulum, POMDPEnv


def start(pomdp, theta, theta_dot, noise=0.0):
    state = pomdp.reset(1, NumpyRandom(np.random.default_rng(0)))
    values = {"theta": theta, "theta_dot": theta_dot, "noise": noise}
    return {**state, **{name: np.array([value]) for name, value in values.items()}}


def angle_between(a, b):
    return (a - b + np.pi) % (2 * np.pi) - np.pi


def test_physics_and_rewards_equal_gymnasiums_step_by_step():
    pomdp, random = Pendulum(observed="full", noise=0.0), NumpyRandom(np.random.default_rng(0))
    env = gymnasium.make("Pendulum-v1").unwrapped
    # Gymnasium computes in the action's type.
    actions = np.random.default_rng(1).uniform(-2, 2, (8, 200, 1))
    for episode in range(8):
        env.reset(seed=episode)
        state = start(pomdp, *env.state)
        for action in actions[episode]:
            expected, cost, _, _, _ = env.step(action)
            state, reward, terminated = pomdp.step(state, action[None], random)
            theta, theta_dot = env.state
            # Rounding grows a hundredfold in a second near the top.
            assert abs(angle_between(state["theta"][0], theta)) < 1e-8
            assert abs(state["theta_dot"][0] - theta_dot) < 1e-8
            seen = pomdp.observe(state, random)[0]
            np.testing.assert_allclose(seen, expected, rtol=1e-6, atol=1e-6)
            assert reward[0] * 200 == pytest.approx(1 + cost / 8.1368022, abs=1e-7)
            assert not terminated[0]


@pytest.mark.parametrize("sigma", [0.0, 0.2])
def test_observation_reward_and_end_equal_popgyms_given_the_same_hidden_state(sigma):
    popgym = pytest.importorskip("popgym.envs.noisy_position_only_pendulum")
    env = popgym.NoisyPositionOnlyPendulum(noise_sigma=sigma, max_episode_length=150)
    env.reset(seed=0)
    pomdp = Pendulum(noise=sigma, horizon=150)
    state = start(pomdp, *env.state, sigma)
    # Both draw two normal numbers for every observation.
    env.np_random = np.random.default_rng(5)
    random = NumpyRandom(np.random.default_rng(5))
    actions = np.random.default_rng(1).uniform(-2, 2, (150, 1))
    for step, action in enumerate(actions, 1):
        expected, their_reward, their_end, their_truncation, _ = env.step(action)
        state, reward, terminated = pomdp.step(state, action[None], random)
        seen = pomdp.observe(state, random)[0]
        np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(reward[0], their_reward, rtol=1e-6, atol=1e-9)
        assert terminated[0] == their_end
        assert (step == pomdp.max_episode_steps) == their_truncation


def test_numpy_and_torch_agree_given_the_same_draws():
    for observed in ("position", "velocity", "full"):
        assert_numpy_equals_torch(Pendulum(observed=observed))


@pytest.mark.parametrize(
    ("observed", "expected"),
    [
        ("position", [np.cos(0.3), np.sin(0.3)]),
        ("velocity", [-2.0]),
        ("full", [np.cos(0.3), np.sin(0.3), -2.0]),
    ],
)
def test_observed_selects_what_is_seen(observed, expected):
    pomdp = Pendulum(observed=observed, noise=0.0)
    seen = pomdp.observe(start(pomdp, 0.3, -2.0), NumpyRandom(np.random.default_rng(0)))
    np.testing.assert_allclose(seen[0], expected)
    assert pomdp.observation_space.contains(seen[0].astype(np.float32))


def test_noise_has_the_hidden_scale_and_is_clipped_to_the_space():
    pomdp = Pendulum(observed="full")
    random = NumpyRandom(np.random.default_rng(0))
    state = {name: np.repeat(value, 50_000) for name, value in start(pomdp, 1.0, 2.0, 0.1).items()}
    seen = pomdp.observe(state, random)
    np.testing.assert_allclose(seen.std(0)[[0, 2]], 0.1, rtol=0.02)
    assert seen[:, 1].max() == 1.0


def test_an_episode_upright_and_at_rest_returns_one_and_is_truncated():
    env = POMDPEnv(Pendulum(start_angle=0.0, start_speed=0.0, horizon=50))
    env.reset(seed=0)
    total, truncated = 0.0, False
    while not truncated:
        _, reward, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
        assert not terminated
        total += reward
    assert total == pytest.approx(1.0)


def test_episodes_start_within_the_ranges():
    state = Pendulum(start_angle=0.2, start_speed=0.5).reset(
        10_000, NumpyRandom(np.random.default_rng(0))
    )
    for name, limit in (("theta", 0.2), ("theta_dot", 0.5)):
        assert np.abs(state[name]).max() == pytest.approx(limit, rel=0.01)
        assert state[name].std() == pytest.approx(limit / np.sqrt(3), rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observed": "angle"}, "expected one of"),
        ({"horizon": 0}, "at least 1 step"),
        ({"noise": -0.1}, "must be finite and >= 0"),
        ({"start_angle": 4.0}, "0 to pi"),
        ({"start_speed": -1.0}, "0 to 8"),
    ],
)
def test_arguments_outside_their_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Pendulum(**arguments)
