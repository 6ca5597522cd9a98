"""Minibatches as pieces of the rows of a rollout, without the padding of sb3-contrib's buffer.

Its minibatch is a stretch of the rollout, one environment after the other, that the buffer cuts at
every episode start and pads to the longest piece: early in training most of it is padding,
which only the algorithm's mask tells from steps. The handles of the states tell it too, by the
numbers of their steps: where a piece ended is known from the start of the next one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]


class Segments(NamedTuple):
    """Where the memory starts in a minibatch that is not padded: one state for each piece.

    A piece is a stretch of consecutive steps of one environment; episodes may start inside it.
    """

    state: Tensor
    """State before the first step of every piece, `[B, 2 H]`."""

    position: Tensor
    """Place of every step of the minibatch among the `B * T` of the padded pieces, `[M]`."""

    longest: int
    """Steps `T` of the longest piece."""


def segments(state: Tensor, lengths: np.ndarray[Any, Any]) -> Segments:
    """Return the pieces that start from `state` `[B, 2 H]` and have these lengths `[B]`."""
    longest = int(lengths.max())
    piece = np.repeat(np.arange(len(lengths)), lengths)
    step = np.arange(len(piece)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    position = torch.as_tensor(piece * longest + step, device=state.device)
    return Segments(state, position, longest)


class Rows(NamedTuple):
    """Padded sequences as the rows of a rollout that they were cut from."""

    first: Tensor
    """The sequences that begin a row, `[R]`."""

    position: Tensor
    """Place of every step among the `R * T` of the padded rows, `[M]`."""

    longest: int
    """Steps `T` of the longest row."""

    steps: Tensor
    """Place of every step in the minibatch, `[M]`."""

    padding: Tensor
    """All other places of the minibatch."""

    def of(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the pair that the rows start from, of that of all sequences."""
        return tuple(part[:, self.first] for part in states)

    def segments(self, state: Tensor) -> Segments:
        """Return the rows with the states `[R, S]` that they start from."""
        return Segments(state, self.position, self.longest)


def rejoined(starts: Tensor, number: Tensor, end: int) -> Rows | None:
    """Return the rows that padded sequences were cut from; None if none is known to be padded.

    The numbers may be those of another minibatch: whoever drops the padding looks at it before.

    Args:
        starts: Where episodes start, `[B, T]` bool.
        number: Number of the step before each sequence, `[B]`.
        end: Number of the last step of the rollout.
    """
    # Some tens of numbers each: NumPy's operations cost a fifth of PyTorch's.
    device = number.device
    first_starts = starts[:, 0].cpu().numpy()
    length, continues = _lengths(first_starts, starts.shape[1], number.cpu().numpy(), end)
    inside = np.arange(starts.shape[1]) < length[:, None]
    if inside.all():
        return None
    is_first = ~np.roll(continues, 1)
    row = is_first.cumsum() - 1
    # Steps before a sequence: in the minibatch, then in its row.
    before = length.cumsum() - length
    before = before - before[is_first][row]
    longest = int((before + length).max())
    position = (row * longest + before)[:, None] + np.arange(starts.shape[1])
    found = (
        is_first.nonzero()[0],
        position[inside],
        inside.ravel().nonzero()[0],
        (~inside).ravel().nonzero()[0],
    )
    first, position, steps, padding = (torch.from_numpy(x).to(device) for x in found)
    return Rows(first, position, longest, steps, padding)


def _lengths(starts: Array, longest: int, number: Array, end: int) -> tuple[Array, Array]:
    """Return an upper bound of every sequence's steps `[B]`, and whether the next continues it.

    The next sequence belongs to the same environment if it starts later, and with an episode.
    """
    following = np.roll(number, -1)
    continues = np.roll(starts, -1) & (following > number)
    continues[-1] = False
    length = np.where(continues, following, end) - number
    is_known = (length >= 1) & (length <= longest)
    return np.where(is_known, length, longest).astype(np.int64), continues & is_known
