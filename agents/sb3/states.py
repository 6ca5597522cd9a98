"""The memory's states where minibatches will start, and nowhere else.

Under sb3-contrib's buffer a state is kept for every step. A minibatch reads few of them: it is a
stretch of the rollout, one environment after the other, so that a state is needed where the row
of an environment begins and where the stretch itself begins. The places of the latter are
random, but nothing keeps them from being drawn before the rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from torch import Tensor

from doxastic.agents.sb3.segments import segments

Indices = np.ndarray[Any, np.dtype[np.int64]]


class StateStore:
    """The states that the minibatches of one update start from.

    Args:
        steps: Steps `T` of a rollout. Step t of environment n has the number `n T + t`.
        num_envs: Environments `N`.
        batch_size: Steps of a minibatch.
        epochs: Passes over the rollout; each begins at a random step and goes round.
        shared: Whether policy and value have one memory.
        splits: The first steps of passes that were planned before but not made.
    """

    def __init__(
        self,
        steps: int,
        num_envs: int,
        batch_size: int,
        epochs: int,
        *,
        shared: bool,
        splits: Sequence[int] = (),
    ) -> None:
        self.steps, self.total, self.batch_size = steps, steps * num_envs, batch_size
        # The draws of sb3-contrib's buffer, made before instead of after the rollout. It makes none
        # for a pass that an early stop left out: the next update goes on with those.
        draws = [int(np.random.randint(self.total)) for _ in range(epochs - len(splits))]
        self.splits = [*splits, *draws]
        offsets = np.arange(0, self.total, batch_size)
        cuts = (np.array(self.splits, np.int64)[:, None] + offsets) % self.total
        self.places: Indices = np.union1d(cuts, np.arange(0, self.total, steps))
        self._shared = shared
        self._rows = self._rows_of_steps()
        self._stored: list[Tensor] = []

    def add(self, step: int, states: RNNStates) -> None:
        """Keep what will be needed of the states before a step, pairs of `[1, N, H]`."""
        if step not in self._rows:
            return
        pairs = (states.pi,) if self._shared else (states.pi, states.vf)
        if not self._stored:
            width = 2 * states.pi[0].shape[2]
            self._stored = [pair[0].new_zeros(len(self.places), width) for pair in pairs]
        rows = self._rows[step]
        envs = torch.from_numpy(self.places[rows] // self.steps)
        for stored, (first, second) in zip(self._stored, pairs, strict=True):
            stored[torch.from_numpy(rows)] = torch.cat((first[0, envs], second[0, envs]), 1)

    def pieces(self, begin: int, length: int) -> RNNStates:
        """Return where the memory starts in the `length` steps from number `begin` on."""
        end = begin + length
        next_row = begin - begin % self.steps + self.steps
        places = np.concatenate(([begin], np.arange(next_row, end, self.steps)))
        lengths = np.diff(places, append=end)
        rows = torch.from_numpy(np.searchsorted(self.places, places % self.total))
        pieces: list[Any] = [segments(stored[rows], lengths) for stored in self._stored]
        return RNNStates(pieces[0], pieces[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all the states that are kept."""
        return sum(stored.numel() * stored.element_size() for stored in self._stored)

    def _rows_of_steps(self) -> dict[int, Indices]:
        """Return the places that lie at each step of the rollout, where there are any."""
        times = self.places % self.steps
        order = np.argsort(times, kind="stable")
        found, first = np.unique(times[order], return_index=True)
        return dict(zip(found.tolist(), np.split(order, first[1:]), strict=True))
