from functools import cache
from itertools import combinations, permutations, product

import gymnasium
import numpy as np
import pytest
from replay import assert_numpy_equals_torch

from doxastic.envs import Battleship, Concentration, HigherLower, MineSweeper, NumpyRandom
from doxastic.envs.references.games import (
    concentration_value,
    higher_lower_value,
    perfect_memory_value,
)

VARIANTS = ["easy", "medium", "hard"]
GAMES = [Battleship, Concentration, HigherLower, MineSweeper]


def reset(pomdp, n, seed=0):
    random = NumpyRandom(np.random.default_rng(seed))
    return pomdp.reset(n, random), random


def assert_same_episode(env, first, pomdp, state, actions):
    """Fail unless both go through the same episode; return its rewards.

    Args:
        env: An environment of POPGym, just reset, with the observation `first`.
        first: What its reset returned.
        pomdp: Our task.
        state: State of one environment with the same hidden variables.
        actions: An iterable of actions, longer than the episode.
    """
    random, rewards = NumpyRandom(np.random.default_rng(0)), []
    np.testing.assert_array_equal(pomdp.observe(state, random)[0], first)
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        state, ours, ended = pomdp.step(state, np.asarray(action)[None], random)
        np.testing.assert_array_equal(pomdp.observe(state, random)[0], observation)
        assert ours[0] == reward
        assert ended[0] == terminated
        rewards.append(reward)
        limit = pomdp.max_episode_steps
        at_limit = limit is not None and len(rewards) >= limit
        # POPGym's own games call an end at the limit truncated, some of them also if it is won.
        assert truncated == at_limit or terminated
        if terminated or truncated:
            return rewards
    pytest.fail("the episode did not end")


@pytest.mark.parametrize(("variant", "decks"), [("easy", 1), ("medium", 2), ("hard", 3)])
def test_higher_lower_equals_popgyms_step_by_step(variant, decks):
    popgym = pytest.importorskip("popgym.envs.higher_lower")
    env = getattr(popgym, f"HigherLower{variant.title()}")()
    pomdp = HigherLower(decks=decks)
    first, _ = env.reset(seed=3)
    state, _ = reset(pomdp, 1)
    state["ranks"] = env.deck.ranks_idx[env.deck.idx[::-1]][None].astype(np.int8)
    actions = np.random.default_rng(0).integers(0, 2, 52 * decks)
    rewards = assert_same_episode(env, first, pomdp, state, actions)
    assert len(rewards) == 52 * decks - 1
    assert {np.sign(r) for r in rewards} == {-1, 0, 1}


def concentration(variant, seed=3):
    """Return POPGym's game, its first observation, ours, and a state of the same cards."""
    popgym = pytest.importorskip("popgym.envs.concentration")
    env = getattr(popgym, f"Concentration{variant.title()}")()
    pomdp = Concentration(variant=variant)
    first, _ = env.reset(seed=seed)
    state, _ = reset(pomdp, 1)
    state["kinds"] = env.deck_idx_type[env.deck.idx][None].astype(np.int8)
    return env, first, pomdp, state


def perfect_play(kinds):
    """Return the places of the cards, pair after pair."""
    return np.argsort(kinds, kind="stable")


