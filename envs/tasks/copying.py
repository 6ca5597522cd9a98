"""Marked symbols among distractors, to be repeated in order."""

from __future__ import annotations

from collections.abc import Sequence

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
from doxastic.envs.checks import whole
from doxastic.envs.tasks.cards import shuffled
from doxastic.envs.tasks.symbols import noisy_symbols, symbol_noise_levels

DISTRACTOR, MARKED, RECALL = 0, 1, 2


class Copy(BatchedPOMDP):
    """Remember the marked symbols of a sequence and repeat them in order.

    ## Description
    A sequence of random symbols is shown, some of them marked, the others distractors that look
    the same but for the mark. Then the marked ones are asked for, in the order in which they came.
    Where they stand is random, so that a memory has to decide at every step what to keep: the
    copying task with distractors in place of blanks (Hochreiter and Schmidhuber, "Long Short-Term
    Memory", 1997, has the idea of distractors; Gu and Dao, "Mamba", 2023, this form, there called
    selective copying).

    ## Action Space
    `Discrete(symbols)`: a symbol; of no effect while the sequence is shown.

    ## Observation Space
    `MultiDiscrete([3, symbols])`: the mark (0 a distractor, 1 to be remembered, 2 an answer is
    due) and the symbol; 0 where an answer is due. With probability `noise` the symbol, but never
    the mark, is replaced by a uniformly drawn one.

    ## Rewards
    `1 / length` for every right answer and the negative for a wrong one; 0 before. The best return
    without noise is 1; with noise nu it is `1 - 2 nu (1 - 1 / symbols)`, from repeating what was
    seen, whatever is known of nu.

    ## Starting State
    Symbols are uniform and independent, the places of the marked ones a uniform choice; the noise
    level is uniform over `noise`.

    ## Episode End
    Terminates with the last answer, after `2 length + distractors` steps.

    ## Arguments
    length: Marked symbols.
    distractors: Distractors among them.
    symbols: How many symbols there are, at least 2.
    noise: Probability that a symbol is replaced by a uniformly drawn one, or several, one drawn
        for each episode.

    Raises:
        ValueError: If an argument is outside its range.
    """

    max_episode_steps = None

    def __init__(
        self,
        *,
        length: int = 5,
        distractors: int = 20,
        symbols: int = 8,
        noise: float | Sequence[float] = 0.0,
    ) -> None:
        self.length = whole("length", length, 1)
        self.distractors = whole("distractors", distractors, 0)
        self.symbols = whole("symbols", symbols, 2)
        self.noise = symbol_noise_levels(noise)
        self._shown, self._scale = self.length + self.distractors, 1 / self.length
        self.reward_range = (-self._scale, self._scale)
        self.observation_space = gymnasium.spaces.MultiDiscrete([3, self.symbols])
        self.action_space = gymnasium.spaces.Discrete(self.symbols)
        targets = (f"target_{i}" for i in range(self.length))
        self.hidden_names = (*targets, "mark", "symbol", "answers_given", "noise")

    def reset(self, n: int, random: Random) -> State:
        """Return `"marks"` and `"symbols"` `[n, T]`, the `"targets"`, `"steps"` and the noise."""
        place = shuffled(n, self._shown, random)[:, : self.length]
        u = random.uniform((n, self._shown))
        xp = namespace(u)
        symbols = xp.astype(u * self.symbols, xp.int64)
        place = xp.sort(place, axis=1)
        marks = xp.any(place[:, :, None] == indices(self._shown, u), axis=1)
        blank = xp.zeros((n, self.length), dtype=xp.int64, device=device(u))
        return {
            "marks": xp.concat([xp.astype(marks, xp.int64), blank + RECALL], axis=1),
            "symbols": xp.concat([symbols, blank], axis=1),
            "targets": xp.take_along_axis(symbols, place, axis=1),
            "steps": xp.zeros((n,), dtype=xp.int64, device=device(u)),
            "noise": self.draw_noise(n, random),
        }

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations; draws nothing."""
        steps, noise = state["steps"], state["noise"]
        xp = namespace(noise)
        asked = steps - self._shown
        is_due = asked >= 0
        right = xp.astype(action == picked(state["targets"], asked * is_due), noise.dtype)
        reward = self._scale * (2 * right - 1) * is_due
        return {**state, "steps": steps + 1}, reward, asked >= self.length - 1

    def observe(self, state: State, random: Random) -> Array:
        """Return the mark and the symbol shown, `[N, 2]`."""
        mark, symbol = self._present(state)
        noisy = noisy_symbols(symbol, self.symbols, state["noise"], random)
        return columns(mark, noisy * (mark != RECALL))

    def hidden(self, state: State) -> Array:
        """Return the targets, the mark and symbol shown, the answers given and the noise level."""
        noise = state["noise"]
        xp = namespace(noise)
        answers = state["steps"] - self._shown
        shown = columns(*self._present(state), answers * (answers > 0))
        entries = [xp.astype(x, noise.dtype) for x in (state["targets"], shown)]
        return xp.concat([*entries, noise[:, None]], axis=1)

    def _present(self, state: State) -> tuple[Array, Array]:
        """Return the mark and the symbol without noise; the last ones after the end."""
        steps = state["steps"]
        now = steps - 1 * (steps == self._shown + self.length)
        return picked(state["marks"], now), picked(state["symbols"], now)
