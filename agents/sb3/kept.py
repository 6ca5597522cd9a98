"""The memory's states of a rollout, kept beside the memory; the algorithm carries handles of them.

sb3-contrib's buffer has four arrays for what the algorithm carries, and copies them from step to
step, for the update and for every minibatch. An LSTM's state has a hundred numbers, a matrix state
more than a thousand.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Pair = tuple[Tensor, ...]

# float32, in which handles are stored, counts to 2^24 without a gap.
_LAST_NUMBER = 2**24 - 1


class KeptStates:
    """The states after the steps of a rollout, by the numbers of the steps.

    The handle of a state is the number of its step and its row there; a batch of handles is a pair
    of tensors `[1, B, 1]`, which can be cut, joined and copied as the states themselves can. Step
    0 is before all others: its state is the initial one.

    Attributes:
        number: Number of the last step.
    """

    def __init__(self) -> None:
        self.number = 0
        self._states: dict[float, Tensor] = {}
        self._is_over = False
        self._evaluated = 0.0

    def keep(self, state: Tensor, before: Pair) -> Pair:
        """Return the handles of the states `[B, S]` after a step.

        Args:
            state: The states.
            before: The handles of the states before the step. Of a rollout that is over, these stay
                and all after the last one that was evaluated: with one of them its algorithm goes
                on, whoever else takes steps meanwhile.
        """
        if self._is_over:
            needed = {*before[0].flatten().tolist(), self.number}
            age = self._age(self._evaluated)
            self._states = {
                n: kept for n, kept in self._states.items() if n in needed or self._age(n) < age
            }
            self._evaluated, self._is_over = self.number, False
        self.number = self.number % _LAST_NUMBER + 1
        self._states[self.number] = state.detach()
        rows = torch.arange(len(state), dtype=torch.float32).view(1, -1, 1)
        return torch.full_like(rows, self.number), rows

    def find(self, handles: Pair, initial: Callable[[int], Tensor]) -> Tensor:
        """Return the states `[B, S]` of handles.

        Args:
            handles: The handles.
            initial: Returns the initial states of a batch of some size.

        Raises:
            ValueError: If one is not kept.
        """
        numbers, rows = (part.flatten().tolist() for part in handles)
        whole = self._states.get(numbers[0])
        # As `keep` returned them, which is so at every step of a rollout.
        if (
            whole is not None
            and rows == list(range(len(whole)))
            and numbers.count(numbers[0]) == len(numbers)
        ):
            return whole
        pairs = zip(numbers, rows, strict=True)
        return torch.cat([self._row(n, int(row)) if n else initial(1) for n, row in pairs])

    def end_rollout(self, evaluated: Tensor | None) -> None:
        """Forget the states of this rollout when the next one takes its first step.

        Args:
            evaluated: Numbers of the handles that a minibatch starts from; the rollout went on
                after all of them. None if it has no handles, and its algorithm needs none.
        """
        numbers = [self.number] if evaluated is None else evaluated.flatten().tolist()
        self._evaluated = min({*numbers, self._evaluated}, key=self._age)
        self._is_over = True

    @property
    def nbytes(self) -> int:
        """Bytes of all the states that are kept."""
        return sum(state.numel() * state.element_size() for state in self._states.values())

    def _age(self, number: float) -> float:
        """Return how many steps were taken since that of a number."""
        return (self.number - number) % _LAST_NUMBER if number else _LAST_NUMBER

    def _row(self, number: float, row: int) -> Tensor:
        state = self._states.get(number)
        if state is None or not 0 <= row < len(state):
            raise ValueError(
                f"the state of row {row} after step {number:.0f} is not kept: this policy did not "
                "take that step, or was trained and took another since. Evaluate a rollout before "
                "the next begins; carry states from `predict`, which are whole, to keep them."
            )
        return state[row : row + 1]
