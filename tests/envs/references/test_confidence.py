import gymnasium
import numpy as np
import pytest

from doxastic.envs import CartPole, LightDark, NoisyBandit, SequentialTest, Tiger
from doxastic.envs.references.belief_policy import BeliefPolicy
from doxastic.envs.references.confidence import confidence
from doxastic.envs.references.light_dark_filter import LightDarkFilter
from doxastic.envs.references.tiger import TigerFilter, solve_tiger


@pytest.mark.parametrize(
    ("task", "share"),
    [
        (SequentialTest(variant="harder"), 0.134),
        (Tiger(), 0.332),
        pytest.param(LightDark(), 0.179, marks=pytest.mark.slow),
        pytest.param(NoisyBandit(), 0.141, marks=pytest.mark.slow),
    ],
    ids=lambda value: type(value).__name__,
)
def test_confidence_is_worth_a_tenth_of_the_return_range(task, share):
    result = confidence(task)
    assert result.share == pytest.approx(share, abs=0.01)
    assert result.share >= 0.1
    assert result.value == pytest.approx(result.best.value - result.blind.value)


def test_the_harder_sequential_test_is_solved_with_no_answer_as_a_choice():
    task = SequentialTest(variant="harder")
    result = confidence(task)
    assert result.unseeing == pytest.approx(-0.14)
    for policy in (result.best, result.blind):
        returns = policy.returns(task.noise, 20_000, 0)
        # Levels meet the same draws: their errors add up.
        error = 3 * returns.standard_error.mean() + 1e-3
        assert returns.mean.mean() == pytest.approx(policy.value, abs=error)


@pytest.mark.parametrize(
    ("task", "action"),
    [(Tiger(), lambda t: 0), (LightDark(), lambda t: np.zeros(2))],
    ids=["Tiger", "LightDark"],
)
def test_the_best_return_without_observations_is_that_of_the_constant_policy(task, action):
    class Constant(BeliefPolicy):
        def act(self, belief):
            return np.stack([action(0)] * len(belief[0]))

    kind = TigerFilter if isinstance(task, Tiger) else LightDarkFilter
    returns = Constant(task, kind(task)).returns(task.noise, 4_000, 0)
    unseeing = {"Tiger": -0.3, "LightDark": 0.25 / np.sqrt(0.25**2 + 1)}[type(task).__name__]
    error = 3 * returns.standard_error.mean() + 1e-12
    assert returns.mean.mean() == pytest.approx(unseeing, abs=error)


def test_tasks_of_other_groups_are_refused():
    with pytest.raises(TypeError, match="no reference policies for CartPole"):
        confidence(CartPole())


def test_the_filter_follows_a_registered_environment():
    task = Tiger()
    env = gymnasium.make_vec("doxastic/Tiger-v0", num_envs=64, previous_action=False)
    policy = solve_tiger(task)
    observation, _ = env.reset(seed=0)
    belief = policy.filter.first(observation)
    total = np.zeros(64)
    for _ in range(task.horizon):
        action = policy.act(belief)
        observation, reward, ended, _, _ = env.step(action)
        total += reward
        belief = policy.filter.following(belief, action, observation)
    assert ended.all()
    # 64 episodes: the optimum, .088, is far from always listening, -.3.
    assert total.mean() > -0.15


def test_observations_and_actions_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match=r"expected \[N, T \+ 1"):
        TigerFilter(Tiger()).posterior(np.zeros((2, 3)), np.zeros((2, 3)))
