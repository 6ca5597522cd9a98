"""Cards are shown; their suits are then asked for in reverse order."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
from array_api_compat import device

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, columns, namespace, picked
from doxastic.envs.tasks.cards import DECK, KINDS, check_decks, deal
from doxastic.envs.tasks.symbols import noisy_symbols, symbol_noise_levels

_SUITS = KINDS["suits"]
PLAY, WATCH = 0, 1


class Autoencode(BatchedPOMDP):
    """Watch the cards of a deck, then name their suits from the last to the first.

    ## Description
    All cards of one or more shuffled decks are shown one by one, then their suits are asked for
    backwards, without a hint of how far one has come. That asks for a stack of 52 or more symbols:
    the capacity of the memory is what is measured. Observation, reward and termination are those
    of POPGym's Autoencode (`popgym/envs/autoencode.py`, version 1.0) for the same order of the
    cards; its Tuple of two symbols is a MultiDiscrete here.

    ## Action Space
    `Discrete(4)`: a suit; of no effect while the cards are shown.

    ## Observation Space
    `MultiDiscrete([2, 4])`: the mode, 0 for playing and 1 for watching, and the suit of the card
    just shown; 0 while playing. The last card comes with mode 0: the next action is the first
    answer. With probability `noise` the suit, but never the mode, is replaced by a uniformly drawn
    one.

    ## Rewards
    `1 / (52 decks)` for the right suit and the negative for a wrong one; 0 while watching. The
    best return without noise is 1. With noise nu, an agent that repeats what it saw gets
    `1 - 1.5 nu` on average.

    ## Starting State
    The decks are shuffled and one card is shown; the noise level is uniform over `noise`.

    ## Episode End
    Terminates with the answer to the first card, after `104 decks - 1` steps.

    ## Arguments
    decks: Number of decks; 1, 2 and 3 are POPGym's Easy, Medium and Hard.
    noise: Probability that a suit is replaced by a uniformly drawn one, or several, one drawn for
        each episode.

    Raises:
        ValueError: If an argument is outside its range.
    """

    max_episode_steps = None

    def __init__(self, *, decks: int = 1, noise: float | Sequence[float] = 0.0) -> None:
        self.decks = check_decks(decks)
        self.cards = DECK * self.decks
        self.noise = symbol_noise_levels(noise)
        self._scale = 1 / self.cards
        self.reward_range = (-self._scale, self._scale)
        self.observation_space = gymnasium.spaces.MultiDiscrete([2, _SUITS])
        self.action_space = gymnasium.spaces.Discrete(_SUITS)
        self.hidden_names = (*(f"suit_{i}" for i in range(self.cards)), "steps", "noise")

    def reset(self, n: int, random: Random) -> State:
        """Return the `"suits"` `[n, cards]` in their order, the `"steps"` taken, and the noise."""
        suits = deal(n, self.decks, "suits", random)
        xp = namespace(suits)
        return {
            "suits": suits,
            "steps": xp.zeros((n,), dtype=xp.int64, device=device(suits)),
            "noise": self.draw_noise(n, random),
        }

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations; draws nothing."""
        suits, noise, steps = state["suits"], state["noise"], state["steps"]
        xp = namespace(noise)
        # The last card is seen after cards - 1 steps and is asked for first.
        last = self.cards - 1
        plays = steps >= last
        right = xp.astype(action == picked(suits, last - plays * (steps - last)), noise.dtype)
        reward = self._scale * (2 * right - 1) * plays
        steps = steps + 1
        return {"suits": suits, "steps": steps, "noise": noise}, reward, steps > 2 * last

    def observe(self, state: State, random: Random) -> Array:
        """Return the mode and the suit of the card shown, `[N, 2]`."""
        suits, steps = state["suits"], state["steps"]
        xp = namespace(suits)
        shown = steps < self.cards
        suit = noisy_symbols(picked(suits, steps * shown), _SUITS, state["noise"], random)
        return columns(xp.astype(steps < self.cards - 1, xp.int64), suit * shown)

    def hidden(self, state: State) -> Array:
        """Return the suits of all cards in the order shown, the steps taken and the noise."""
        suits, steps, noise = state["suits"], state["steps"], state["noise"]
        xp = namespace(noise)
        steps = xp.astype(steps, noise.dtype)[:, None]
        return xp.concat([xp.astype(suits, noise.dtype), steps, noise[:, None]], axis=1)
