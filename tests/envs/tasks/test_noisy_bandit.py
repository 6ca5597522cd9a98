import numpy as np
import pytest
from replay import assert_numpy_equals_torch
from scipy.stats import norm

from doxastic.envs import NoisyBandit, NumpyRandom
from doxastic.envs.references.bandit_filter import BanditBelief, BanditFilter, BanditSumsFilter
from doxastic.envs.references.bandit_policy import BanditPolicy


def start(pomdp, n, seed=0):
    random = NumpyRandom(np.random.default_rng(seed))
    return pomdp.reset(n, random), random


def test_a_pull_costs_and_taking_an_arm_pays_its_mean_and_ends():
    pomdp = NoisyBandit(arms=3, pull_cost=0.1)
    state, random = start(pomdp, 2)
    after, reward, ended = pomdp.step(state, np.array([1, 5]), random)
    np.testing.assert_allclose(reward, [-0.1, state["means"][1, 2]])
    np.testing.assert_array_equal(ended, [False, True])
    np.testing.assert_array_equal(after["pulled"], [1, -1])


def test_a_pull_at_the_horizon_takes_nothing():
    pomdp = NoisyBandit(horizon=1, pull_cost=0.1)
    state, random = start(pomdp, 1)
    _, reward, ended = pomdp.step(state, np.array([0]), random)
    assert ended[0]
    assert reward[0] == -0.1


def test_readings_are_those_of_the_arm_that_was_pulled():
    pomdp = NoisyBandit(arms=2, unreliable=0.4)
    state, random = start(pomdp, 40_000)
    np.testing.assert_array_equal(pomdp.observe(state, random), np.zeros((40_000, 1)))
    state, _, _ = pomdp.step(state, np.arange(40_000) % 2, random)
    o = pomdp.observe(state, random)[:, 0]
    arm = np.arange(40_000) % 2, np.arange(40_000)
    means, scales = state["means"][arm[1], arm[0]], state["scales"][arm[1], arm[0]]
    assert ((o - means) / scales).std() == pytest.approx(1, rel=0.02)
    unreliable = scales != pomdp.reliable_noise
    assert unreliable.mean() == pytest.approx(0.4, abs=0.01)
    np.testing.assert_array_equal(scales[unreliable], state["noise"][unreliable])
    np.testing.assert_array_equal(pomdp.hidden(state)[:, :2], state["means"])


def test_numpy_and_torch_agree_given_the_same_draws():
    assert_numpy_equals_torch(NoisyBandit(horizon=8))


def test_the_posterior_equals_numerical_integration():
    task = NoisyBandit(arms=2, reliable_noise=0.4, unreliable=0.3, noise=(1.0, 2.5))
    state, random = start(task, 20)
    actions = np.random.default_rng(1).integers(0, 2, (20, 5))
    observations = [task.observe(state, random)]
    for action in actions.T:
        state, _, _ = task.step(state, action, random)
        observations.append(task.observe(state, random))
    observations = np.stack(observations, 1)
    posterior = BanditFilter(task).posterior(observations, actions)
    mu = np.linspace(-8, 8, 4001)
    scales = np.array([0.4, 1.0, 2.5])
    for i in range(20):
        # Of every arm: p(readings, mu | scale), [arms, scales, mu].
        joint = np.tile(norm.pdf(mu), (2, 3, 1))
        for t in range(5):
            reading = observations[i, t + 1, 0]
            joint[actions[i, t]] *= norm.pdf(reading, mu, scales[:, None])
        reliable, unreliable = 0.7 * joint[:, :1], 0.3 * joint[:, 1:]
        arm = reliable + unreliable
        evidence = arm.sum(-1).prod(0)
        np.testing.assert_allclose(posterior.noise[i, -1], evidence / evidence.sum(), atol=1e-6)
        given = (arm * mu).sum(-1) / arm.sum(-1)
        mean = given @ (evidence / evidence.sum())
        np.testing.assert_allclose(posterior.mean[i, -1], mean, atol=1e-6)
        square = ((arm * mu**2).sum(-1) / arm.sum(-1)) @ (evidence / evidence.sum())
        np.testing.assert_allclose(posterior.variance[i, -1], square - mean**2, atol=1e-6)
        share = reliable.sum(-1) / arm.sum(-1) @ (evidence / evidence.sum())
        np.testing.assert_allclose(posterior.weights[i, -1, :, 0], share, atol=1e-6)


