from itertools import product

import numpy as np
import pytest
from replay import assert_numpy_equals_torch

from doxastic.envs import NumpyRandom, Tiger
from doxastic.envs.references.simplex_grid import SimplexGrid
from doxastic.envs.references.tiger import TigerFilter, solve_tiger
from doxastic.envs.references.tiger_blind import TigerBlindPolicy

LISTEN, LEFT, RIGHT = 0, 1, 2


def start(pomdp, n, seed=0):
    random = NumpyRandom(np.random.default_rng(seed))
    return pomdp.reset(n, random), random


def brute_force(task):
    """Return the optimal return by a recursion over the joint posterior of (side, level)."""
    q = np.array(task.noise)

    def value(joint, t):
        if t == task.horizon:
            return 0.0
        noise = joint.sum(0)
        anew = value(np.stack([noise, noise]) / 2, t + 1)
        right = joint[1].sum()
        gains = [p * task.treasure - (1 - p) * task.tiger_cost + anew for p in (right, 1 - right)]
        listen = -task.listen_cost
        for likelihood in (np.stack([q, 1 - q]), np.stack([1 - q, q])):
            heard = joint * likelihood
            listen += heard.sum() * value(heard / heard.sum(), t + 1)
        return max(*gains, listen)

    return value(np.full((2, q.size), 0.5 / q.size), 0)


def blind_brute_force(task):
    """Return the best return over all policies on (t, |d|), for a horizon of 3."""
    states = [(t, d) for t in range(3) for d in range(t + 1)]

    def value(opens, q, t, d):
        if t == task.horizon:
            return 0.0
        if opens[t, abs(d)]:
            safe = 0.5 if d == 0 else float(d > 0)
            anew = value(opens, q, t + 1, 0)
            return safe * task.treasure - (1 - safe) * task.tiger_cost + anew
        later = (1 - q) * value(opens, q, t + 1, d + 1) + q * value(opens, q, t + 1, d - 1)
        return later - task.listen_cost

    policies = [dict(zip(states, x, strict=True)) for x in product((False, True), repeat=6)]
    return max(np.mean([value(p, q, 0, 0) for q in task.noise]) for p in policies)


def test_rewards_of_listening_and_of_both_doors():
    pomdp = Tiger(listen_cost=1, treasure=10, tiger_cost=100)
    state, random = start(pomdp, 4)
    state["tiger"] = np.array([-1.0, -1.0, 1.0, 1.0])
    after, reward, ended = pomdp.step(state, np.array([LEFT, RIGHT, LEFT, LISTEN]), random)
    np.testing.assert_array_equal(reward, [-100, 10, 10, -1])
    assert after["tiger"][3] == 1
    assert not ended.any()


def test_the_tiger_is_placed_anew_behind_both_doors_with_the_same_ears():
    pomdp = Tiger()
    state, random = start(pomdp, 20_000)
    after, _, _ = pomdp.step(state, np.full(20_000, LEFT), random)
    assert np.mean(after["tiger"] == state["tiger"]) == pytest.approx(0.5, abs=0.02)
    np.testing.assert_array_equal(after["noise"], state["noise"])


def test_sounds_come_from_the_wrong_side_with_the_hidden_probability():
    pomdp = Tiger()
    state, random = start(pomdp, 60_000)
    np.testing.assert_array_equal(pomdp.observe(state, random), np.zeros(60_000))
    state, _, _ = pomdp.step(state, np.full(60_000, LISTEN), random)
    wrong = pomdp.observe(state, random) != np.where(state["tiger"] > 0, 2, 1)
    for level in pomdp.noise:
        assert wrong[state["noise"] == level].mean() == pytest.approx(level, abs=0.012)
    state, _, _ = pomdp.step(state, np.full(60_000, RIGHT), random)
    np.testing.assert_array_equal(pomdp.observe(state, random), np.zeros(60_000))


def test_the_episode_terminates_at_the_horizon_only():
    pomdp = Tiger(horizon=3)
    state, random = start(pomdp, 2)
    ends = []
    for action in (LEFT, LISTEN, RIGHT):
        state, _, ended = pomdp.step(state, np.full(2, action), random)
        ends.append(bool(ended.all()))
    assert ends == [False, False, True]


def test_numpy_and_torch_agree_given_the_same_draws():
    assert_numpy_equals_torch(Tiger(horizon=10))


