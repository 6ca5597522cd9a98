"""Cards are dealt; how often a queried one has come up is asked for at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import gymnasium
from array_api_compat import device

from doxastic.envs.batched import (
    Array,
    BatchedPOMDP,
    Random,
    State,
    columns,
    indices,
    namespace,
    picked,
)
from doxastic.envs.tasks.cards import DECK, KINDS, check_decks, deal
from doxastic.envs.tasks.symbols import noisy_symbols, symbol_noise_levels

Kind = Literal["colors", "suits", "ranks"]


class _Variant(NamedTuple):
    decks: int
    kind: Kind


VARIANTS: dict[str, _Variant] = {
    "easy": _Variant(1, "colors"),
    "medium": _Variant(2, "suits"),
    "hard": _Variant(4, "ranks"),
}


class CountRecall(BatchedPOMDP):
    """Say how often a queried kind of card has been dealt so far.

    ## Description
    At every step one card is dealt from a shuffled pile, and another from a second pile like it
    says which kind of card is asked for. The action is to be the number of cards of that kind
    dealt so far, the present one included. That asks for one counter per kind, in whatever order
    they came. Observation, reward and termination are those of POPGym's CountRecall
    (`popgym/envs/count_recall.py`, version 1.0) for the same order of the cards.

    ## Action Space
    `Discrete(52 decks / kinds + 1)`: the count.

    ## Observation Space
    `MultiDiscrete([kinds, kinds])`: the kind of the card dealt and the kind asked for; there are 2
    colors, 4 suits and 13 ranks. With probability `noise` the kind of the card dealt, but never the
    question, is replaced by a uniformly drawn one.

    ## Rewards
    `1 / (52 decks - 1)` for the right count and the negative for a wrong one. The best return
    without noise is 1.

    ## Starting State
    Both piles are shuffled and one card of each has been dealt; the noise level is uniform over
    `noise`.

    ## Episode End
    Terminates when the last card has been dealt, after `52 decks - 1` steps.

    ## Arguments
    variant: "easy" (1 deck, "colors"), "medium" (2, "suits") or "hard" (4, "ranks"), POPGym's
        three: defaults of the next two arguments.
    decks: Number of decks in each pile.
    kind: What is counted: "colors", "suits" or "ranks".
    noise: Probability that the kind dealt is replaced by a uniformly drawn one, or several, one
        drawn for each episode.

    Raises:
        ValueError: If an argument is outside its range.
    """

    max_episode_steps = None

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
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; expected one of {list(KINDS)}.")
        self.cards, self.kinds = DECK * self.decks, KINDS[self.kind]
        self.noise = symbol_noise_levels(noise)
        self._scale = 1 / (self.cards - 1)
        self.reward_range = (-self._scale, self._scale)
        self.observation_space = gymnasium.spaces.MultiDiscrete([self.kinds, self.kinds])
        self.action_space = gymnasium.spaces.Discrete(self.cards // self.kinds + 1)
        counts = (f"count_{i}" for i in range(self.kinds))
        self.hidden_names = (*counts, "dealt_kind", "queried_kind", "noise")

    def reset(self, n: int, random: Random) -> State:
        """Return the two piles `[n, cards]`, how many are `"dealt"`, the `"counts"`, and noise."""
        values = deal(n, self.decks, self.kind, random)
        queries = deal(n, self.decks, self.kind, random)
        xp = namespace(values)
        return {
            "values": values,
            "queries": queries,
            "dealt": xp.ones((n,), dtype=xp.int64, device=device(values)),
            "counts": self._one_hot(values[:, 0]),
            "noise": self.draw_noise(n, random),
        }

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations; draws nothing."""
        values, queries, noise = state["values"], state["queries"], state["noise"]
        xp = namespace(noise)
        dealt, counts = state["dealt"], state["counts"]
        queried = xp.astype(picked(queries, dealt - 1), xp.int64)
        right = xp.astype(action == picked(counts, queried), noise.dtype)
        counts = counts + self._one_hot(picked(values, dealt))
        after = {**state, "dealt": dealt + 1, "counts": counts}
        return after, self._scale * (2 * right - 1), dealt + 1 >= self.cards

    def observe(self, state: State, random: Random) -> Array:
        """Return the kind of the card dealt last and the kind asked for, `[N, 2]`."""
        last = state["dealt"] - 1
        value, query = picked(state["values"], last), picked(state["queries"], last)
        xp = namespace(value)
        value = noisy_symbols(value, self.kinds, state["noise"], random)
        return columns(value, xp.astype(query, xp.int64))

    def hidden(self, state: State) -> Array:
        """Return the counts, the kind dealt last, the kind asked for and the noise level."""
        noise, last = state["noise"], state["dealt"] - 1
        xp = namespace(noise)
        kinds = [picked(state[pile], last)[:, None] for pile in ("values", "queries")]
        entries = [xp.astype(x, noise.dtype) for x in (state["counts"], *kinds)]
        return xp.concat([*entries, noise[:, None]], axis=1)

    def _one_hot(self, kind: Array) -> Array:
        xp = namespace(kind)
        return xp.astype(kind[:, None] == indices(self.kinds, kind), xp.int64)
