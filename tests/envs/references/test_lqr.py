import numpy as np
import pytest
from scipy.linalg import block_diag, solve_discrete_are

from doxastic.envs import LinearGaussian
from doxastic.envs.references.kalman import MixtureFilter
from doxastic.envs.references.lqr import LinearGaussianSolution, solve_regulator

A = np.array([[1.0, 0.3], [-0.2, 1.1]])
B = np.array([[0.1, 0.0], [0.5, 0.2]])
Q = np.array([[1.0, 0.2], [0.2, 0.5]])
R = np.array([[0.3, 0.1], [0.1, 0.4]])
EPISODES = 4000


@pytest.fixture(scope="module")
def solution():
    # A filter that trusts bad sensors needs large actions.
    task = LinearGaussian(horizon=60, noise=(0.1, 1.0, 5.0), action_limit=1e3)
    return LinearGaussianSolution(task)


def assert_mean(returns, expected):
    error = returns.std(ddof=1) / np.sqrt(len(returns))
    assert abs(returns.mean() - expected) < 4 * error
    assert error < 0.05 * abs(expected)


def test_the_feedback_minimises_the_quadratic_cost_over_all_action_sequences():
    horizon, x = 4, np.array([1.0, -2.0])
    # All states as a linear function of the first one and all actions.
    powers = [np.linalg.matrix_power(A, t) for t in range(horizon)]
    free = np.concatenate([power @ x for power in powers])
    forced = np.zeros((2 * horizon, 2 * horizon))
    for t in range(horizon):
        for s in range(t):
            forced[2 * t : 2 * t + 2, 2 * s : 2 * s + 2] = powers[t - 1 - s] @ B
    q, r = block_diag(*[Q] * horizon), block_diag(*[R] * horizon)
    best = -np.linalg.solve(r + forced.T @ q @ forced, forced.T @ q @ free).reshape(horizon, 2)
    regulator = solve_regulator(A, B, Q, R, horizon)
    states, cost = [x], 0.0
    for t in range(horizon):
        u = -regulator.gains[t] @ states[t]
        np.testing.assert_allclose(u, best[t], atol=1e-12)
        cost += states[t] @ Q @ states[t] + u @ R @ u
        states.append(A @ states[t] + B @ u)
    assert cost == pytest.approx(x @ regulator.values[0] @ x)


def test_a_long_horizon_approaches_the_algebraic_riccati_equation():
    regulator = solve_regulator(A, B, Q, R, 500)
    np.testing.assert_allclose(regulator.values[0], solve_discrete_are(A, B, Q, R), rtol=1e-10)


@pytest.mark.parametrize(("level", "assumed"), [(0.1, 0.1), (1.0, 1.0), (0.1, 5.0), (5.0, 0.5)])
def test_stated_returns_of_kalman_filters_equal_simulation(solution, level, assumed):
    estimator = MixtureFilter(solution.model, (assumed,), EPISODES)
    returns = solution.play(level, estimator, EPISODES, seed=1)
    assert_mean(returns, solution.kalman_return(level, assumed))


def test_stated_returns_of_doing_nothing_and_of_seeing_the_state_equal_simulation(solution):
    class Idle:
        mean = np.zeros((EPISODES, 2))

        def update(self, observation):
            pass

        predict = update

    assert_mean(solution.play(1.0, Idle(), EPISODES, seed=1), solution.idle_return())
    seen = LinearGaussian(horizon=60, noise=1e-6, observation=[[1.0, 0.0], [0.0, 1.0]])
    sharp = LinearGaussianSolution(seen)
    assert sharp.kalman_return(1e-6) == pytest.approx(sharp.seeing_return(), rel=1e-6)
    returns = sharp.play(1e-6, MixtureFilter(sharp.model, (1e-6,), EPISODES), EPISODES, seed=1)
    assert_mean(returns, sharp.seeing_return())


def test_stated_returns_of_the_optimum_equal_simulation(solution):
    levels = (0.1, 5.0, 2.0)
    stated = solution.posterior_returns(levels, 1000, seed=0)
    for level, expected in zip(levels, stated, strict=True):
        posterior = MixtureFilter(solution.model, solution.task.noise, EPISODES)
        assert_mean(solution.play(level, posterior, EPISODES, seed=1), expected)


def test_the_root_mean_square_is_the_best_level_to_assume(solution):
    def mean_return(assumed):
        return np.mean([solution.kalman_return(level, assumed) for level in solution.task.noise])

    best = solution.blind_level()
    assert best == pytest.approx(np.sqrt((0.01 + 1 + 25) / 3))
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert mean_return(best) > mean_return(best * factor)


def test_the_posterior_is_worth_more_than_the_best_linear_policy_and_less_than_knowing(solution):
    levels = solution.task.noise
    posterior = solution.posterior_returns(levels, 500, seed=0)
    known = [solution.kalman_return(level) for level in levels]
    blind = [solution.kalman_return(level, solution.blind_level()) for level in levels]
    assert np.all(posterior < known)
    assert np.mean(known) - np.mean(posterior) < 0.01
    assert np.mean(posterior) - np.mean(blind) > 0.1
    assert solution.idle_return() < np.mean(blind) < solution.seeing_return()


def test_no_other_gain_does_better_on_the_same_posterior(solution):
    level = 1.0
    best = solution.kalman_return(level)
    for factor in (0.7, 1.3):
        changed = LinearGaussianSolution(solution.task)
        changed.regulator = changed.regulator._replace(gains=factor * changed.regulator.gains)
        estimator = MixtureFilter(solution.model, (level,), EPISODES)
        assert changed.play(level, estimator, EPISODES, seed=1).mean() < best
