"""Best returns of the card games: what a player gets who forgets nothing.

Both are exact expectations over the shuffled cards, for observations without noise.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from doxastic.envs.tasks.cards import DECK, KINDS
from doxastic.envs.tasks.concentration import Concentration

FloatArray = npt.NDArray[np.float64]


def higher_lower_value(*, ranks: int = KINDS["ranks"], copies: int = 4) -> float:
    """Return the expected return of HigherLower for a player who counts the cards.

    With h cards left that are higher than the present one, l that are lower and m in all, the best
    guess earns |h - l| / m of a card's reward. What is dealt does not depend on the guesses, so
    the value is the sum of E|h - l| / m over the steps; given the rank of the present card,
    (h, l) is multivariate hypergeometric.

    Args:
        ranks: Number of ranks.
        copies: Cards of each rank, four for every deck.
    """
    cards = ranks * copies
    left = np.arange(1, cards)[:, None, None]
    total = 0.0
    for rank in range(ranks):
        above, below = copies * (ranks - 1 - rank), copies * rank
        higher, lower = np.ogrid[: above + 1, : below + 1]
        same = left - higher - lower
        possible = (same >= 0) & (same <= copies - 1)
        log_weight = _log_choose(above, higher) + _log_choose(below, lower)
        log_weight = log_weight + _log_choose(copies - 1, np.where(possible, same, 0))
        weight = np.exp(log_weight - _log_choose(cards - 1, left)) * possible
        total += float((weight * np.abs(higher - lower) / left).sum())
    return total / ranks / cards


def _log_choose(n: int, k: npt.NDArray[np.int64]) -> FloatArray:
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))


def concentration_value(task: Concentration) -> float:
    """Return the expected return of a player of Concentration who remembers every card."""
    copies = (DECK * task.decks // task.kinds,) * task.kinds
    turns = task.horizon // 2
    return perfect_memory_value(copies, turns, task.success, 2 * task.failure)


def perfect_memory_value(
    copies: tuple[int, ...], turns: int, success: float, failure: float
) -> float:
    """Return the expected return of turning up pairs with a perfect memory.

    Such a player takes a pair as soon as both places are known, so that of every kind at most one
    card is known and unmatched: one exactly if the number of its cards never seen is odd. These
    numbers are the whole state. Else the best turn begins with a card never seen, which finds its
    partner if that is known; if it is not, the second card is another one never seen. Looking at
    new cards is never worse than not to: what was seen could be ignored.

    Args:
        copies: Cards of each kind, all even.
        turns: Turns of two cards each after which the game ends.
        success: Reward of a pair.
        failure: Reward, negative, of a turn without a pair.
    """

    @cache
    def value(unseen: tuple[int, ...], turns: int) -> float:
        total = sum(unseen)
        if turns == 0 or total == 0:
            return 0.0
        expected = 0.0
        for first, kinds in Counter(unseen).items():
            chance = first * kinds / total
            rest = _without(unseen, first)
            if first % 2:
                expected += chance * (success + value(rest, turns - 1))
            elif first:
                expected += chance * second(rest, first - 1, turns)
        return expected

    def second(unseen: tuple[int, ...], partner: int, turns: int) -> float:
        """Return the value of turning up a second card, `partner` unseen ones of which match."""
        total = sum(unseen)
        expected = 0.0
        for count, kinds in Counter(unseen).items():
            # One of the kinds of which `partner` cards are unseen is that of the first card.
            matching = count == partner
            others = (kinds - matching) * count / total
            rest = _without(unseen, count) if count else unseen
            if matching:
                expected += count / total * (success + value(rest, turns - 1))
            if others and count % 2 and turns > 1:
                # Its partner was known: the pair is taken in the next turn.
                expected += others * (failure + success + value(rest, turns - 2))
            elif others:
                expected += others * (failure + value(rest, turns - 1))
        return expected

    return value(tuple(sorted(copies)), turns)


def _without(unseen: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return the sorted counts after one card of a kind with `count` unseen cards was seen."""
    rest = list(unseen)
    rest.remove(count)
    return tuple(sorted([*rest, count - 1]))
