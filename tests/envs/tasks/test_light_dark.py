from itertools import product

import numpy as np
import pytest
from replay import assert_numpy_equals_torch

from doxastic.envs import LightDark, NumpyRandom
from doxastic.envs.references.light_dark_filter import LightDarkFilter, LightDarkSumsFilter
from doxastic.envs.references.light_dark_policy import (
    LightDarkPlan,
    LightDarkPolicy,
    accuracy,
    solve_light_dark_blind,
)


def start(pomdp, n, seed=0):
    random = NumpyRandom(np.random.default_rng(seed))
    return pomdp.reset(n, random), random


def episodes(task, n=30, steps=6):
    """Return states `[N, T + 1, 3]`, observations and actions of random episodes."""
    state, random = start(task, n)
    actions = np.random.default_rng(1).uniform(-1, 1, (n, steps, 2))
    hidden, observations = [task.hidden(state)], [task.observe(state, random)]
    for t in range(steps):
        state, _, _ = task.step(state, actions[:, t], random)
        hidden.append(task.hidden(state))
        observations.append(task.observe(state, random))
    return np.stack(hidden, 1), np.stack(observations, 1), actions


def test_the_reward_is_the_closeness_to_the_goal_after_the_move():
    pomdp = LightDark(radius=0.5, speed=2.0, horizon=10)
    state, random = start(pomdp, 3)
    state["position"] = np.array([[0.0, 1.0], [1.0, -1.0], [0.0, 0.0]])
    after, reward, _ = pomdp.step(state, np.array([[0, -0.5], [-1.0, 0.5], [1, 0]]), random)
    np.testing.assert_allclose(after["position"], [[0, 0], [-1, 0], [2, 0]])
    np.testing.assert_allclose(reward, np.exp([0, -2, -8]) / 10)


def test_readings_of_y_are_sharper_at_the_light():
    pomdp = LightDark(light=4, glow=0.1, noise=(0.5, 2.0))
    state, random = start(pomdp, 40_000)
    for x, darkness in ((0.0, 1.0), (4.0, 0.1), (2.0, 0.55), (6.0, 0.55)):
        state["position"] = np.full((40_000, 2), (x, 0.7))
        o = pomdp.observe(state, random)
        np.testing.assert_array_equal(o[:, 0], x)
        epsilon = (o[:, 1] - 0.7) / (state["noise"] * darkness)
        assert epsilon.std() == pytest.approx(1, rel=0.02)
        assert epsilon.mean() == pytest.approx(0, abs=0.02)


def test_the_start_is_unknown_in_y_only():
    position = start(LightDark(spread=1.5), 40_000)[0]["position"]
    assert not position[:, 0].any()
    assert position[:, 1].std() == pytest.approx(1.5, rel=0.02)


def test_the_episode_terminates_at_the_horizon():
    pomdp = LightDark(horizon=2)
    state, random = start(pomdp, 1)
    ends = []
    for _ in range(2):
        state, _, ended = pomdp.step(state, np.zeros((1, 2)), random)
        ends.append(bool(ended[0]))
    assert ends == [False, True]


def test_numpy_and_torch_agree_given_the_same_draws():
    assert_numpy_equals_torch(LightDark(horizon=10))


def test_the_posterior_equals_numerical_integration():
    task = LightDark(noise=(0.3, 1.0, 3.0), spread=1.5)
    hidden, observations, actions = episodes(task)
    posterior = LightDarkFilter(task).posterior(observations, actions)
    y = np.linspace(-12, 12, 8001)
    for t in (0, 3, 6):
        moved = hidden[:, : t + 1, 1] - hidden[:, :1, 1]
        residual = observations[:, : t + 1, 1] - moved
        darkness = task.glow + (1 - task.glow) * np.abs(hidden[:, : t + 1, 0] / task.light - 1)
        scale = np.array(task.noise)[:, None, None] * darkness[:, None, :, None]
        error = (residual[:, None, :, None] - y) / scale
        log_joint = -((y / task.spread) ** 2) / 2 - (np.log(scale) + error**2 / 2).sum(2)
        joint = np.exp(log_joint - log_joint.max((1, 2), keepdims=True))
        joint /= joint.sum((1, 2), keepdims=True)
        mean = (joint * y).sum((1, 2))
        variance = (joint * y**2).sum((1, 2)) - mean**2
        np.testing.assert_allclose(posterior.noise[:, t], joint.sum(2), atol=1e-6)
        np.testing.assert_allclose(posterior.mean[:, t], mean + moved[:, t], atol=1e-6)
        np.testing.assert_allclose(posterior.variance[:, t], variance, atol=1e-6)
        given = (joint * y).sum(2) / joint.sum(2) + moved[:, t, None]
        seen = joint.sum(2) > 1e-6
        np.testing.assert_allclose(posterior.means[:, t][seen], given[seen], atol=1e-5)


