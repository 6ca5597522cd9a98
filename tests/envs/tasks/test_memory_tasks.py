import gymnasium
import numpy as np
import pytest
from replay import assert_numpy_equals_torch

from doxastic.envs import (
    Autoencode,
    Copy,
    CountRecall,
    NumpyRandom,
    RepeatFirst,
    RepeatPrevious,
    TMaze,
)
from doxastic.envs.references.repeat_first import repeat_first_posterior
from doxastic.envs.references.t_maze import solve_noise_blind_t_maze, solve_t_maze

FORWARD, LEFT, RIGHT = 0, 1, 2
VARIANTS = ["easy", "medium", "hard"]
TASKS = [RepeatPrevious, RepeatFirst, Autoencode, CountRecall, Copy, TMaze]


def reset(pomdp, n, seed=0):
    random = NumpyRandom(np.random.default_rng(seed))
    return pomdp.reset(n, random), random


def flat(observation):
    """Return an observation, a Tuple of symbols among them, as an array."""
    return np.array(observation)


def assert_same_episode(env, first, pomdp, state, action_of):
    """Fail unless both go through the same episode; return its rewards.

    Args:
        env: An environment of POPGym, just reset, with the observation `first`.
        first: What its reset returned.
        pomdp: Our task.
        state: State of one environment with the same hidden variables.
        action_of: Returns the action, given our state.
    """
    random, rewards = NumpyRandom(np.random.default_rng(0)), []
    np.testing.assert_array_equal(pomdp.observe(state, random)[0], flat(first))
    terminated = False
    while not terminated:
        action = action_of(state)
        observation, reward, terminated, truncated, _ = env.step(action)
        state, ours, ended = pomdp.step(state, np.array([action]), random)
        np.testing.assert_array_equal(pomdp.observe(state, random)[0], flat(observation))
        assert (ours[0], bool(ended[0]), False) == (reward, terminated, truncated)
        rewards.append(reward)
    return rewards


def random_actions(pomdp, seed=0):
    pomdp.action_space.seed(seed)
    return lambda state: pomdp.action_space.sample()


@pytest.mark.parametrize("variant", VARIANTS)
def test_repeat_previous_equals_popgyms_step_by_step(variant):
    popgym = pytest.importorskip("popgym.envs.repeat_previous")
    env = getattr(popgym, f"RepeatPrevious{variant.title()}")()
    pomdp = RepeatPrevious(variant=variant)
    first, _ = env.reset(seed=3)
    state, _ = reset(pomdp, 1)
    state["suits"] = env.deck.suits_idx[env.deck.idx[::-1]][None].astype(np.int8)
    rewards = assert_same_episode(env, first, pomdp, state, random_actions(pomdp))
    assert len(rewards) == pomdp.cards - 1
    assert {np.sign(r) for r in rewards} == {-1, 0, 1}


@pytest.mark.parametrize(("variant", "decks"), [("easy", 1), ("medium", 8), ("hard", 16)])
def test_repeat_first_equals_popgyms_step_by_step(variant, decks):
    popgym = pytest.importorskip("popgym.envs.repeat_first")
    env = getattr(popgym, f"RepeatFirst{variant.title()}")()
    pomdp = RepeatFirst(decks=decks)
    first, _ = env.reset(seed=3)
    state, _ = reset(pomdp, 1)
    state["suits"] = env.deck.suits_idx[env.deck.idx[::-1]][None].astype(np.int8)
    rewards = assert_same_episode(env, first, pomdp, state, random_actions(pomdp))
    assert len(rewards) == 52 * decks - 1
    assert {np.sign(r) for r in rewards} == {-1, 1}


@pytest.mark.parametrize(("variant", "decks"), [("easy", 1), ("medium", 2), ("hard", 3)])
def test_autoencode_equals_popgyms_step_by_step(variant, decks):
    popgym = pytest.importorskip("popgym.envs.autoencode")
    env = getattr(popgym, f"Autoencode{variant.title()}")()
    pomdp = Autoencode(decks=decks)
    first, _ = env.reset(seed=3)
    state, _ = reset(pomdp, 1)
    state["suits"] = env.deck.suits_idx[env.deck.idx[::-1]][None].astype(np.int8)
    rewards = assert_same_episode(env, first, pomdp, state, random_actions(pomdp))
    assert len(rewards) == 104 * decks - 1
    assert {np.sign(r) for r in rewards} == {-1, 0, 1}


