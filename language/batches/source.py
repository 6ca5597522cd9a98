"""What a batch is, and what everything that makes batches has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from doxastic.language.token_store import TokenStore


class Batch(NamedTuple):
    """Tokens to read and what follows each of them, `[B, T]`; rows are independent."""

    tokens: Tensor
    """int64."""

    targets: Tensor
    """int64: the next token of the document, at its end the token that ends documents."""

    reset: Tensor
    """bool: a document starts here, and the row's state held another one."""

    mask: Tensor
    """bool: the target counts."""

    carried: bool
    """Whether every row goes on where that row of the last batch ended: start from the state
    after it, which the first batch of a run does not have, else from a fresh one."""


class BatchSource(ABC):
    """An endless sequence of batches, the same for every number of processes.

    The global batch has `batch_size` rows; the process `rank` of `world` gets the rows
    `rank::world`. No token loses its document's beginning but where a class says so, and none
    reads another document: states are reset in between, and targets end with the document.

    Args:
        store: The corpus.
        batch_size: Rows of the global batch `B`, a multiple of `world`.
        block: Tokens per row `T`.
        seed: Decides every random choice, together with the position.
        rank: Number of this process, from 0.
        world: Number of processes.
    """

    carried: bool = False
    """Whether batches continue each other."""

    def __init__(
        self,
        store: TokenStore,
        batch_size: int,
        block: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if min(batch_size, block, world) < 1 or seed < 0 or not 0 <= rank < world:
            raise ValueError(
                f"batch_size is {batch_size}, block {block}, seed {seed}, rank {rank} of {world}; "
                "expected sizes from 1, a seed from 0 and a rank below the number of processes."
            )
        if batch_size % world:
            raise ValueError(
                f"batch_size is {batch_size} for {world} processes; expected a multiple, as each "
                f"gets equally many rows: {batch_size + world - batch_size % world} for instance."
            )
        self.store = store
        self.batch_size = batch_size
        self.block = block
        self.seed = seed
        self._batches = 0
        self._rows = slice(rank, None, world)
        # As plain arrays; an index into a memmap costs microseconds more.
        self._tokens = np.asarray(store.tokens)
        self._mask = None if store.mask is None else np.asarray(store.mask)
        self._starts = np.asarray(store.documents)

    @property
    def tokens_per_batch(self) -> int:
        """Tokens of a global batch, the most there can be."""
        return self.batch_size * self.block

    @property
    @abstractmethod
    def epoch(self) -> int:
        """How often the whole corpus has been read."""

    def next_batch(self) -> Batch:
        """Return this process's rows of the next batch."""
        batch = self._make()
        self._batches += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position, as JSON can hold it, and what it is a position in."""
        return {**self._settings(), "batches": self._batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to a position, from where the same batches follow, bit for bit.

        The number of processes may be another one.

        Raises:
            ValueError: If it is a position in another corpus, or under other settings.
        """
        for name, value in self._settings().items():
            if state.get(name) != value:
                raise ValueError(
                    f"the position in the corpus was saved with {name} = {state.get(name)!r}; "
                    f"here it is {value!r}. Continue with the corpus and the settings of that run."
                )
        self._batches = int(state["batches"])

    @abstractmethod
    def _make(self) -> Batch:
        """Return this process's rows of batch number `_batches`."""

    def _settings(self) -> dict[str, Any]:
        return {
            "source": type(self).__name__,
            "store": self.store.identity,
            "batch_size": self.batch_size,
            "block": self.block,
            "seed": self.seed,
        }

    def _gather(self, index: np.ndarray, reset: np.ndarray) -> Batch:
        """Return the tokens at positions of the store, int64 `[B, T]`, and what follows them."""
        following = index + 1
        # A document is followed by the token that opens the next one, the last one by nothing.
        ends = following == len(self._tokens)
        following[ends] = 0
        tokens, targets = self._tokens[index], self._tokens[following]
        targets[ends] = self.store.end_of_document
        mask = np.ones(index.shape, bool) if self._mask is None else self._mask[following]
        mask[ends] = self.store.closed
        return Batch(
            _int64(tokens),
            _int64(targets),
            torch.from_numpy(reset),
            torch.from_numpy(mask),
            self.carried,
        )


def ragged(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the ranges `start, ..., start + length - 1`, one after the other, int64 `[N]`."""
    before = lengths.cumsum() - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


def _int64(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int64))
