"""Reading prompts in parallel: sequences of different lengths to one state and one feature each."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from doxastic.language.model import LanguageModel
from doxastic.memory.state import CoreState

PIECE_TOKENS = 2048
"""Tokens read in one call; it bounds the memory of a prompt, whatever its length."""


@torch.no_grad()
def prefill(
    model: LanguageModel,
    sequences: Sequence[np.ndarray],
    state: CoreState | None = None,
    *,
    piece_tokens: int = PIECE_TOKENS,
) -> tuple[Tensor, CoreState]:
    """Return what the head reads after the last token of each sequence, `[B, C]`, and the states.

    Equal to reading each sequence alone. The rows are aligned at their ends and read in pieces; a
    row joins with the piece in which it begins: from zero it is padded on the left and reset at
    its first token; from a state of its own, a piece begins where it does.

    Args:
        model: The model.
        sequences: Token ids of each row, at least one.
        state: The state before each sequence, `[B, S]`; None for zeros.
        piece_tokens: Tokens, of all rows together, to read in one call.

    Raises:
        ValueError: A sequence is empty, an id is not in the vocabulary, the state does not fit.
    """
    _check(model, sequences, state)
    device = model.emb.weight.device
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
    longest = len(sequences[order[0]])
    starts = [longest - len(sequences[row]) for row in order]
    tokens, reset = _aligned([sequences[row] for row in order], longest)
    if state is None:
        running = model.initial_state(0)
    else:
        reset[:] = False
        running, state = state.index(slice(0)), state.index(order)
    tokens, reset = tokens.to(device), reset.to(device)
    for begin, end in pairwise(_cuts(starts, longest, state is not None, piece_tokens)):
        # Rows that begin at `end` or later have no token in this piece.
        old, count = running.batch_size, bisect_left(starts, end)
        if count > old:
            joined = model.initial_state(count - old)
            joined = joined if state is None else state.index(slice(old, count))
            running = CoreState(model.layout, torch.cat((running.flat, joined.flat)))
        features, running = model.features(
            tokens[:count, begin:end], running, reset[:count, begin:end]
        )
    back = np.argsort(order).tolist()
    return features[back, -1], running.index(back)


def _aligned(sequences: Sequence[np.ndarray], longest: int) -> tuple[Tensor, Tensor]:
    """Return the sequences aligned at their ends, `[B, T]` int64, and where each begins."""
    tokens = np.zeros((len(sequences), longest), dtype=np.int64)
    reset = np.zeros(tokens.shape, dtype=bool)
    for row, sequence in enumerate(sequences):
        start = longest - len(sequence)
        tokens[row, start:] = sequence
        reset[row, start] = True
    return torch.from_numpy(tokens), torch.from_numpy(reset)


def _cuts(starts: Sequence[int], longest: int, exact: bool, piece_tokens: int) -> list[int]:
    """Return where the pieces begin, and the end; `exact` cuts wherever a row begins."""
    length = max(1, piece_tokens // len(starts))
    return sorted({*range(0, longest, length), *(starts if exact else ()), longest})


def _check(model: LanguageModel, sequences: Sequence[np.ndarray], state: CoreState | None) -> None:
    if not sequences:
        raise ValueError("there are no sequences; expected at least one.")
    vocab = model.config.vocab_size
    for row, sequence in enumerate(sequences):
        if not len(sequence):
            raise ValueError(
                f"sequence {row} is empty; expected at least one token, such as the "
                "end-of-document id that opens every document."
            )
        low, high = int(sequence.min()), int(sequence.max())
        if low < 0 or high >= vocab:
            raise ValueError(
                f"sequence {row} has the token id {low if low < 0 else high}; expected 0 to "
                f"{vocab - 1}. The tokenizer is another model's."
            )
    if state is not None and state.layout != model.layout:
        raise ValueError(
            f"state has the parts {dict(state.layout.shapes)}; expected those of this model, "
            f"{dict(model.layout.shapes)}. It belongs to a model of other sizes."
        )
    if state is not None and state.batch_size != len(sequences):
        raise ValueError(
            f"state has {state.batch_size} rows; expected one for each of the {len(sequences)} "
            "sequences. Repeat a row with state.index."
        )
