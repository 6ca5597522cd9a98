"""Cards lie face down; pairs of equal ones are to be turned up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import gymnasium
import numpy as np
from array_api_compat import device

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, namespace, picked, replaced
from doxastic.envs.tasks.cards import DECK, KINDS, check_decks, deal
from doxastic.envs.tasks.symbols import noisy_symbols, symbol_noise_levels

Kind = Literal["colors", "ranks"]


class _Variant(NamedTuple):
    decks: int
    kind: Kind


VARIANTS: dict[str, _Variant] = {
    "easy": _Variant(1, "colors"),
    "medium": _Variant(2, "colors"),
    "hard": _Variant(1, "ranks"),
}


class Concentration(BatchedPOMDP):
    """Turn up pairs of equal cards, remembering where each was seen.

    ## Description
    The cards of one or more shuffled decks lie face down. The agent turns up one card after the
    other; two in a row that are of the same kind stay face up, others are turned back at the next
    step. That asks for what was seen where. Observation, reward, termination and truncation are
    those of POPGym's Concentration (`popgym/envs/concentration.py`, version 1.0) for the same
    layout of the cards, except that an episode that ends with its last step counts as terminated
    alone, and not as truncated too.

    ## Action Space
    `Discrete(52 decks)`: the place of the card to turn up.

    ## Observation Space
    `MultiDiscrete([kinds + 1] * 52 decks)`: the kind of every card that lies face up, `kinds` for
    those that lie face down; there are 2 colors and 13 ranks. With probability `noise` an entry is
    replaced by a uniformly drawn one of the `kinds + 1`.

    ## Rewards
    `2 / (52 decks)` for a pair, when its second card is turned up; `-2 / horizon` when the second
    is of another kind or the same card again. A card that lies face up already ends the turn at
    `-1 / horizon` for every card in it. The best return without noise is that of a player who
    forgets nothing, .814, .813 and .698 on the three variants
    (`doxastic.envs.references.games.concentration_value`).

    ## Starting State
    The cards are shuffled and lie face down; the noise level is uniform over `noise`.

    ## Episode End
    Terminates when all cards lie face up; is truncated after horizon =
    `ceil(2 n - n / (2 n - 1))` steps with n = `52 decks`, two for every card but for a fraction.

    ## Arguments
    variant: "easy" (1 deck, "colors"), "medium" (2, "colors") or "hard" (1, "ranks"), POPGym's
        three: defaults of the next two arguments.
    decks: Number of decks.
    kind: What makes two cards equal: "colors" or "ranks".
    noise: Probability that an entry is replaced by a uniformly drawn one, or several, one drawn
        for each episode.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        *,
        variant: Literal["easy", "medium", "hard"] = "easy",
        decks: int | None = None,
        kind: Kind | None = None,
        noise: float | Sequence[float] = 0.0,
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; expected one of {list(VARIANTS)}.")
        default = VARIANTS[variant]
        self.decks = check_decks(default.decks if decks is None else decks)
        self.kind = default.kind if kind is None else kind
        # A deck has 13 cards of a suit, which do not go into pairs.
        if self.kind not in ("colors", "ranks"):
            raise ValueError(f"kind is {self.kind!r}; expected 'colors' or 'ranks'.")
        self.cards, self.kinds = DECK * self.decks, KINDS[self.kind]
        self.noise = symbol_noise_levels(noise)
        n = self.cards
        self.horizon = self.max_episode_steps = math.ceil(2 * n - n / (2 * n - 1))
        self.success, self.failure = 2 / n, -1 / self.horizon
        self.reward_range = (2 * self.failure, self.success)
        choices = np.full(n, self.kinds + 1)
        self.observation_space = gymnasium.spaces.MultiDiscrete(choices)
        self.action_space = gymnasium.spaces.Discrete(n)
        kinds, matched = ([f"{name}_{i}" for i in range(n)] for name in ("kind", "matched"))
        self.hidden_names = (*kinds, *matched, "first", "noise")

    def reset(self, n: int, random: Random) -> State:
        """Return `n` shuffled layouts.

        The `"kinds"` of the cards, whether they are `"matched"` and whether they are `"shown"`,
        each `[n, cards]`; the place of the `"first"` card of the turn, -1 for none, the number of
        `"pairs"` found, and the noise.
        """
        kinds = deal(n, self.decks, self.kind, random)
        xp = namespace(kinds)
        hidden = xp.zeros((n, self.cards), dtype=xp.bool, device=device(kinds))
        return {
            "kinds": kinds,
            "matched": hidden,
            "shown": hidden,
            "first": xp.full((n,), -1, dtype=xp.int64, device=device(kinds)),
            "pairs": xp.zeros((n,), dtype=xp.int64, device=device(kinds)),
            "noise": self.draw_noise(n, random),
        }

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations; draws nothing."""
        kinds, matched, first = state["kinds"], state["matched"], state["first"]
        noise = state["noise"]
        # The first card of a turn was not matched, or it would have ended the turn; the index -1
        # of none picks a card that does not count.
        is_up, is_second = picked(matched, action), first >= 0
        is_pair = picked(kinds, action) == picked(kinds, first)
        is_pair = is_pair & is_second & ~is_up & (action != first)
        # The other card in play: the first of the turn, or the present one once more.
        other = action + is_second * (first - action)
        shown = replaced(replaced(matched, action, True), other, True)
        matched = replaced(matched, action, is_up | is_pair)
        matched = replaced(matched, other, is_pair | (is_up & ~is_second))
        is_over = is_up | is_second
        pairs = state["pairs"] + is_pair
        one = namespace(noise).ones_like(noise)
        cost = self.failure * (one + is_second)
        reward = self.success * one * is_pair + cost * (is_over & ~is_pair)
        after = {
            "kinds": kinds,
            "matched": matched,
            "shown": shown,
            # The card just turned, or -1 if the turn is over.
            "first": action - is_over * (action + 1),
            "pairs": pairs,
            "noise": noise,
        }
        return after, reward, pairs == self.cards // 2

    def observe(self, state: State, random: Random) -> Array:
        """Return the kinds of the cards that lie face up, `[N, cards]`."""
        kinds = state["kinds"]
        seen = self.kinds + state["shown"] * (kinds - self.kinds)
        return noisy_symbols(seen, self.kinds + 1, state["noise"], random)

    def hidden(self, state: State) -> Array:
        """Return the kinds, which cards are matched, the first of the turn and the noise level."""
        noise = state["noise"]
        xp = namespace(noise)
        entries = [state["kinds"], state["matched"], state["first"][:, None], noise[:, None]]
        return xp.concat([xp.astype(x, noise.dtype) for x in entries], axis=1)
