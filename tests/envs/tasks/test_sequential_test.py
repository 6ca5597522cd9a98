import re
from pathlib import Path

import numpy as np
import pytest
import torch

from doxastic.envs import NumpyRandom, SequentialTest

WAIT, LEFT, RIGHT = 0, 1, 2


def reset(pomdp, n, seed=0):
    random = NumpyRandom(np.random.default_rng(seed))
    return pomdp.reset(n, random), random


def test_rewards_of_waiting_right_and_wrong_answers():
    pomdp = SequentialTest(variant="hard")
    state, random = reset(pomdp, 4)
    state["sign"] = np.array([-1.0, -1.0, 1.0, 1.0])
    _, reward, ended = pomdp.step(state, np.array([LEFT, RIGHT, RIGHT, WAIT]), random)
    np.testing.assert_array_equal(reward, [1.0, -3.0, 1.0, -0.01])
    np.testing.assert_array_equal(ended, [True, True, True, False])


def test_waiting_at_the_horizon_terminates_as_a_wrong_answer():
    pomdp = SequentialTest(horizon=3)
    state, random = reset(pomdp, 1)
    rewards = []
    for _ in range(3):
        state, reward, ended = pomdp.step(state, np.array([WAIT]), random)
        rewards.append(float(reward[0]))
    assert rewards == [-0.02, -0.02, -1.0]
    assert ended[0]


def test_no_answer_costs_less_than_a_wrong_one_where_late_cost_says_so():
    pomdp = SequentialTest(variant="harder", horizon=1)
    state, random = reset(pomdp, 2)
    state["sign"] = np.array([1.0, 1.0])
    _, reward, ended = pomdp.step(state, np.array([WAIT, LEFT]), random)
    np.testing.assert_array_equal(reward, [0.0, -10.0])
    assert ended.all()
    assert SequentialTest(wrong_cost=5).late_cost == 5
    assert SequentialTest(late_cost=20).reward_range == (-20.0, 1.0)


def test_an_answer_at_the_horizon_is_still_in_time():
    pomdp = SequentialTest(horizon=1)
    state, random = reset(pomdp, 2)
    state["sign"] = np.array([1.0, -1.0])
    _, reward, ended = pomdp.step(state, np.array([RIGHT, RIGHT]), random)
    np.testing.assert_array_equal(reward, [1.0, -1.0])
    assert ended.all()


def test_observations_are_the_sign_plus_noise_of_the_hidden_scale():
    pomdp = SequentialTest(variant="hard")
    state, random = reset(pomdp, 100_000)
    o = pomdp.observe(state, random)[:, 0]
    sign, noise = pomdp.hidden(state).T
    epsilon = (o - sign) / noise
    assert abs(epsilon.mean()) < 0.02
    assert epsilon.std() == pytest.approx(1, rel=0.01)
    assert abs(sign.mean()) < 0.02
    np.testing.assert_array_equal(np.unique(noise), [0.25, 0.5, 1, 2, 4])


def test_draws_are_common_to_all_noise_levels():
    outcomes = {}
    for level in (0.5, 2.0, (0.5, 1.0, 2.0)):
        pomdp = SequentialTest(noise=level)
        state, random = reset(pomdp, 32, seed=5)
        o = pomdp.observe(state, random)[:, 0]
        outcomes[str(level)] = (state["sign"], (o - state["sign"]) / state["noise"])
    reference = outcomes["0.5"]
    for sign, epsilon in outcomes.values():
        np.testing.assert_array_equal(sign, reference[0])
        np.testing.assert_allclose(epsilon, reference[1], atol=1e-12)


def test_numpy_and_torch_agree_given_the_same_state():
    pomdp = SequentialTest()
    state, random = reset(pomdp, 64)
    action = np.random.default_rng(0).integers(0, 3, 64)
    after, reward, ended = pomdp.step(state, action, random)
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    torch_after, torch_reward, torch_ended = pomdp.step(tensors, torch.from_numpy(action), random)
    np.testing.assert_array_equal(torch_reward.numpy(), reward)
    np.testing.assert_array_equal(torch_ended.numpy(), ended)
    np.testing.assert_array_equal(torch_after["steps"].numpy(), after["steps"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "medium"}, "expected one of"),
        ({"wait_cost": -1}, "wait_cost is -1.0"),
        ({"wrong_cost": float("inf")}, "wrong_cost is inf"),
        ({"late_cost": -1}, "late_cost is -1.0"),
        ({"horizon": 0}, "at least 1 step"),
        ({"noise": (1.0, -1.0)}, "must be finite and >= 0"),
    ],
)
def test_arguments_outside_their_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SequentialTest(**arguments)


def test_the_docstring_gives_the_returns_of_the_page():
    page = Path(__file__).parents[3] / "docs" / "envs" / "confidence.md"
    rows = re.findall(
        r"^\| SequentialTest, \w+ \| 0(\.\d+) \| 0(\.\d+) \| \S+ \| 0(\.\d+) ",
        page.read_text(encoding="utf-8"),
        re.M,
    )
    words = " ".join(SequentialTest.__doc__.split())
    best, blind, worth = zip(*rows, strict=True)
    assert 'is {} on "easy", {} on "hard" and {} on "harder"'.format(*best) in words
    assert "alone gets {}, {} and {} (".format(*blind) in words
    assert "{}, {} and {} are what knowing one's confidence is worth".format(*worth) in words