@pytest.mark.parametrize("variant", VARIANTS)
def test_count_recall_equals_popgyms_step_by_step(variant):
    popgym = pytest.importorskip("popgym.envs.count_recall")
    env = getattr(popgym, f"CountRecall{variant.title()}")()
    pomdp = CountRecall(variant=variant)
    first, _ = env.reset(seed=3)
    state, _ = reset(pomdp, 1)
    for pile, deck in (("values", env.value_deck), ("queries", env.query_deck)):
        state[pile] = env.deck_idx_type[deck.idx[::-1]][None].astype(np.int8)
    state["counts"] = env.counts[None].copy()
    choices = np.random.default_rng(0)

    def action_of(state):
        if choices.random() < 0.5:
            return int(pomdp.action_space.sample())
        count, query = state["counts"][0], state["queries"][0, state["dealt"][0] - 1]
        return int(count[query])

    pomdp.action_space.seed(0)
    rewards = assert_same_episode(env, first, pomdp, state, action_of)
    assert len(rewards) == pomdp.cards - 1
    assert min(np.mean(np.array(rewards) > 0), np.mean(np.array(rewards) < 0)) > 0.1


def best_action(pomdp, state):
    """Return the right answers of all environments, read off the hidden state."""
    hidden = dict(zip(pomdp.hidden_names, pomdp.hidden(state).T, strict=True))
    if isinstance(pomdp, RepeatPrevious):
        return np.maximum(hidden[f"suit_{pomdp.k - 1}_steps_ago"], 0)
    if isinstance(pomdp, RepeatFirst):
        return hidden["first_suit"]
    if isinstance(pomdp, Autoencode):
        asked = np.minimum(2 * (pomdp.cards - 1) - hidden["steps"], pomdp.cards - 1)
        return pomdp.hidden(state)[np.arange(len(asked)), asked.astype(int)]
    if isinstance(pomdp, CountRecall):
        return pomdp.hidden(state)[np.arange(16), hidden["queried_kind"].astype(int)]
    if isinstance(pomdp, Copy):
        return pomdp.hidden(state)[np.arange(16), hidden["answers_given"].astype(int)]
    return np.where(hidden["position"] == pomdp.length, hidden["side"], FORWARD)