def test_the_posterior_equals_bayes_rule_on_the_joint_distribution():
    task = Tiger(noise=(0.1, 0.3, 0.5))
    q = np.array(task.noise)
    actions = np.random.default_rng(0).choice([0, 0, 0, 1], (50, 12))
    state, random = start(task, 50)
    observations = [task.observe(state, random)]
    joint = np.full((50, 2, 3), 1 / 6)
    expected = [joint]
    for action in actions.T:
        state, _, _ = task.step(state, action, random)
        o = task.observe(state, random)
        right, left = np.stack([q, 1 - q]), np.stack([1 - q, q])
        heard = np.where((o == 2)[:, None, None], right, left)
        anew = joint.sum(1, keepdims=True) / 2
        joint = np.where((action == LISTEN)[:, None, None], joint * heard, anew)
        joint = joint / joint.sum((1, 2), keepdims=True)
        observations.append(o)
        expected.append(joint)
    posterior = TigerFilter(task).posterior(np.stack(observations, 1), actions)
    joint = np.stack(expected, 1)
    np.testing.assert_allclose(posterior.right, joint[:, :, 1].sum(-1), atol=1e-12)
    np.testing.assert_allclose(posterior.noise, joint.sum(2), atol=1e-12)


@pytest.mark.parametrize("noise", [(0.2,), (0.05, 0.4), (0.1, 0.25, 0.45)])
@pytest.mark.parametrize("tiger_cost", [0.3, 2.0])
def test_the_value_equals_brute_force_on_a_short_horizon(noise, tiger_cost):
    task = Tiger(horizon=5, noise=noise, treasure=0.3, tiger_cost=tiger_cost)
    assert solve_tiger(task).value == pytest.approx(brute_force(task), abs=1e-3)


@pytest.mark.parametrize("tiger_cost", [0.2, 0.5, 2.0])
def test_the_blind_value_equals_the_best_of_all_policies_on_a_short_horizon(tiger_cost):
    task = Tiger(horizon=3, noise=(0.05, 0.4), treasure=0.3, tiger_cost=tiger_cost)
    assert TigerBlindPolicy(task).value == pytest.approx(blind_brute_force(task), abs=1e-5)


@pytest.mark.parametrize("solve", [solve_tiger, TigerBlindPolicy])
def test_a_policy_earns_its_value_in_the_real_environment(solve):
    task = Tiger(horizon=15)
    policy = solve(task)
    returns = policy.returns(task.noise, episodes=8_000, seed=0)
    # Levels meet the same draws: their errors add up. The grid adds up to 1e-3.
    error = 3 * returns.standard_error.mean() + 1e-3
    assert returns.mean.mean() == pytest.approx(policy.value, abs=error)


def test_a_finer_grid_lowers_the_bound_by_little():
    task = Tiger(horizon=15)
    coarse, fine = (solve_tiger(task, resolution=n).value for n in (24, 48))
    assert 0 <= coarse - fine < 2e-3


def test_with_one_level_ignoring_it_costs_nothing():
    task = Tiger(noise=0.2)
    assert TigerBlindPolicy(task).value == pytest.approx(solve_tiger(task).value, abs=1e-4)


def test_interpolation_on_the_simplex_is_exact_for_linear_functions():
    random = np.random.default_rng(0)
    for outcomes in (1, 2, 3, 4):
        grid = SimplexGrid(outcomes, 7)
        np.testing.assert_allclose(grid.points.sum(1), 1, atol=1e-12)
        assert grid.points.min() >= 0
        p = np.concatenate([random.dirichlet(np.ones(outcomes), 200), np.eye(outcomes)])
        index, weight = grid.weights(p)
        assert weight.min() > -1e-12
        seen = (grid.points[index] * weight[..., None]).sum(1)
        np.testing.assert_allclose(seen, p, atol=1e-12)
        near = np.where(weight[..., None] > 1e-9, grid.points[index] - p[:, None], 0)
        assert np.abs(near).max() <= 1 / 7 + 1e-12


@pytest.mark.parametrize("solve", [TigerFilter, solve_tiger, TigerBlindPolicy])
def test_a_level_of_zero_is_refused(solve):
    with pytest.raises(ValueError, match="positive levels"):
        solve(Tiger(noise=(0.0, 0.2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"listen_cost": -1}, "listen_cost is -1.0"),
        ({"treasure": float("inf")}, "treasure is inf"),
        ({"horizon": 0}, "at least 1 step"),
        ({"noise": 0.6}, "at most 0.5"),
        ({"noise": -0.1}, "must be finite and >= 0"),
    ],
)
def test_arguments_outside_their_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Tiger(**arguments)
