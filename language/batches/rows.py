"""One document a row, for prompts with completions and for states that documents start from."""

from __future__ import annotations

import numpy as np
import torch

from doxastic.language.batches.source import Batch, BatchSource, ragged
from doxastic.language.token_store import TokenStore

# Batches whose documents are sorted together. Of log-normal lengths of deviation 1, in rows of 32,
# 19% of the places are padding then; 38% with 16, 82% unsorted. Sorting the whole corpus would put
# the same documents together every epoch.
POOL = 64


class DocumentRows(BatchSource):
    """Rows of one document from its first token on, each from a fresh state.

    Documents come in epochs of an order of their own, each document once. So that little is
    padding, a pool of them is sorted by length and parted into batches, which then come in random
    order; an epoch is exact but for the pools that it shares with its neighbours. Rows are padded
    on the right with targets that do not count, as far as the longest row of the global batch
    goes. A document longer than `block` loses its end.

    Raises:
        ValueError: If no target that counts is left.
    """

    cut_documents: int
    """How many documents of the corpus are longer than `block`."""

    cut_tokens: int
    """How many tokens that leaves out."""

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
        too_long = (store.lengths - block).clip(min=0)
        self.cut_documents = int((too_long > 0).sum())
        self.cut_tokens = int(too_long.sum())
        self._lengths = np.minimum(store.lengths, block)
        if not self._has_targets(too_long > 0):
            raise ValueError(
                f"no target counts in the first block = {block} tokens of any document, and the "
                f"rest is cut off; choose a longer block (--data.block): with "
                f"{store.lengths.max()} no document is cut."
            )
        # A pool is not longer than an epoch, or the same document would be in it many times.
        self._pool_batches = min(max(len(self._lengths) // batch_size, 1), POOL)
        self._pool, self._pooled = -1, np.zeros((0, batch_size), np.int64)
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    @property
    def epoch(self) -> int:
        """How often every document has been read."""
        return self._batches * self.batch_size // len(self._lengths)

    def _has_targets(self, is_cut: np.ndarray) -> bool:
        """Return whether any target in the rows counts, for documents `[D]` that are cut or not."""
        # The end of a document always does, but that of an open last one.
        if not is_cut[:-1].all() or (self.store.closed and not is_cut[-1]):
            return True
        if self._mask is None:
            return bool(is_cut.any() or self._lengths[-1] > 1)
        first = self._starts + 1
        ranges = zip(first, first + self._lengths, strict=True)
        return any(self._mask[start:end].any() for start, end in ranges)

    def _make(self) -> Batch:
        pool, number = divmod(self._batches, self._pool_batches)
        if pool != self._pool:
            self._pool, self._pooled = pool, self._fill_pool(pool)
        documents = self._pooled[number]
        width = int(self._lengths[documents].max())
        documents = documents[self._rows]
        starts, lengths = self._starts[documents], self._lengths[documents]
        real = np.arange(width) < lengths[:, None]
        index = np.repeat(starts[:, None], width, axis=1)
        index[real] = ragged(starts, lengths)
        batch = self._gather(index, np.zeros(real.shape, bool))
        padding = torch.from_numpy(~real)
        batch.tokens[padding] = batch.targets[padding] = self.store.end_of_document
        batch.mask[padding] = False
        return batch

    def _fill_pool(self, pool: int) -> np.ndarray:
        """Return the documents of each batch of a pool, `[batches, B]`."""
        size = self._pool_batches * self.batch_size
        epochs, places = divmod(np.arange(pool * size, (pool + 1) * size), len(self._lengths))
        parts = [self._shuffled(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs)]
        drawn = np.concatenate(parts)
        documents = drawn[np.argsort(self._lengths[drawn], kind="stable")]
        random = np.random.default_rng([self.seed, pool, 1])
        return random.permutation(documents.reshape(self._pool_batches, self.batch_size))

    def _shuffled(self, epoch: int) -> np.ndarray:
        """Return the order of the documents in an epoch; the last one asked for is kept."""
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, int(epoch)])
            self._epoch, self._order = epoch, random.permutation(len(self._lengths))
        return self._order
