"""Documents in random order, one after the other in every row, none cut and none left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from doxastic.language.batches.source import Batch, BatchSource, ragged
from doxastic.language.token_store import TokenStore


class PackedDocuments(BatchSource):
    """Rows that read document after document from one shuffled queue, and carry their state.

    A row that has read its document takes the next from the queue, which holds every document
    once per epoch, in an order of its own each time. A document that does not fit into the window
    goes on in the same row of the next batch: with the state carried, nothing is ever read without
    what came before it, no token is left out, and no place is padding.
    """

    carried = True

    def __init__(
        self,
        store: TokenStore,
        batch_size: int,
        block: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(store, batch_size, block, seed, rank, world)
        self._lengths = store.lengths
        # Where the rest of each row's document starts, and how long it is.
        self._position = np.zeros(batch_size, np.int64)
        self._left = np.zeros(batch_size, np.int64)
        self._start_epoch(0, 0)

    @property
    def epoch(self) -> int:
        """How often every document has been taken from the queue."""
        return self._epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the position: of the queue, and of every row of the global batch."""
        return super().state_dict() | {
            "epoch": self._epoch,
            "taken": self._taken,
            "position": self._position.tolist(),
            "left": self._left.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position; see `BatchSource.load_state_dict`."""
        super().load_state_dict(state)
        self._position = np.array(state["position"], np.int64)
        self._left = np.array(state["left"], np.int64)
        self._start_epoch(int(state["epoch"]), int(state["taken"]))

    def _start_epoch(self, epoch: int, taken: int) -> None:
        """Shuffle the queue of an epoch, from which documents were taken already."""
        self._epoch, self._taken = epoch, taken
        random = np.random.default_rng([self.seed, epoch])
        self._order = random.permutation(len(self._lengths))
        self._ends = self._lengths[self._order].cumsum()

    def _make(self) -> Batch:
        # Every process moves all rows on, by document; only its own are gathered, by token.
        rows = [self._fill(row) for row in range(self.batch_size)][self._rows]
        starts, lengths, opens = map(np.concatenate, zip(*rows, strict=True))
        shape = (len(rows), self.block)
        reset = np.zeros(len(rows) * self.block, bool)
        reset[(lengths.cumsum() - lengths)[opens]] = True
        return self._gather(ragged(starts, lengths).reshape(shape), reset.reshape(shape))

    def _fill(self, row: int) -> _Pieces:
        """Return the pieces of documents that fill a row's window, and move the row on."""
        used = min(int(self._left[row]), self.block)
        rest = _Pieces(self._position[[row]], np.array([used]), np.array([False]))
        self._position[row] += used
        self._left[row] -= used
        pieces, missing = [rest] if used else [], self.block - used
        while missing:
            if self._taken == len(self._order):
                self._start_epoch(self._epoch + 1, 0)
            taken = self._take(row, missing)
            pieces.append(taken)
            missing -= int(taken.lengths.sum())
        return _Pieces(*map(np.concatenate, zip(*pieces, strict=True)))

    def _take(self, row: int, missing: int) -> _Pieces:
        """Return documents from the queue for so many tokens, fewer if the epoch ends before."""
        before = self._ends[self._taken - 1] if self._taken else 0
        last = int(np.searchsorted(self._ends, before + missing))
        last = min(last, len(self._order) - 1)
        documents = self._order[self._taken : last + 1]
        starts, lengths = self._starts[documents], self._lengths[documents]
        too_long = max(int(self._ends[last] - before) - missing, 0)
        lengths[-1] -= too_long
        self._position[row] = starts[-1] + lengths[-1]
        self._left[row] = too_long
        self._taken = last + 1
        return _Pieces(starts, lengths, np.ones(len(documents), bool))


class _Pieces(NamedTuple):
    """Stretches of the store that follow each other in a row, `[P]` each."""

    starts: np.ndarray
    lengths: np.ndarray
    opens: np.ndarray
    """Whether the stretch is the beginning of its document."""
