"""Windows over the corpus in the order in which it stands: anywhere, or one after the other."""

from __future__ import annotations

import numpy as np

from doxastic.language.batches.source import Batch, BatchSource, ragged
from doxastic.language.token_store import TokenStore


class RandomWindows(BatchSource):
    """Windows at offsets drawn uniformly, with replacement, each from a fresh state.

    The protocol of nanoGPT, but that documents do not leak into each other. A document that a
    window meets in its middle is read without its beginning, as there.

    Raises:
        ValueError: If the corpus has no more tokens than a window.
    """

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
        if len(store) <= block:
            raise ValueError(
                f"the corpus has {len(store)} tokens; a window of block = {block} tokens and their "
                "targets needs at least one more. Choose a shorter block, or packed documents."
            )

    @property
    def epoch(self) -> int:
        """How often as many tokens were drawn as the corpus has."""
        return self._batches * self.tokens_per_batch // len(self.store)

    def _make(self) -> Batch:
        random = np.random.default_rng([self.seed, self._batches])
        first = random.integers(0, len(self.store) - self.block, self.batch_size)[self._rows]
        reset = np.zeros((len(first), self.block), bool)
        mark_starts(reset, first, self._starts)
        reset[:, 0] = False
        return self._gather(first[:, None] + np.arange(self.block), reset)


class Streams(BatchSource):
    """`B` readers that start evenly spaced and read on for ever, from the end on at the start.

    States are carried from batch to batch: the context is all of a document that came before,
    however long it is. Only in the very first batch do readers start within documents. While
    each moves `N / B` tokens on, together they read the whole corpus of `N` tokens once. Nothing
    is random; `seed` is taken for the sake of uniformity.
    """

    carried = True

    @property
    def epoch(self) -> int:
        """How often the whole corpus has been read."""
        return self._batches * self.tokens_per_batch // len(self.store)

    def _make(self) -> Batch:
        count = len(self.store)
        spaced = np.arange(self.batch_size)[self._rows] * count // self.batch_size
        first = (spaced + self._batches * self.block) % count
        reset = np.zeros((len(first), self.block), bool)
        for lap in range(0, count + self.block, count):
            mark_starts(reset, first - lap, self._starts)
        return self._gather((first[:, None] + np.arange(self.block)) % count, reset)


def mark_starts(reset: np.ndarray, first: np.ndarray, starts: np.ndarray) -> None:
    """Set where documents start in windows over the corpus.

    Args:
        reset: `[B, T]` bool, changed in place.
        first: Where each window begins, `[B]`; before 0, or behind the end, nothing starts.
        starts: Where documents start, ascending.
    """
    low, high = np.searchsorted(starts, [first, first + reset.shape[1]])
    rows = np.repeat(np.arange(len(first)), high - low)
    reset[rows, starts[ragged(low, high - low)] - first[rows]] = True