def test_the_posterior_on_sums_ignores_how_the_readings_scatter():
    task = NoisyBandit(arms=2, unreliable=0.3, noise=2.0)
    count, total = np.array([[3.0, 0.0]]), np.array([[4.5, 0.0]])
    agreeing, scattered = (BanditBelief(count, total, q * count) for q in (2.25, 30.0))
    filter_ = BanditSumsFilter(task)
    weights = filter_.read(agreeing).weights[0]
    np.testing.assert_array_equal(filter_.read(scattered).weights[0], weights)
    density = norm.pdf(1.5, 0, np.sqrt(1 + np.array([0.1, 2.0]) ** 2 / 3)) * [0.7, 0.3]
    np.testing.assert_allclose(weights, [density / density.sum(), [0.7, 0.3]], atol=1e-12)
    exact = BanditFilter(task)
    assert exact.read(agreeing).weights[0, 0, 0] > 0.95
    assert exact.read(scattered).weights[0, 0, 0] < 1e-6


def test_with_one_pull_the_policy_earns_what_integration_gives():
    task = NoisyBandit(arms=2, horizon=2, pull_cost=0.05, reliable_noise=0.3, noise=3.0)
    o = np.linspace(-20, 20, 40_001)
    scales, prior = np.array([0.3, 3.0]), np.array([0.3, 0.7])
    joint = prior * norm.pdf(o[:, None], 0, np.sqrt(1 + scales**2))
    mean = (joint * o[:, None] / (1 + scales**2)).sum(1)
    # Pull one arm once; take it if its mean is above that of the other, 0.
    value = np.maximum(mean, 0).sum() * (o[1] - o[0]) - task.pull_cost
    policy = BanditPolicy(task, BanditFilter(task), factor=1.0)
    returns = policy.returns(task.noise, episodes=40_000, seed=0)
    assert returns.mean[0] == pytest.approx(value, abs=3 * returns.standard_error[0])


def test_the_policy_takes_the_best_arm_when_pulls_are_dear_and_before_the_horizon():
    task = NoisyBandit(arms=2, horizon=4)
    belief = BanditBelief(*np.array([[[1.0, 2.0]], [[0.1, 2.0]], [[0.1, 2.0]]]))
    dear = BanditPolicy(task, BanditFilter(task), factor=1e3)
    cheap = BanditPolicy(task, BanditFilter(task), factor=0.0)
    assert dear.act(belief)[0] == task.arms + 1
    # Three pulls were made: the fourth step is the last.
    assert cheap.act(belief)[0] == task.arms + 1


def test_the_scatter_of_the_readings_is_worth_knowing():
    task = NoisyBandit()
    best, blind = (
        BanditPolicy(task, kind(task), factor=1.7).returns(task.noise, 3_000, 0)
        for kind in (BanditFilter, BanditSumsFilter)
    )
    assert best.mean.mean() > blind.mean.mean() + 0.04


@pytest.mark.parametrize("arguments", [{"noise": 0.0}, {"reliable_noise": 0.0}])
def test_readings_without_noise_are_refused(arguments):
    with pytest.raises(ValueError, match="positive"):
        BanditFilter(NoisyBandit(**arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arms": 1}, "at least 2"),
        ({"pull_cost": -1}, "pull_cost is -1.0"),
        ({"reliable_noise": float("nan")}, "reliable_noise is nan"),
        ({"unreliable": 1.5}, "a probability"),
        ({"horizon": 0}, "at least 1 step"),
        ({"noise": -0.1}, "must be finite and >= 0"),
    ],
)
def test_arguments_outside_their_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        NoisyBandit(**arguments)
