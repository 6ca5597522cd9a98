"""Decks of cards as POPGym has them, shuffled for N environments at once."""

from __future__ import annotations

from doxastic.envs.batched import Array, Random, namespace
from doxastic.envs.checks import whole

DECK = 52

# What is read off a card -> how many values it has.
KINDS = {"colors": 2, "suits": 4, "ranks": 13}

# Card c of 0 .. 51 has rank c // 4 and suit c % 4; spades and clubs, the even suits, are black.
# popgym/core/deck.py of POPGym 1.0.
_SUITS = 4


def deal(n: int, decks: int, kind: str, random: Random) -> Array:
    """Return `n` shuffled piles of `decks` decks, `[n, 52 * decks]`, in the order of dealing.

    One uniform number is spent per card.

    Args:
        n: Number of piles.
        decks: Decks in each pile.
        kind: What is read off the cards, a key of `KINDS`; the entries are int8 from 0 up.
        random: Stream of the shuffling.
    """
    order = shuffled(n, decks * DECK, random)
    xp = namespace(order)
    values = order % DECK // _SUITS if kind == "ranks" else order % KINDS[kind]
    return xp.astype(values, xp.int8)


def shuffled(n: int, count: int, random: Random) -> Array:
    """Return `n` independent uniform permutations of 0 .. count - 1, `[n, count]` in int64."""
    u = random.uniform((n, count))
    return namespace(u).argsort(u, axis=1)


def check_decks(decks: int) -> int:
    """Return the number of decks; raise `ValueError` if there is not at least one whole one."""
    return whole("decks", decks, 1, "deck")
