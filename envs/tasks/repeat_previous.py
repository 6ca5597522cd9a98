"""Cards are dealt; the suit of the card of k steps ago is asked for at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import gymnasium
from array_api_compat import device

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, indices, namespace, picked
from doxastic.envs.checks import whole
from doxastic.envs.tasks.cards import DECK, KINDS, check_decks, deal
from doxastic.envs.tasks.symbols import noisy_symbols, symbol_noise_levels

_SUITS = KINDS["suits"]


class _Variant(NamedTuple):
    decks: int
    k: int


VARIANTS: dict[str, _Variant] = {
    "easy": _Variant(1, 4),
    "medium": _Variant(2, 32),
    "hard": _Variant(3, 64),
}


class RepeatPrevious(BatchedPOMDP):
    """Name the suit of the card seen k - 1 steps before the present one.

    ## Description
    The cards of one or more shuffled decks are dealt one by one; only their suit is seen. Every
    action is to be the suit of the k-th last card, the present one being the first. That asks for
    a queue of k symbols: each has to be kept for k steps and then let go. Observation, reward and
    termination are those of POPGym's RepeatPrevious (`popgym/envs/repeat_previous.py`, version
    1.0) for the same order of the cards.

    ## Action Space
    `Discrete(4)`: a suit.

    ## Observation Space
    `Discrete(4)`: the suit of the card just dealt; with probability `noise` a uniformly drawn one
    instead.

    ## Rewards
    `1 / (52 decks - k)` for the right suit and the negative for a wrong one, from the step on at
    which k cards have been dealt; 0 before. The best return without noise is 1. With noise nu,
    an agent that repeats what it saw gets `1 - 1.5 nu` on average.

    ## Starting State
    The decks are shuffled and one card has been dealt; the noise level is uniform over `noise`.

    ## Episode End
    Terminates when the last card has been dealt, after `52 decks - 1` steps.

    ## Arguments
    variant: "easy" (1 deck, k = 4), "medium" (2, 32) or "hard" (3, 64), POPGym's three: defaults
        of the next two arguments.
    decks: Number of decks.
    k: Which card is asked for: 1 is the present one, 2 the one before.
    noise: Probability that a suit is replaced by a uniformly drawn one, or several, one drawn for
        each episode.

    Raises:
        ValueError: If an argument is outside its range.
    """

    max_episode_steps = None

    def __init__(
        self,
        *,
        variant: Literal["easy", "medium", "hard"] = "easy",
        decks: int | None = None,
        k: int | None = None,
        noise: float | Sequence[float] = 0.0,
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; expected one of {list(VARIANTS)}.")
        default = VARIANTS[variant]
        self.decks = check_decks(default.decks if decks is None else decks)
        self.k = whole("k", default.k if k is None else k)
        self.cards = DECK * self.decks
        if not 1 <= self.k < self.cards:
            raise ValueError(f"k is {self.k}; expected 1 to {self.cards - 1}, one card less.")
        self.noise = symbol_noise_levels(noise)
        self._scale = 1 / (self.cards - self.k)
        self.reward_range = (-self._scale, self._scale)
        self.observation_space = gymnasium.spaces.Discrete(_SUITS)
        self.action_space = gymnasium.spaces.Discrete(_SUITS)
        self.hidden_names = (*(f"suit_{age}_steps_ago" for age in range(self.k)), "noise")

    def reset(self, n: int, random: Random) -> State:
        """Return the `"suits"` `[n, cards]` in their order, how many are `"dealt"`, and noise."""
        suits = deal(n, self.decks, "suits", random)
        xp = namespace(suits)
        return {
            "suits": suits,
            "dealt": xp.ones((n,), dtype=xp.int64, device=device(suits)),
            "noise": self.draw_noise(n, random),
        }

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations; draws nothing."""
        suits, dealt, noise = state["suits"], state["dealt"], state["noise"]
        xp = namespace(noise)
        asked = dealt - self.k
        # Before k cards are dealt a negative index picks some card, whose answer does not count.
        right = xp.astype(action == picked(suits, asked), noise.dtype)
        reward = self._scale * (2 * right - 1) * (asked >= 0)
        dealt = dealt + 1
        return {"suits": suits, "dealt": dealt, "noise": noise}, reward, dealt >= self.cards

    def observe(self, state: State, random: Random) -> Array:
        """Return the suit of the card dealt last, `[N]`."""
        suit = picked(state["suits"], state["dealt"] - 1)
        return noisy_symbols(suit, _SUITS, state["noise"], random)

    def hidden(self, state: State) -> Array:
        """Return the suits of the last k cards, latest first, -1 for none, and the noise."""
        suits, noise = state["suits"], state["noise"]
        xp = namespace(noise)
        place = state["dealt"][:, None] - 1 - indices(self.k, suits)
        seen = xp.astype(suits[indices(suits.shape[0], suits)[:, None], place], noise.dtype)
        seen = xp.where(place >= 0, seen, -xp.ones_like(seen))
        return xp.concat([seen, noise[:, None]], axis=1)
