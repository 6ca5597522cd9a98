"""Cards are dealt; whether the next has a higher or a lower rank is to be guessed."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium
from array_api_compat import device

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, indices, namespace, picked
from doxastic.envs.tasks.cards import DECK, KINDS, check_decks, deal
from doxastic.envs.tasks.symbols import noisy_symbols, symbol_noise_levels

_RANKS = KINDS["ranks"]

HIGHER, LOWER = 0, 1


class HigherLower(BatchedPOMDP):
    """Guess whether the next card has a higher or a lower rank.

    ## Description
    The cards of one or more shuffled decks are dealt one by one; only their rank is seen. Without
    memory one guesses from the present rank alone; counting the cards tells what is left.
    Observation, reward and termination are those of POPGym's HigherLower
    (`popgym/envs/higher_lower.py`, version 1.0) for the same order of the cards.

    ## Action Space
    `Discrete(2)`: 0 guesses higher, 1 guesses lower.

    ## Observation Space
    `Discrete(13)`: the rank of the card just dealt, from ace to king; with probability `noise` a
    uniformly drawn one instead.

    ## Rewards
    `1 / (52 decks)` for a right guess, the negative for a wrong one, 0 if the ranks are equal. The
    best return without noise is that of counting the cards, .528, .516 and .511 with 1, 2 and 3
    decks (`doxastic.envs.references.games.higher_lower_value`).

    ## Starting State
    The decks are shuffled and one card has been dealt; the noise level is uniform over `noise`.

    ## Episode End
    Terminates when the last card has been dealt, after `52 decks - 1` steps.

    ## Arguments
    decks: Number of decks; 1, 2 and 3 are POPGym's Easy, Medium and Hard.
    noise: Probability that a rank is replaced by a uniformly drawn one, or several, one drawn for
        each episode.

    Raises:
        ValueError: If an argument is outside its range.
    """

    max_episode_steps = None
    hidden_names = (*(f"left_{rank}" for rank in range(_RANKS)), "rank", "noise")

    def __init__(self, *, decks: int = 1, noise: float | Sequence[float] = 0.0) -> None:
        self.decks = check_decks(decks)
        self.cards = DECK * self.decks
        self.noise = symbol_noise_levels(noise)
        self._scale = 1 / self.cards
        self.reward_range = (-self._scale, self._scale)
        self.observation_space = gymnasium.spaces.Discrete(_RANKS)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, n: int, random: Random) -> State:
        """Return the `"ranks"` `[n, cards]` in their order, how many are `"dealt"`, and noise."""
        ranks = deal(n, self.decks, "ranks", random)
        xp = namespace(ranks)
        return {
            "ranks": ranks,
            "dealt": xp.ones((n,), dtype=xp.int64, device=device(ranks)),
            "noise": self.draw_noise(n, random),
        }

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations; draws nothing."""
        ranks, dealt, noise = state["ranks"], state["dealt"], state["noise"]
        xp = namespace(noise)
        # 1 where the next card is higher, -1 where it is lower; 1 - 2 action is what was guessed.
        change = xp.sign(picked(ranks, dealt) - picked(ranks, dealt - 1))
        reward = self._scale * xp.astype(change * (1 - 2 * action), noise.dtype)
        dealt = dealt + 1
        return {"ranks": ranks, "dealt": dealt, "noise": noise}, reward, dealt >= self.cards

    def observe(self, state: State, random: Random) -> Array:
        """Return the rank of the card dealt last, `[N]`."""
        rank = picked(state["ranks"], state["dealt"] - 1)
        return noisy_symbols(rank, _RANKS, state["noise"], random)

    def hidden(self, state: State) -> Array:
        """Return how many cards of each rank are left, the present rank and the noise level."""
        ranks, dealt, noise = state["ranks"], state["dealt"], state["noise"]
        xp = namespace(noise)
        is_left = indices(self.cards, ranks) >= dealt[:, None]
        is_rank = ranks[:, :, None] == indices(_RANKS, ranks)
        left = xp.sum(xp.astype(is_rank & is_left[:, :, None], noise.dtype), axis=1)
        rank = xp.astype(picked(ranks, dealt - 1), noise.dtype)
        return xp.concat([left, rank[:, None], noise[:, None]], axis=1)
