"""Cards are dealt; the suit of the first is asked for at every step."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
from array_api_compat import device

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, namespace, picked
from doxastic.envs.tasks.cards import DECK, KINDS, check_decks, deal
from doxastic.envs.tasks.symbols import noisy_symbols, symbol_noise_levels

_SUITS = KINDS["suits"]


class RepeatFirst(BatchedPOMDP):
    """Name the suit of the first card at every step.

    ## Description
    The cards of one or more shuffled decks are dealt one by one; only their suit is seen. Every
    action is to be the suit of the very first. That asks for one symbol to be kept for the whole
    episode, against many that look the same. Observation, reward and termination are those of
    POPGym's RepeatFirst (`popgym/envs/repeat_first.py`, version 1.0) for the same order of the
    cards.

    ## Action Space
    `Discrete(4)`: a suit.

    ## Observation Space
    `Discrete(4)`: the suit of the card just dealt; with probability `noise` a uniformly drawn one
    instead.

    ## Rewards
    `1 / (52 decks - 1)` for the right suit and the negative for a wrong one. The best return with
    noise nu is `1 - 1.5 nu`, from repeating the suit seen first: what is missing from the deck
    speaks too softly to change the answer
    (`doxastic.envs.references.repeat_first.repeat_first_posterior`).

    ## Starting State
    The decks are shuffled and one card has been dealt; the noise level is uniform over `noise`.

    ## Episode End
    Terminates when the last card has been dealt, after `52 decks - 1` steps.

    ## Arguments
    decks: Number of decks; 1, 8 and 16 are POPGym's Easy, Medium and Hard.
    noise: Probability that a suit is replaced by a uniformly drawn one, or several, one drawn for
        each episode.

    Raises:
        ValueError: If an argument is outside its range.
    """

    max_episode_steps = None
    hidden_names = ("first_suit", "suit", "dealt", "noise")

    def __init__(self, *, decks: int = 1, noise: float | Sequence[float] = 0.0) -> None:
        self.decks = check_decks(decks)
        self.cards = DECK * self.decks
        self.noise = symbol_noise_levels(noise)
        self._scale = 1 / (self.cards - 1)
        self.reward_range = (-self._scale, self._scale)
        self.observation_space = gymnasium.spaces.Discrete(_SUITS)
        self.action_space = gymnasium.spaces.Discrete(_SUITS)

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
        suits, noise = state["suits"], state["noise"]
        xp = namespace(noise)
        reward = self._scale * (2 * xp.astype(action == suits[:, 0], noise.dtype) - 1)
        dealt = state["dealt"] + 1
        return {"suits": suits, "dealt": dealt, "noise": noise}, reward, dealt >= self.cards

    def observe(self, state: State, random: Random) -> Array:
        """Return the suit of the card dealt last, `[N]`."""
        suit = picked(state["suits"], state["dealt"] - 1)
        return noisy_symbols(suit, _SUITS, state["noise"], random)

    def hidden(self, state: State) -> Array:
        """Return (suit of the first card, of the last one, cards dealt, noise level), `[N, 4]`."""
        suits, dealt, noise = state["suits"], state["dealt"], state["noise"]
        xp = namespace(noise)
        entries = [suits[:, 0], picked(suits, dealt - 1), dealt]
        return xp.stack([*(xp.astype(x, noise.dtype) for x in entries), noise], axis=1)
