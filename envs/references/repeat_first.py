"""Exact posterior of RepeatFirst.

The likelihood of what was seen is a sum over how many of the seen suits were cards and how many
were noise. With m_z later sightings of suit z, of which g_z were cards, all orders of the rest of
the deck being equally likely,

    P(sightings | first = x) = sum over g of
        prod over z of  C(m_z, g_z) (1 - nu)^g_z (nu / 4)^(m_z - g_z) (c_z)_{g_z}  /  (N)_{sum g},

where c_z is the number of cards of suit z left after a first card of suit x, N their sum and
(c)_g = c (c - 1) ... (c - g + 1). The suits are coupled by the sum of g alone: the product is one
of polynomials.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import binom, poch

from doxastic.envs.tasks.cards import DECK, KINDS

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_SUITS = KINDS["suits"]


class FirstSuitPosterior(NamedTuple):
    """Posterior of the hidden variables of RepeatFirst."""

    suit: FloatArray
    """P(first suit = x), `[N, 4]`."""

    noise: FloatArray
    """P(noise = level) for every noise level, `[N, levels]`."""


def repeat_first_posterior(
    first: npt.ArrayLike,
    counts: npt.ArrayLike,
    noise: Sequence[float],
    *,
    copies: int = DECK // _SUITS,
) -> FirstSuitPosterior:
    """Return the posterior of (first suit, noise level) under uniform priors.

    Args:
        first: Suit seen first, `[N]`.
        counts: How often each suit was seen after that, `[N, 4]`.
        noise: Possible probabilities of symbol noise.
        copies: Cards of each suit in the deck. The sums are in double precision, which is enough
            for one deck.
    """
    seen, later = np.asarray(first), np.asarray(counts)
    joint = np.stack([_joint(seen, later, level, copies) for level in noise], axis=1)
    joint /= joint.sum((1, 2), keepdims=True)
    return FirstSuitPosterior(joint.sum(1), joint.sum(2))


def _joint(first: IntArray, counts: IntArray, level: float, copies: int) -> FloatArray:
    """Return P(sightings | first suit = x, noise level), `[N, 4]`, up to a common factor."""
    whole = _terms(counts, copies, level, copies)
    less = _terms(counts, copies - 1, level, copies)
    cards = _SUITS * copies - 1
    # (N)_g, which N^g would leave too small, of all numbers g of cards that were seen.
    g = np.arange(cards + 1)
    ways = 1 / poch(cards - g + 1, g)
    likelihood = np.empty((len(first), _SUITS))
    for x in range(_SUITS):
        product = np.ones((len(first), 1))
        for z in range(_SUITS):
            product = _multiplied(product, (less if z == x else whole)[:, z])
        right = 1 - level * (1 - 1 / _SUITS)
        sighting = np.where(first == x, right, level / _SUITS)
        likelihood[:, x] = sighting * (product[:, : cards + 1] @ ways)
    return likelihood


def _terms(counts: IntArray, cards: int, level: float, copies: int) -> FloatArray:
    """Return C(m, g) (1 - nu)^g (nu / 4)^(m - g) (c)_g for g = 0 .. copies, `[N, 4, copies + 1]`.

    Args:
        counts: The sightings m of each suit, `[N, 4]`.
        cards: Cards c of each suit.
        level: Noise nu.
        copies: Largest g.
    """
    m = counts[:, :, None]
    g = np.arange(copies + 1)
    possible = (g <= m) & (g <= cards)
    noisy = np.power(level / _SUITS, np.where(possible, m - g, 0))
    orders = poch(np.where(g <= cards, cards - g + 1, 1), g)
    return np.asarray(np.where(possible, binom(m, g) * (1 - level) ** g * noisy * orders, 0.0))


def _multiplied(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the coefficients of the product of polynomials, row by row."""
    product = np.zeros((a.shape[0], a.shape[1] + b.shape[1] - 1))
    for power in range(b.shape[1]):
        product[:, power : power + a.shape[1]] += b[:, power, None] * a
    return product