def test_the_posterior_on_sums_weighs_the_levels_by_the_density_of_the_mean_reading():
    task = LightDark(noise=(0.5, 3.0), spread=2.0)
    filter_ = LightDarkSumsFilter(task)
    belief = filter_.first(np.array([[0.0, -4.0]]))
    variance = 4.0 + np.array([0.25, 9.0])
    density = np.exp(-8 / variance) / np.sqrt(variance)
    np.testing.assert_allclose(filter_.read(belief).noise[0], density / density.sum())
    twice = filter_.following(belief, np.zeros((1, 2)), np.array([[0.0, 4.0]]))
    variance = 4.0 + np.array([0.25, 9.0]) / 2
    density = 1 / np.sqrt(variance)
    np.testing.assert_allclose(filter_.read(twice).noise[0], density / density.sum())


def test_the_value_of_a_known_level_equals_the_best_of_all_plans():
    task = LightDark(light=2.0, horizon=6, noise=(0.3, 1.0, 4.0), radius=0.5, glow=0.1)
    best = np.zeros(3)
    for moves in product((-1, 0, 1), repeat=task.horizon):
        x = np.cumsum(moves)
        if x.min() < 0 or x.max() > 2:
            continue
        places = np.concatenate([[0], x[:-1]])
        p = np.cumsum(task.darkness(places) ** -2.0)
        variance = 1 / (1 / task.spread**2 + p / np.array(task.noise)[:, None] ** 2)
        closeness = np.exp(-((x / task.radius) ** 2) / 2)
        earned = (closeness * accuracy(variance, task.radius)).mean(1)
        best = np.maximum(best, earned)
    np.testing.assert_allclose(LightDarkPolicy(task).known, best, atol=1e-3)


def test_the_plan_earns_its_value_where_y_is_corrected_within_a_step():
    task = LightDark(light=4.0, speed=4.0, spread=1.0, noise=(0.2, 2.0), horizon=10)
    plan = LightDarkPlan(task)
    returns = plan.returns(task.noise, episodes=20_000, seed=0)
    # Levels meet the same draws: their errors add up. The grid over P adds up to 2e-3.
    error = 3 * returns.standard_error.mean() + 2e-3
    assert returns.mean.mean() == pytest.approx(plan.planned, abs=error)


def test_no_policy_beats_the_one_that_is_told_the_level_and_the_posterior_comes_close():
    task = LightDark()
    policy = LightDarkPolicy(task)
    returns = policy.returns(task.noise, episodes=4_000, seed=0)
    assert np.all(returns.mean < policy.known + 3 * returns.standard_error + 1e-3)
    assert returns.mean.mean() > policy.known.mean() - 0.03


def test_with_one_level_there_is_nothing_to_be_confident_about():
    task = LightDark(noise=1.0)
    assert LightDarkPolicy(task).known[0] == pytest.approx(LightDarkPlan(task).planned, abs=1e-3)


@pytest.mark.parametrize("solve", [LightDarkFilter, LightDarkPolicy, solve_light_dark_blind])
def test_a_level_of_zero_is_refused(solve):
    with pytest.raises(ValueError, match="positive levels"):
        solve(LightDark(noise=(0.0, 1.0)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"light": 0}, "light is 0.0"),
        ({"glow": 1.5}, "at most 1"),
        ({"spread": -1}, "spread is -1.0"),
        ({"radius": float("nan")}, "radius is nan"),
        ({"speed": float("inf")}, "speed is inf"),
        ({"horizon": 0}, "at least 1 step"),
        ({"noise": -0.1}, "must be finite and >= 0"),
    ],
)
def test_arguments_outside_their_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LightDark(**arguments)


def test_y_is_steered_to_where_most_reward_is_expected_and_not_to_its_mean():
    task = LightDark(noise=(0.2, 5.0), radius=0.25, speed=10.0)
    policy = LightDarkPolicy(task)
    belief = policy.filter.first(np.array([[0.0, 1.5], [0.0, -0.4], [0.0, 0.0]]))
    posterior = policy.filter.read(belief)
    y = np.linspace(-3, 3, 6001)
    width = task.radius**2 + posterior.variances[..., None]
    density = np.exp(-((posterior.means[..., None] - y) ** 2) / (2 * width)) / np.sqrt(width)
    best = y[(posterior.noise[..., None] * density).sum(1).argmax(1)]
    assert np.abs(best - posterior.mean).max() > 0.1
    np.testing.assert_allclose(-task.speed * policy.act(belief)[:, 1], best, atol=0.02)
