import numpy as np
import pytest

from doxastic.envs import SequentialTest
from doxastic.envs.references.sequential_test import (
    sequential_test_posterior,
    solve_sequential_test,
)
from doxastic.envs.references.sequential_test_blind import solve_noise_blind


def normal(x, mean, sigma):
    return np.exp(-(((x - mean) / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi))


def brute_force(task):
    """Return the optimal return for a horizon of 1 or 2 by integration over all observations."""
    x = np.linspace(-14, 14, 1401)
    step = x[1] - x[0]
    hidden = [(s, sigma) for s in (1, -1) for sigma in task.noise]
    first = np.stack([normal(x, s, sigma) for s, sigma in hidden]) / len(hidden)
    right = slice(0, len(task.noise)), slice(len(task.noise), None)

    def worth(joint):
        plus, minus = joint[right[0]].sum(0), joint[right[1]].sum(0)
        return np.maximum(plus, minus) - task.wrong_cost * np.minimum(plus, minus)

    value = worth(first)
    waiting = -task.wrong_cost * first.sum(0)
    if task.horizon == 2:
        second = np.stack([normal(x, s, sigma) for s, sigma in hidden])
        later = worth(first[:, :, None] * second[:, None, :]).sum(-1) * step
        waiting = later - task.wait_cost * first.sum(0)
    return np.maximum(value, waiting).sum() * step


def test_posterior_equals_the_product_of_the_likelihoods():
    random, noise = np.random.default_rng(0), (0.5, 1.0, 2.0)
    o = random.normal(1, 1, (7, 4))
    joint = np.ones((7, 2, 3))
    for i, s in enumerate((1, -1)):
        for k, sigma in enumerate(noise):
            joint[:, i, k] = normal(o, s, sigma).prod(1)
    joint /= joint.sum((1, 2), keepdims=True)
    posterior = sequential_test_posterior(4, o.sum(1), (o**2).sum(1), noise)
    np.testing.assert_allclose(posterior.right, joint[:, 0].sum(-1), atol=1e-12)
    np.testing.assert_allclose(posterior.noise, joint.sum(1), atol=1e-12)


@pytest.mark.parametrize("horizon", [1, 2])
@pytest.mark.parametrize("noise", [(1.0,), (0.5, 2.0)])
@pytest.mark.parametrize("wrong_cost", [0.5, 3.0])
def test_value_equals_brute_force_on_short_horizons(horizon, noise, wrong_cost):
    task = SequentialTest(horizon=horizon, noise=noise, wrong_cost=wrong_cost)
    value = solve_sequential_test(task, means=151, spreads=101, nodes=101).value
    assert value == pytest.approx(brute_force(task), abs=1e-3)


@pytest.mark.parametrize(
    ("variant", "value", "by_noise"),
    [("easy", 0.8967, {1: 0.930, 2: 0.801}), ("hard", 0.8532, {1: 0.944, 2: 0.854, 4: 0.518})],
)
def test_optimal_policy_earns_its_value_in_the_real_environment(variant, value, by_noise):
    task = SequentialTest(variant=variant)
    solution = solve_sequential_test(task)
    assert solution.value == pytest.approx(value, abs=5e-4)
    returns = solution.returns(task.noise, episodes=60_000, seed=0)
    error = np.sqrt((returns.standard_error**2).sum()) / len(task.noise)
    assert abs(returns.mean.mean() - solution.value) < 3 * error + 3e-4
    for level, expected in by_noise.items():
        k = task.noise.index(level)
        assert abs(returns.mean[k] - expected) < 3 * returns.standard_error[k] + 2e-3


def test_a_solution_is_remembered():
    task = SequentialTest(horizon=2)
    assert solve_sequential_test(task) is solve_sequential_test(SequentialTest(horizon=2))


def test_the_policy_takes_arrays_of_any_shape_and_is_symmetric():
    solution = solve_sequential_test(SequentialTest())
    total = np.array([[-6.0, 0.0], [0.2, 6.0]])
    action = solution.policy(6, total, np.full((2, 2), 7.0))
    np.testing.assert_array_equal(action, [[1, 0], [0, 2]])


@pytest.mark.parametrize(("variant", "gap"), [("easy", 0.0145), ("hard", 0.061)])
def test_ignoring_the_noise_costs_what_confidence_is_worth(variant, gap):
    task = SequentialTest(variant=variant)
    blind = solve_noise_blind(task, sweeps=6)
    assert solve_sequential_test(task).value - blind.value == pytest.approx(gap, abs=4e-3)
    returns = blind.returns(task.noise, episodes=60_000, seed=1)
    error = np.sqrt((returns.standard_error**2).sum()) / len(task.noise)
    assert abs(returns.mean.mean() - blind.value) < 3 * error + 5e-4


def test_sweeps_never_lower_the_return():
    task = SequentialTest(variant="hard", horizon=10)
    values = [solve_noise_blind(task, sweeps=n).value for n in (1, 2, 4)]
    assert values[0] <= values[1] + 1e-6 <= values[2] + 2e-6


def test_with_one_noise_level_ignoring_it_costs_nothing():
    task = SequentialTest(noise=1.0, horizon=10)
    value = solve_sequential_test(task).value
    assert solve_noise_blind(task).value == pytest.approx(value, abs=1e-3)


@pytest.mark.parametrize("solve", [solve_sequential_test, solve_noise_blind])
def test_a_level_of_zero_is_refused(solve):
    with pytest.raises(ValueError, match="positive levels"):
        solve(SequentialTest(noise=(0.0, 1.0)))
