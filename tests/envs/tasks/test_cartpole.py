import gymnasium
import numpy as np
import pytest
import torch

from doxastic.envs import CartPole, NumpyRandom, TorchRandom


def start(pomdp, physics, noise=0.0):
    state = pomdp.reset(len(physics), NumpyRandom(np.random.default_rng(0)))
    return {**state, "physics": np.array(physics), "noise": np.full(len(physics), noise)}


def test_physics_equal_gymnasiums_step_by_step():
    pomdp, random = CartPole(observed="full", noise=0.0), NumpyRandom(np.random.default_rng(0))
    env = gymnasium.make("CartPole-v1").unwrapped
    actions = np.random.default_rng(1).integers(0, 2, (20, 200))
    for episode in range(20):
        first, _ = env.reset(seed=episode)
        state = start(pomdp, env.state[None])
        np.testing.assert_array_equal(pomdp.observe(state, random)[0].astype(np.float32), first)
        for action in actions[episode]:
            expected, _, expected_end, _, _ = env.step(action)
            state, _, terminated = pomdp.step(state, np.array([action]), random)
            np.testing.assert_allclose(state["physics"][0], env.state, rtol=0, atol=1e-14)
            seen = pomdp.observe(state, random)[0].astype(np.float32)
            space = pomdp.observation_space
            clipped = np.clip(expected, space.low, space.high)
            np.testing.assert_allclose(seen, clipped, rtol=0, atol=1e-7)
            assert terminated[0] == expected_end
            if expected_end:
                break
        else:
            pytest.fail("no episode under random actions lasts 200 steps")


@pytest.mark.parametrize("sigma", [0.0, 0.2])
def test_observation_reward_and_end_equal_popgyms_given_the_same_hidden_state(sigma):
    popgym = pytest.importorskip("popgym.envs.noisy_position_only_cartpole")
    env = popgym.NoisyPositionOnlyCartPole(noise_sigma=sigma, max_episode_length=25)
    pomdp, ends = CartPole(noise=sigma, horizon=25), []
    for episode, row in enumerate(np.random.default_rng(1).integers(0, 2, (20, 25))):
        env.reset(seed=episode)
        state = start(pomdp, env.state[None], sigma)
        # Both draw two normal numbers for every observation.
        env.np_random = np.random.default_rng(episode)
        random = NumpyRandom(np.random.default_rng(episode))
        for step, action in enumerate(row, 1):
            expected, their_reward, their_end, their_truncation, _ = env.step(action)
            state, reward, terminated = pomdp.step(state, np.array([action]), random)
            seen = pomdp.observe(state, random)[0]
            np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-6)
            assert reward[0] == their_reward
            assert terminated[0] == their_end
            assert (step == pomdp.max_episode_steps) == their_truncation
            if their_end:
                break
        ends.append(their_end)
    assert 0 < sum(ends) < len(ends)


def test_numpy_and_torch_agree_given_the_same_draws():
    class Replayed(NumpyRandom):
        def uniform(self, shape):
            return torch.from_numpy(super().uniform(shape))

        def normal(self, shape):
            return torch.from_numpy(super().normal(shape))

    pomdp = CartPole(observed="full")
    a, b = NumpyRandom(np.random.default_rng(3)), Replayed(np.random.default_rng(3))
    x, y = pomdp.reset(64, a), pomdp.reset(64, b)
    for action in np.random.default_rng(4).integers(0, 2, (30, 64)):
        x, reward_x, end_x = pomdp.step(x, action, a)
        y, reward_y, end_y = pomdp.step(y, torch.from_numpy(action), b)
        np.testing.assert_allclose(y["physics"].numpy(), x["physics"], atol=1e-12)
        np.testing.assert_array_equal(y["noise"].numpy(), x["noise"])
        np.testing.assert_array_equal(end_y.numpy(), end_x)
        np.testing.assert_array_equal(reward_y.numpy(), reward_x)
        np.testing.assert_allclose(pomdp.observe(y, b).numpy(), pomdp.observe(x, a), atol=1e-12)
    np.testing.assert_allclose(pomdp.hidden(y).numpy(), pomdp.hidden(x), atol=1e-12)


