"""States of prompts that were read already: a prompt that begins like one of them goes on there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from doxastic.language.model import LanguageModel
from doxastic.language.prefill import prefill
from doxastic.language.state_files import load_state, save_state
from doxastic.memory.state import CoreState

SHARED_TOKENS = 16
"""Tokens that two prompts share beyond what is known already, for their last common state to be
kept: below, reading them again is cheaper than the memory."""

# What a file holds beside the states.
_EXTRA = {"prompts.tokens", "prompts.lengths", "prompts.features"}


class _Entry(NamedTuple):
    """What is known after a prompt."""

    tokens: np.ndarray
    """Its ids `[T]`."""

    features: Tensor
    """What the head reads after it, `[1, C]`."""

    state: CoreState
    """The state after it, one row."""

    @property
    def size_bytes(self) -> int:
        tensors = (self.features, self.state.flat)
        return self.tokens.nbytes + sum(t.numel() * t.element_size() for t in tensors)


class PromptCache:
    """Keeps the states after prompts, and where prompts part, the least recently used go first.

    A recurrent state cannot be cut back, so a prompt goes on from the longest known one that it
    begins with. Where a prompt only shares a beginning with a known one, the state at the fork is
    kept as well: the third prompt with that beginning finds it. States are never written to, so
    every prompt forks from them freely.

    Args:
        model: Whose states are kept. Once its weights change nothing is found any more.
        max_bytes: What the entries may take.

    Example:
        >>> cache = PromptCache(model)
        >>> generate(model, tokenizer, [rules + question for question in questions], cache=cache)
    """

    def __init__(self, model: LanguageModel, max_bytes: int = 1 << 30) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}; expected 1 or more.")
        self.model, self._max_bytes = model, max_bytes
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._versions = _versions(model)
        self.tokens_read = 0
        """Tokens that had to be read."""
        self.tokens_found = 0
        """Tokens that did not."""

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """What the entries take."""
        return sum(entry.size_bytes for entry in self._entries.values())

    def clear(self) -> None:
        """Forget all entries."""
        self._entries.clear()

    def prefill(self, sequences: Sequence[np.ndarray]) -> tuple[Tensor, CoreState]:
        """Return what `prefill` returns, reading only what is not known, and keep the states.

        The sequences are read one after the other, so that each finds what the ones before it
        left: equal ones are read once.

        Args:
            sequences: Token ids of each row, from the zero state.
        """
        if (versions := _versions(self.model)) != self._versions:
            self.clear()
            self._versions = versions
        entries = [self._entry(np.asarray(sequence, np.int64)) for sequence in sequences]
        flat = torch.cat([entry.state.flat for entry in entries])
        features = torch.cat([entry.features for entry in entries])
        return features, CoreState(self.model.layout, flat)

    def save(self, path: str | Path) -> None:
        """Write the entries and the model's identity to one safetensors file.

        Raises:
            ValueError: There are no entries.
        """
        entries = list(self._entries.values())
        if not entries:
            raise ValueError("the prompt cache is empty; there is nothing to save.")
        extra = {
            "prompts.tokens": torch.from_numpy(np.concatenate([e.tokens for e in entries])),
            "prompts.lengths": torch.tensor([len(e.tokens) for e in entries]),
            "prompts.features": torch.cat([e.features for e in entries]).cpu(),
        }
        flat = torch.cat([entry.state.flat for entry in entries])
        save_state(
            path, CoreState(self.model.layout, flat), self.model, kind="prompts", extra=extra
        )

    def load(self, path: str | Path) -> None:
        """Add the entries of a file, its last one as the most recently used.

        The model may have been in another precision when it read the prompts; its identity and
        the states, float32 always, are the same.

        Raises:
            ValueError: The file is damaged, holds no prompts, or another model's.
        """
        state, extra, kind = load_state(path, self.model)
        if kind != "prompts":
            raise ValueError(
                f"{path} holds a state of the kind {kind!r}; expected a saved prompt cache."
            )
        _check_parts(extra, state.batch_size, self.model.config.width, path)
        ends = extra["prompts.lengths"].cumsum(0)[:-1]
        features = extra["prompts.features"].to(self.model.emb.weight)
        for row, tokens in enumerate(extra["prompts.tokens"].tensor_split(ends)):
            self._keep(_Entry(tokens.numpy(), features[[row]], state.index([row])))

    def _entry(self, tokens: np.ndarray) -> _Entry:
        """Return what is known after the tokens, reading what is not."""
        known, shared = self._nearest(tokens)
        start = 0 if known is None else len(known.tokens)
        self.tokens_found += start
        if shared - start >= SHARED_TOKENS and shared < len(tokens):
            known = self._extend(known, tokens[:shared])
        if known is None or len(known.tokens) < len(tokens):
            known = self._extend(known, tokens)
        return known

    def _extend(self, known: _Entry | None, tokens: np.ndarray) -> _Entry:
        start, state = (0, None) if known is None else (len(known.tokens), known.state)
        self.tokens_read += len(tokens) - start
        entry = _Entry(tokens, *prefill(self.model, [tokens[start:]], state))
        self._keep(entry)
        return entry

    def _nearest(self, tokens: np.ndarray) -> tuple[_Entry | None, int]:
        """Return the longest entry that the tokens begin with, and the most shared with any."""
        best: bytes | None = None
        length = most = 0
        for key, entry in self._entries.items():
            shared = _common_prefix(entry.tokens, tokens)
            most = max(most, shared)
            if shared == len(entry.tokens) > length:
                best, length = key, shared
        if best is None:
            return None, most
        self._entries.move_to_end(best)
        return self._entries[best], most

    def _keep(self, entry: _Entry) -> None:
        key = entry.tokens.tobytes()
        self._entries[key] = entry
        self._entries.move_to_end(key)
        total = self.size_bytes
        while total > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            total -= oldest.size_bytes


def _check_parts(parts: Mapping[str, Tensor], rows: int, width: int, where: str | Path) -> None:
    """Return if what a file holds beside the states of so many prompts fits them.

    Raises:
        ValueError: A part is missing, of another shape or dtype, or the lengths do not add up.
    """
    if missing := sorted(_EXTRA - parts.keys()):
        raise ValueError(
            f"{where} has no {missing[0]}; expected a saved prompt cache. The file is damaged."
        )
    lengths, tokens = parts["prompts.lengths"], parts["prompts.tokens"]
    expected = {
        "prompts.lengths": ((rows,), torch.int64),
        "prompts.tokens": ((tokens.numel(),), torch.int64),
        "prompts.features": ((rows, width), parts["prompts.features"].dtype),
    }
    for name, (shape, dtype) in expected.items():
        if (found := parts[name]).shape != shape or found.dtype != dtype:
            raise ValueError(
                f"{where}: {name} is {list(found.shape)} {found.dtype}; expected {list(shape)} "
                f"{dtype}. The file is damaged."
            )
    if (lengths < 1).any() or lengths.sum() != len(tokens):
        raise ValueError(
            f"{where}: prompts.lengths adds up to {int(lengths.sum())}; expected {len(tokens)}, as "
            "many as there are tokens, and no length below 1. The file is damaged."
        )


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    differ = np.flatnonzero(a[:length] != b[:length])
    return int(differ[0]) if len(differ) else length


def _versions(model: LanguageModel) -> tuple[tuple[int, int], ...]:
    """Return what changes when a weight is replaced or written to, as an optimiser step does."""
    return tuple((p.data_ptr(), p._version) for p in model.parameters())