@pytest.mark.parametrize("task", TASKS)
def test_the_best_return_without_noise_is_one(task):
    pomdp = task()
    state, random = reset(pomdp, 16)
    total, ended = np.zeros(16), np.zeros(16, bool)
    while not ended.any():
        state, reward, ended = pomdp.step(state, best_action(pomdp, state).astype(int), random)
        total += reward
    assert ended.all()
    np.testing.assert_allclose(total, 1, atol=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_numpy_and_torch_agree_given_the_same_draws(task):
    assert_numpy_equals_torch(task(noise=(0.0, 0.5)), n=32, steps=60)


@pytest.mark.parametrize("task", TASKS)
def test_draws_are_common_to_all_noise_levels(task):
    quiet, loud = task(noise=0.0), task(noise=(0.3, 0.9))
    (x, a), (y, b) = reset(quiet, 32, seed=4), reset(loud, 32, seed=4)
    action = np.zeros(32, int)
    for _ in range(5):
        quiet.observe(x, a), loud.observe(y, b)
        x, reward_x, _ = quiet.step(x, action, a)
        y, reward_y, _ = loud.step(y, action, b)
        np.testing.assert_array_equal(reward_x, reward_y)
        np.testing.assert_array_equal(quiet.hidden(x)[:, :-1], loud.hidden(y)[:, :-1])
    assert a.generator.random() == b.generator.random()


@pytest.mark.parametrize("task", [RepeatPrevious, RepeatFirst])
def test_a_noisy_suit_is_right_with_the_stated_probability(task):
    pomdp = task(noise=0.4)
    state, random = reset(pomdp, 40_000)
    seen = pomdp.observe(state, random)
    assert np.mean(seen == state["suits"][:, 0]) == pytest.approx(1 - 0.4 * 0.75, abs=0.01)
    np.testing.assert_allclose(np.bincount(seen) / 40_000, 0.25, atol=0.01)


@pytest.mark.parametrize("task", [Autoencode, CountRecall, Copy])
def test_noise_leaves_modes_and_questions_alone(task):
    quiet, loud = task(noise=0.0), task(noise=1.0)
    shown = 1 if task is CountRecall else 0
    (x, a), (y, b) = reset(quiet, 200), reset(loud, 200)
    differing = 0
    for _ in range(24):
        first, second = quiet.observe(x, a), loud.observe(y, b)
        np.testing.assert_array_equal(first[:, shown], second[:, shown])
        differing += np.mean(first[:, 1 - shown] != second[:, 1 - shown])
        x, y = quiet.step(x, np.zeros(200, int), a)[0], loud.step(y, np.zeros(200, int), b)[0]
    assert differing / 24 > 0.4


def test_copy_asks_for_the_marked_symbols_in_order():
    pomdp = Copy(length=3, distractors=4, symbols=5)
    state, random = reset(pomdp, 500)
    seen, rewards = [], []
    answers = iter(range(3))
    for step in range(10):
        seen.append(pomdp.observe(state, random))
        marks, symbols = np.stack(seen, axis=2).swapaxes(0, 1)
        action = np.zeros(500, int)
        if step >= 7:
            np.testing.assert_array_equal(seen[-1], [[2, 0]] * 500)
            place = np.argsort(marks[:, :7] != 1, axis=1, kind="stable")[:, next(answers)]
            action = symbols[np.arange(500), place]
        state, reward, ended = pomdp.step(state, action, random)
        rewards.append(reward)
        assert ended.all() == ended.any() == (step == 9)
    np.testing.assert_array_equal((marks[:, :7] == 1).sum(1), 3)
    np.testing.assert_allclose((marks[:, :7] == 1).mean(0), 3 / 7, atol=0.1)
    np.testing.assert_array_equal(np.sum(rewards[:7], axis=0), 0)
    np.testing.assert_allclose(np.sum(rewards, axis=0), 1)
    np.testing.assert_array_equal(np.unique(symbols[:, :7]), np.arange(5))


def test_the_t_maze_rewards_turns_and_charges_bumps():
    pomdp = TMaze(length=2, bump_cost=0.1, horizon=4)
    state, random = reset(pomdp, 4)
    state["side"] = np.array([LEFT, RIGHT, LEFT, RIGHT])
    plan = np.array(
        [
            [FORWARD, FORWARD, FORWARD, LEFT],
            [FORWARD, LEFT, FORWARD, LEFT],
            [FORWARD, FORWARD, LEFT, LEFT],
            [RIGHT, FORWARD, LEFT, FORWARD],
        ]
    ).T
    rewards, ends, seen = [], [], [pomdp.observe(state, random)]
    for action in plan:
        state, reward, ended = pomdp.step(state, action, random)
        rewards.append(reward), ends.append(ended), seen.append(pomdp.observe(state, random))
    np.testing.assert_array_equal(np.array(seen)[0], [2, 3, 2, 3])
    np.testing.assert_array_equal(np.array(seen)[1:3], [[0, 0, 0, 3], [1, 0, 1, 0]])
    np.testing.assert_allclose(np.array(rewards).T[:2], [[0, 0, -0.1, 1], [0, -0.1, 0, -1]])
    np.testing.assert_allclose(np.array(rewards).T[2:, :3], [[0, 0, 1], [-0.1, 0, -0.1]])
    # The last one walked on at the horizon: an answer was due.
    assert rewards[3][3] == -1
    np.testing.assert_array_equal(np.array(ends).T[2:, :3], [[False, False, True], [False] * 3])
    assert ends[3][[0, 1, 3]].all()


def brute_force_t_maze(task):
    """Return the best return by expectation over every sequence of looks."""

    def joint(sights):
        return np.array(
            [
                [
                    np.prod([level / 4 + (1 - level) * (s == side + 1) for s in sights])
                    for level in task.noise
                ]
                for side in (LEFT, RIGHT)
            ]
        ) / (2 * len(task.noise))

    def value(sights):
        left, right = joint(sights).sum(1)
        if len(sights) == task.horizon - task.length:
            return abs(left - right)
        waiting = sum(value([*sights, s]) for s in range(4)) - task.bump_cost * (left + right)
        return max(abs(left - right), waiting)

    return sum(value([s]) for s in range(4))


@pytest.mark.parametrize("noise", [(0.0,), (0.6,), (0.2, 0.9), (0.0, 1.0)])
def test_the_value_of_the_t_maze_equals_brute_force(noise):
    task = TMaze(length=3, horizon=7, bump_cost=0.03, noise=noise)
    assert solve_t_maze(task).value == pytest.approx(brute_force_t_maze(task), abs=1e-12)


@pytest.mark.parametrize("solve", [solve_t_maze, solve_noise_blind_t_maze])
def test_policies_of_the_t_maze_earn_their_values(solve):
    task = TMaze(noise=(0.0, 0.5, 0.8, 0.95), bump_cost=0.05)
    solution = solve(task)
    returns = solution.play(task, episodes=40_000, seed=1)
    error = returns.std() / np.sqrt(returns.size)
    assert solution.value == pytest.approx(returns.mean(), abs=3 * error)


def test_ignoring_the_noise_of_the_t_maze_costs_what_confidence_is_worth():
    task = TMaze(noise=(0.0, 0.5, 0.8, 0.95), bump_cost=0.05)
    best, blind = solve_t_maze(task).value, solve_noise_blind_t_maze(task).value
    assert best == pytest.approx(0.5040, abs=5e-5)
    assert best - blind == pytest.approx(0.0026, abs=1e-4)
    single = TMaze(noise=0.8)
    assert solve_noise_blind_t_maze(single).value == pytest.approx(solve_t_maze(single).value)


def brute_force_first_suit(first, later, noise, copies):
    """Return P(first suit | what was seen) by summing over all orders of a small deck."""
    from itertools import permutations

    posterior = np.zeros((4, len(noise)))
    for order in permutations(np.repeat(np.arange(4), copies), len(later) + 1):
        for i, level in enumerate(noise):
            right = np.array(order) == [first, *later]
            posterior[order[0], i] += np.prod(level / 4 + (1 - level) * right)
    return posterior / posterior.sum()


@pytest.mark.parametrize("later", [[], [1], [0, 0, 3], [2, 2, 1, 0]])
@pytest.mark.parametrize("noise", [(0.3,), (0.1, 0.8), (0.0, 1.0)])
def test_the_posterior_of_the_first_suit_equals_brute_force(later, noise):
    expected = brute_force_first_suit(2, later, noise, copies=2)
    counts = np.bincount(later, minlength=4)[None]
    posterior = repeat_first_posterior([2], counts, noise, copies=2)
    np.testing.assert_allclose(posterior.suit[0], expected.sum(1), atol=1e-12)
    np.testing.assert_allclose(posterior.noise[0], expected.sum(0), atol=1e-12)


@pytest.mark.parametrize("level", [0.3, 0.9])
def test_repeating_what_was_seen_first_is_the_best_answer_to_the_end(level):
    pomdp, n = RepeatFirst(noise=level), 400
    state, random = reset(pomdp, n)
    first, counts, belief = pomdp.observe(state, random), np.zeros((n, 4), int), []
    for _ in range(51):
        suit = repeat_first_posterior(first, counts, pomdp.noise).suit
        np.testing.assert_array_equal(suit.argmax(1), first)
        belief.append(suit[np.arange(n), first])
        state, _, _ = pomdp.step(state, first, random)
        counts[np.arange(n), pomdp.observe(state, random)] += 1
    assert 2 * np.mean(belief) - 1 == pytest.approx(1 - 1.5 * level, abs=0.01)


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        (RepeatPrevious, {"variant": "huge"}, "expected one of"),
        (RepeatPrevious, {"decks": 0}, "at least 1 deck"),
        (RepeatPrevious, {"k": 0}, "expected 1 to 51"),
        (RepeatPrevious, {"k": 52}, "expected 1 to 51"),
        (RepeatPrevious, {"noise": 1.5}, "a probability and at most 1"),
        (RepeatFirst, {"decks": -1}, "at least 1 deck"),
        (RepeatFirst, {"noise": -0.5}, "must be finite and >= 0"),
        (Autoencode, {"decks": 0}, "at least 1 deck"),
        (Autoencode, {"noise": (0.0, 2.0)}, "a probability and at most 1"),
        (CountRecall, {"variant": "huge"}, "expected one of"),
        (CountRecall, {"kind": "jokers"}, "expected one of"),
        (Copy, {"length": 0}, "length is 0; expected at least 1"),
        (Copy, {"distractors": -1}, "distractors is -1"),
        (Copy, {"symbols": 1}, "expected at least 2"),
        (TMaze, {"length": 0}, "at least 1 step"),
        (TMaze, {"bump_cost": -1.0}, "finite number >= 0"),
        (TMaze, {"length": 5, "horizon": 5}, "expected at least 6 steps"),
    ],
)
def test_arguments_outside_their_range_are_named(task, arguments, message):
    with pytest.raises(ValueError, match=message):
        task(**arguments)


def test_arguments_reach_the_registered_environments():
    env = gymnasium.make("doxastic/RepeatPrevious-v0", variant="hard", k=9, noise=0.25)
    assert (env.unwrapped.pomdp.decks, env.unwrapped.pomdp.k) == (3, 9)
    _, info = env.reset(seed=0)
    assert info["noise"] == 0.25