def test_torch_random_computes_in_its_dtype_and_on_its_device():
    random = TorchRandom(torch.Generator().manual_seed(0), torch.float32)
    pomdp = CartPole()
    state = pomdp.reset(5, random)
    state, reward, _ = pomdp.step(state, torch.ones(5, dtype=torch.int64), random)
    assert state["physics"].dtype == reward.dtype == torch.float32
    assert pomdp.observe(state, random).shape == (5, 2)


@pytest.mark.parametrize(
    ("observed", "columns"), [("position", [0, 2]), ("velocity", [1, 3]), ("full", [0, 1, 2, 3])]
)
def test_observed_selects_the_columns_of_the_state(observed, columns):
    physics = np.array([[0.1, 0.2, 0.03, 0.4]])
    pomdp = CartPole(observed=observed, noise=0.0)
    seen = pomdp.observe(start(pomdp, physics), NumpyRandom(np.random.default_rng(0)))
    np.testing.assert_array_equal(seen, physics[:, columns])
    assert pomdp.observation_space.shape == (len(columns),)


def test_noise_has_the_hidden_scale_and_is_clipped_to_the_space():
    pomdp = CartPole()
    n = 50_000
    random = NumpyRandom(np.random.default_rng(0))
    small = pomdp.observe(start(pomdp, np.zeros((n, 4)), 0.05), random)
    np.testing.assert_allclose(small.std(0), 0.05, rtol=0.02)
    np.testing.assert_allclose(small.mean(0), 0, atol=0.001)
    large = pomdp.observe(start(pomdp, np.zeros((n, 4)), 0.3), random)
    np.testing.assert_allclose(large[:, 0].std(), 0.3, rtol=0.02)
    assert np.abs(large[:, 1]).max() == pytest.approx(2 * 12 * np.pi / 180)


def test_clipped_noise_has_the_moments_of_popgyms_environment():
    popgym = pytest.importorskip("popgym.envs.noisy_position_only_cartpole")
    env = popgym.NoisyPositionOnlyCartPole(noise_sigma=0.3)
    env.reset(seed=0)
    theirs = np.stack([env.add_noise_to_obs(np.zeros(2, np.float32)) for _ in range(20_000)])
    pomdp = CartPole()
    ours = pomdp.observe(
        start(pomdp, np.zeros((20_000, 4)), 0.3), NumpyRandom(np.random.default_rng(0))
    )
    np.testing.assert_allclose(ours.std(0), theirs.std(0), rtol=0.03)


def test_levels_are_drawn_uniformly_per_episode():
    state = CartPole().reset(40_000, NumpyRandom(np.random.default_rng(0)))
    levels, counts = np.unique(state["noise"], return_counts=True)
    np.testing.assert_array_equal(levels, [0.0, 0.1, 0.2, 0.3])
    np.testing.assert_allclose(counts / 40_000, 0.25, atol=0.01)


def test_an_episode_to_the_horizon_returns_one():
    env = gymnasium.make("doxastic/CartPole-v0", observed="full", noise=0.0, previous_action=False)
    o, _ = env.reset(seed=0)
    total, truncated = 0.0, False
    while not truncated:
        o, reward, terminated, truncated, _ = env.step(int(o @ [0.1, 0.3, 1.0, 0.5] > 0))
        assert not terminated
        total += reward
    assert total == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observed": "angle"}, "expected one of"),
        ({"horizon": 0}, "at least 1 step"),
        ({"noise": -0.1}, "must be finite and >= 0"),
        ({"noise": []}, "non-empty"),
        ({"noise": float("nan")}, "must be finite"),
    ],
)
def test_arguments_outside_their_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CartPole(**arguments)