@pytest.mark.parametrize("variant", VARIANTS)
def test_concentration_equals_popgyms_step_by_step(variant):
    env, first, pomdp, state = concentration(variant)
    random = np.random.default_rng(0)
    few = random.integers(0, 8, 2 * pomdp.cards)
    pairs = np.resize(perfect_play(state["kinds"][0]), 2 * pomdp.cards)
    actions = np.where(random.random(2 * pomdp.cards) < 0.2, few, pairs)
    # The same card twice is no pair.
    actions[:2] = 3
    rewards = assert_same_episode(env, first, pomdp, state, actions)
    assert len(rewards) == pomdp.max_episode_steps
    expected = [2 * pomdp.failure, pomdp.failure, 0.0, pomdp.success]
    assert set(rewards) == set(expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_turning_up_all_pairs_terminates_concentration_at_a_return_of_one(variant):
    env, first, pomdp, state = concentration(variant)
    rewards = assert_same_episode(env, first, pomdp, state, perfect_play(state["kinds"][0]))
    assert len(rewards) == pomdp.cards
    assert sum(rewards) == pytest.approx(1)


def mine_sweeper(variant, seed=3):
    """Return POPGym's game, its first observation, ours, and a state of the same mines."""
    popgym = pytest.importorskip("popgym.envs.minesweeper")
    env = getattr(popgym, f"MineSweeper{variant.title()}")()
    pomdp = MineSweeper(variant=variant)
    first, _ = env.reset(seed=seed)
    state, _ = reset(pomdp, 1)
    state["mine"] = (env.hidden_grid == 1).reshape(1, -1)
    state["around"] = env.neighbor_grid.reshape(1, -1)
    return env, first, pomdp, state


@pytest.mark.parametrize("variant", VARIANTS)
def test_mine_sweeper_equals_popgyms_step_by_step(variant):
    ends = set()
    for seed in range(0, 64, 5):
        env, first, pomdp, state = mine_sweeper(variant, seed)
        random = np.random.default_rng(seed)
        safe = np.flatnonzero(~state["mine"][0])
        # Safe squares, some of them again, up to the limit of steps; or a mine before.
        squares = random.choice(safe, 80)
        squares[seed] = np.flatnonzero(state["mine"][0])[0]
        actions = np.stack(np.divmod(squares, pomdp.size), axis=1)
        rewards = assert_same_episode(env, first, pomdp, state, actions)
        ends.add(len(rewards) == pomdp.max_episode_steps)
    assert ends == {True, False}


@pytest.mark.parametrize("variant", VARIANTS)
def test_uncovering_all_safe_squares_terminates_at_a_return_of_one(variant):
    env, first, pomdp, state = mine_sweeper(variant)
    actions = np.stack(np.divmod(np.flatnonzero(~state["mine"][0]), pomdp.size), axis=1)
    rewards = assert_same_episode(env, first, pomdp, state, actions)
    assert sum(rewards) == pytest.approx(1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_mines_and_numbers_are_laid_out_as_popgyms(variant):
    env, _, pomdp, _ = mine_sweeper(variant)
    state, _ = reset(pomdp, 4000)
    np.testing.assert_array_equal(state["mine"].sum(1), pomdp.mines)
    share = pomdp.mines / pomdp.squares
    np.testing.assert_allclose(state["mine"].mean(0), share, atol=0.04)
    mine = np.pad(state["mine"][:50].reshape(50, pomdp.size, -1), ((0, 0), (1, 1), (1, 1)))
    around = sum(
        mine[:, i : i + pomdp.size, j : j + pomdp.size].astype(int)
        for i in range(3)
        for j in range(3)
    )
    np.testing.assert_array_equal(state["around"][:50], around.reshape(50, -1))
    assert pomdp.observation_space.n == env.observation_space.n


def battleship(variant, seed=3):
    """Return POPGym's game, its first observation, ours, and a state of the same ships."""
    popgym = pytest.importorskip("popgym.envs.battleship")
    env = getattr(popgym, f"Battleship{variant.title()}")()
    pomdp = Battleship(size=env.board_size)
    first, _ = env.reset(seed=seed)
    state, _ = reset(pomdp, 1)
    state["ship"] = (env.board == 1).reshape(1, -1)
    return env, first, pomdp, state


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("repeats", [True, False])
def test_battleship_equals_popgyms_step_by_step(variant, repeats):
    env, first, pomdp, state = battleship(variant)
    random = np.random.default_rng(0)
    squares = random.permutation(pomdp.squares)
    squares = random.choice(squares, pomdp.squares) if repeats else squares
    actions = np.stack(np.divmod(squares, pomdp.size), axis=1)
    rewards = assert_same_episode(env, first, pomdp, state, actions)
    assert {np.sign(r) for r in rewards} == {-1, 1}
    assert (len(rewards) == pomdp.squares) == repeats


def test_ships_are_placed_as_often_on_every_square_as_popgyms():
    popgym = pytest.importorskip("popgym.envs.battleship")
    env = popgym.BattleshipEasy()
    theirs = np.zeros((8, 8))
    for seed in range(2000):
        env.reset(seed=seed)
        theirs += env.board / 2000
    state, _ = reset(Battleship(size=8), 20_000)
    ours = state["ship"].mean(0).reshape(8, 8)
    np.testing.assert_array_equal(state["ship"].sum(1), 12)
    # Both are 0.19 on average; the standard error of theirs is 0.009.
    np.testing.assert_allclose(ours, theirs, atol=0.036)
    # All symmetries of the square hold for what is expected.
    for other in (ours[::-1], ours[:, ::-1], ours.T):
        np.testing.assert_allclose(ours, other, atol=0.015)


def test_a_ship_is_uniform_among_the_places_that_are_free():
    pomdp = Battleship(size=3, ships=(3, 1))
    state, _ = reset(pomdp, 60_000)
    boards, counts = np.unique(state["ship"], axis=0, return_counts=True)
    # Six places for the long ship, six squares for the short one; a line of four is impossible,
    # and no two of the 36 layouts look alike.
    assert len(boards) == 36
    np.testing.assert_allclose(counts / 60_000, 1 / 36, atol=0.004)


@pytest.mark.parametrize("game", GAMES)
def test_numpy_and_torch_agree_given_the_same_draws(game):
    assert_numpy_equals_torch(game(noise=(0.0, 0.5)), n=32, steps=60)


@pytest.mark.parametrize("game", GAMES)
def test_noise_replaces_symbols_and_changes_nothing_else(game):
    quiet, loud = game(noise=0.0), game(noise=1.0)
    (x, a), (y, b) = reset(quiet, 400), reset(loud, 400)
    quiet.action_space.seed(0)
    seen = []
    for _ in range(6):
        action = np.stack([quiet.action_space.sample() for _ in range(400)])
        quiet.observe(x, a), seen.append(loud.observe(y, b))
        x, reward_x, _ = quiet.step(x, action, a)
        y, reward_y, _ = loud.step(y, action, b)
        np.testing.assert_array_equal(reward_x, reward_y)
        np.testing.assert_array_equal(quiet.hidden(x)[:, :-1], loud.hidden(y)[:, :-1])
    share = np.bincount(np.concatenate(seen).ravel()) / np.size(seen)
    np.testing.assert_allclose(share, 1 / len(share), atol=0.03)
    assert a.generator.random() == b.generator.random()


def brute_force_higher_lower(ranks, copies):
    """Return the value of counting cards by summing over all orders of a small deck."""
    total, orders = 0.0, list(permutations(np.repeat(np.arange(ranks), copies)))
    for order in orders:
        for i in range(len(order) - 1):
            rest = np.array(order[i + 1 :])
            total += abs(np.sign(rest - order[i]).sum()) / len(rest)
    return total / len(orders) / len(orders[0])


@pytest.mark.parametrize(("ranks", "copies"), [(2, 1), (3, 1), (3, 2), (2, 3), (6, 1)])
def test_the_value_of_higher_lower_equals_brute_force(ranks, copies):
    value = higher_lower_value(ranks=ranks, copies=copies)
    assert value == pytest.approx(brute_force_higher_lower(ranks, copies), abs=1e-12)


@pytest.mark.parametrize(("decks", "value"), [(1, 0.5276), (2, 0.5161), (3, 0.5115)])
def test_counting_cards_earns_the_value_of_higher_lower(decks, value):
    assert higher_lower_value(copies=4 * decks) == pytest.approx(value, abs=5e-5)
    pomdp, n = HigherLower(decks=decks), 1000
    state, random = reset(pomdp, n)
    left, total = np.full((n, 13), 4 * decks), np.zeros(n)
    ended = np.zeros(n, bool)
    while not ended.any():
        rank = pomdp.observe(state, random)
        left[np.arange(n), rank] -= 1
        sign = np.sign(np.arange(13) - rank[:, None])
        state, reward, ended = pomdp.step(state, ((left * sign).sum(1) < 0) * 1, random)
        total += reward
    np.testing.assert_array_equal(pomdp.hidden(state)[:, :13], 0)
    assert total.mean() == pytest.approx(value, abs=4 * total.std() / np.sqrt(n))


def brute_force_concentration(copies, steps, success, failure):
    """Return the best return by expectimax over every choice of a place, for a handful of cards.

    Args:
        copies: Cards of each kind.
        steps: Cards turned up before the game ends.
        success: Reward of a pair.
        failure: Reward, negative, of every card of a turn without one.
    """
    n = sum(copies)

    @cache
    def value(known, matched, first, steps):
        if steps == 0 or len(matched) == n:
            return 0.0
        # Places never looked at are alike: one of them stands for all.
        places = [place for place in range(n) if known[place] is not None]
        places += [known.index(None)] if None in known else []
        return max(after(known, matched, first, place, steps) for place in places)

    def after(known, matched, first, place, steps):
        if known[place] is not None:
            return outcome(known, matched, first, place, steps)
        unseen = list(copies)
        for kind in known:
            if kind is not None:
                unseen[kind] -= 1
        return sum(
            count
            / sum(unseen)
            * outcome(with_kind(known, place, kind), matched, first, place, steps)
            for kind, count in enumerate(unseen)
            if count
        )

    def with_kind(known, place, kind):
        return (*known[:place], kind, *known[place + 1 :])

    def outcome(known, matched, first, place, steps):
        if place in matched:
            return failure * (1 + (first is not None)) + value(known, matched, None, steps - 1)
        if first is None:
            return value(known, matched, place, steps - 1)
        if known[place] == known[first] and place != first:
            pair = frozenset(matched | {place, first})
            return success + value(known, pair, None, steps - 1)
        return 2 * failure + value(known, matched, None, steps - 1)

    return value((None,) * n, frozenset(), None, steps)


@pytest.mark.parametrize(
    ("copies", "turns"),
    [((2,), 1), ((2, 2), 2), ((2, 2), 4), ((4, 2), 3), ((4, 2), 5), ((2, 2, 2, 2), 3)],
)
def test_the_value_of_a_perfect_memory_equals_brute_force(copies, turns):
    value = perfect_memory_value(copies, turns, success=1.0, failure=-0.2)
    best = brute_force_concentration(copies, 2 * turns, success=1.0, failure=-0.1)
    assert value == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize(
    ("variant", "value"), [("easy", 0.8137), ("medium", 0.8131), ("hard", 0.6981)]
)
def test_a_perfect_memory_earns_the_value_of_concentration(variant, value):
    pomdp = Concentration(variant=variant)
    assert concentration_value(pomdp) == pytest.approx(value, abs=5e-5)
    returns = np.array([remembering_player(pomdp, seed) for seed in range(60)])
    assert returns.mean() == pytest.approx(value, abs=4 * returns.std() / np.sqrt(60))


def remembering_player(pomdp, seed):
    """Return the return of one episode of a player who remembers what the observations showed."""
    state, random = reset(pomdp, 1, seed)
    known, unseen, total = {}, list(range(pomdp.cards)), 0.0
    for step in range(pomdp.max_episode_steps):
        if step % 2 == 0:
            pairs = (p for p, q in combinations(known, 2) if known[p] == known[q])
            place = first = next(pairs, None)
        else:
            place = next((p for p in known if p != first and known[p] == known[first]), None)
        if place is None:
            place = unseen.pop(0)
            first = place if step % 2 == 0 else first
        state, reward, ended = pomdp.step(state, np.array([place]), random)
        known[place] = int(pomdp.observe(state, random)[0, place])
        total += reward[0]
        if reward[0] > 0:
            del known[place], known[first]
        if ended[0]:
            break
    return total


@pytest.mark.parametrize(
    ("game", "arguments", "message"),
    [
        (Battleship, {"size": 1}, "size is 1"),
        (Battleship, {"ships": ()}, "one ship or more"),
        (Battleship, {"ships": (9,)}, "of 1 to 8 squares"),
        (Battleship, {"ships": (0,)}, "of 1 to 8 squares"),
        (Battleship, {"size": 4, "ships": (4, 4, 3)}, "cannot be shown that ship 2"),
        (Battleship, {"ships": "23"}, "ships\\[0\\] is '2'; expected a whole number"),
        (Battleship, {"ships": (3, 2.5)}, "ships\\[1\\] is 2.5; expected a whole number"),
        (Battleship, {"size": 2, "ships": (1, 1, 1, 1)}, "cover the whole board"),
        (Battleship, {"noise": 2.0}, "a probability and at most 1"),
        (MineSweeper, {"variant": "huge"}, "expected one of"),
        (MineSweeper, {"size": 1}, "size is 1"),
        (MineSweeper, {"mines": 0}, "expected 1 to 13"),
        (MineSweeper, {"mines": 14}, "expected 1 to 13"),
        (Concentration, {"variant": "huge"}, "expected one of"),
        (Concentration, {"kind": "suits"}, "expected 'colors' or 'ranks'"),
        (Concentration, {"decks": 0}, "at least 1 deck"),
        (HigherLower, {"decks": 0}, "at least 1 deck"),
    ],
)
def test_arguments_outside_their_range_are_named(game, arguments, message):
    with pytest.raises(ValueError, match=message):
        game(**arguments)


def test_a_won_game_at_the_limit_of_steps_is_terminated_and_not_truncated():
    env = gymnasium.make("doxastic/MineSweeper-v0", previous_action=False)
    env.reset(seed=0)
    mine = env.unwrapped.hidden()[:16]
    for square in np.flatnonzero(mine == 0):
        _, _, terminated, truncated, _ = env.step(np.array(divmod(square, 4)))
    assert (terminated, truncated) == (True, False)


def every_ship_fits(size, ships):
    """Return whether each ship finds a free place wherever those before it lie, by search."""
    boards = {0}
    for length in ships:
        rows = [
            sum(1 << (i * size + j + k) for k in range(length))
            for i in range(size)
            for j in range(size - length + 1)
        ]
        columns = [
            sum(1 << ((j + k) * size + i) for k in range(length))
            for i in range(size)
            for j in range(size - length + 1)
        ]
        following = set()
        for board in boards:
            free = {board | place for place in rows + columns if not board & place}
            if not free:
                return False
            following |= free
        boards = following
    return True


@pytest.mark.parametrize(("size", "most"), [(2, 3), (3, 4), (4, 3)])
def test_no_board_is_taken_on_which_a_ship_could_find_no_place(size, most):
    taken = 0
    for count in range(1, most + 1):
        for ships in product(range(1, size + 1), repeat=count):
            try:
                Battleship(size=size, ships=ships)
            except ValueError:
                continue
            taken += 1
            assert every_ship_fits(size, ships)
    assert taken > size


@pytest.mark.parametrize(
    ("size", "ships"), [(3, (3, 3)), (4, (1, 4)), (4, (4, 4)), (5, (5, 5, 2)), (2, (1, 2))]
)
def test_boards_on_which_the_ships_obviously_fit_are_taken(size, ships):
    assert every_ship_fits(size, ships)
    assert Battleship(size=size, ships=ships).targets == sum(ships)
