"""Mines lie hidden under a board; all other squares are to be uncovered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import gymnasium
from array_api_compat import device

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, namespace, picked, replaced
from doxastic.envs.checks import whole
from doxastic.envs.tasks.cards import shuffled
from doxastic.envs.tasks.symbols import noisy_symbols, symbol_noise_levels


class _Variant(NamedTuple):
    size: int
    mines: int


VARIANTS: dict[str, _Variant] = {
    "easy": _Variant(4, 2),
    "medium": _Variant(6, 6),
    "hard": _Variant(8, 10),
}


class MineSweeper(BatchedPOMDP):
    """Uncover all squares without a mine on a board that is never shown.

    ## Description
    The agent names a square and is told how many mines lie on it and around it. That asks for
    which squares were uncovered with what number, and for the inference of where mines can be: the
    observation does not say which square it belongs to, so keep the previous action in it.
    Observation, reward, termination and truncation are those of POPGym's MineSweeper
    (`popgym/envs/minesweeper.py`, version 1.0) for the same mines.

    ## Action Space
    `MultiDiscrete([size, size])`: row and column of the square to uncover.

    ## Observation Space
    `Discrete(min(mines + 1, 10))`: the number of mines among the nine squares around and under the
    one just named, 0 at the start; with probability `noise` a uniformly drawn number instead.

    ## Rewards
    With S the squares without a mine: `1 / S` for uncovering one of them, `-0.5 / (S - 2)` for one
    that was uncovered before, and `-0.5 - 1 / S` for a mine. Uncovering all without a mistake
    returns 1, which no agent does always: the first squares are guesses. The best return is not
    known.

    ## Starting State
    Mines lie under a uniform choice of squares; the noise level is uniform over `noise`.

    ## Episode End
    Terminates with a mine, or when all squares without one are uncovered; is truncated after S
    steps.

    ## Arguments
    variant: "easy" (size 4, 2 mines), "medium" (6, 6) or "hard" (8, 10), POPGym's three: defaults
        of the next two arguments.
    size: Squares along each side of the board.
    mines: Number of mines, such that at least 3 squares have none.
    noise: Probability that the number is replaced by a uniformly drawn one, or several, one drawn
        for each episode.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        *,
        variant: Literal["easy", "medium", "hard"] = "easy",
        size: int | None = None,
        mines: int | None = None,
        noise: float | Sequence[float] = 0.0,
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; expected one of {list(VARIANTS)}.")
        default = VARIANTS[variant]
        self.size = whole("size", default.size if size is None else size, 2, "squares")
        self.mines = whole("mines", default.mines if mines is None else mines)
        self.squares = self.size**2
        if not 1 <= self.mines <= self.squares - 3:
            raise ValueError(f"mines is {self.mines}; expected 1 to {self.squares - 3} of them.")
        self.noise = symbol_noise_levels(noise)
        safe = self.max_episode_steps = self.squares - self.mines
        self._safe, self._again, self._mine = 1 / safe, -0.5 / (safe - 2), -0.5 - 1 / safe
        self.reward_range = (min(self._mine, self._again), self._safe)
        self.numbers = min(self.mines + 1, 10)
        self.observation_space = gymnasium.spaces.Discrete(self.numbers)
        self.action_space = gymnasium.spaces.MultiDiscrete([self.size, self.size])
        squares = [f"{i}_{j}" for i in range(self.size) for j in range(self.size)]
        mine, seen = ([f"{name}_{square}" for square in squares] for name in ("mine", "uncovered"))
        self.hidden_names = (*mine, *seen, "number", "noise")

    def reset(self, n: int, random: Random) -> State:
        """Return `n` boards.

        Where a `"mine"` lies, how many lie `"around"` each square, which squares are
        `"uncovered"`, each `[n, size * size]`; how many squares are `"left"` to uncover, the
        `"number"` that was found last, and the noise.
        """
        # A square has a mine if its place in a random order is among the first.
        mine = shuffled(n, self.squares, random) < self.mines
        noise = self.draw_noise(n, random)
        xp, where = namespace(noise), device(noise)
        neighbors = _neighbors(self.size, xp, noise.dtype, where)
        return {
            "mine": mine,
            "around": xp.astype(xp.astype(mine, noise.dtype) @ neighbors, xp.int8),
            "uncovered": xp.zeros((n, self.squares), dtype=xp.bool, device=where),
            "left": xp.full((n,), self.squares - self.mines, dtype=xp.int64, device=where),
            "number": xp.zeros((n,), dtype=xp.int8, device=where),
            "noise": noise,
        }

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations; draws nothing."""
        mine, uncovered, noise = state["mine"], state["uncovered"], state["noise"]
        xp = namespace(noise)
        square = action[:, 0] * self.size + action[:, 1]
        # A mine is never uncovered: it ends the episode.
        on_mine, again = picked(mine, square), picked(uncovered, square)
        fresh = ~(on_mine | again)
        left = state["left"] - 1 * fresh
        one = xp.ones_like(noise)
        reward = self._safe * one * fresh + self._again * one * again + self._mine * one * on_mine
        after = {
            **state,
            "uncovered": replaced(uncovered, square, ~on_mine),
            "left": left,
            "number": picked(state["around"], square),
        }
        return after, reward, on_mine | (left == 0)

    def observe(self, state: State, random: Random) -> Array:
        """Return the number found last, `[N]`."""
        return noisy_symbols(state["number"], self.numbers, state["noise"], random)

    def hidden(self, state: State) -> Array:
        """Return where the mines are, what is uncovered, the last number and the noise level."""
        noise = state["noise"]
        xp = namespace(noise)
        entries = [state["mine"], state["uncovered"], state["number"][:, None], noise[:, None]]
        return xp.concat([xp.astype(x, noise.dtype) for x in entries], axis=1)


@lru_cache(maxsize=64)
def _neighbors(size: int, xp: Any, dtype: Any, where: Any) -> Array:
    """Return which squares lie around or under each square, 0 or 1, `[squares, squares]`."""
    squares = [(i, j) for i in range(size) for j in range(size)]
    values = [[float(abs(i - k) <= 1 and abs(j - m) <= 1) for k, m in squares] for i, j in squares]
    return xp.asarray(values, dtype=dtype, device=where)
