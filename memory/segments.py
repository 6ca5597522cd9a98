"""`nn.GRU` and `nn.LSTM` over whole segments in which episodes begin anywhere.

Torch's recurrent layers cannot be reset in the middle of a sequence. Two exact ways round it,
each one call a layer, without a loop over time:

*Clearing* inserts one extra step before every reset. Two marker columns are added to the input,
zero on the real steps; on an extra step the first drives the gates so deep into saturation that
the layer forgets: `f = i = 0` for the LSTM, `r = z = 0` and a candidate of zero for the GRU, hence
the next state is exactly zero and so is the gradient that would cross it. Rows with fewer resets
are filled up at the end; there the second marker holds the LSTM's cell (`f = 1`, `i = 0`). The
sequences grow by the resets of the fullest row, and torch's fastest dense kernels still apply.

*Packing* splits the rows at the resets and gives the pieces to the layer as one `PackedSequence`.
Nothing is computed in vain, but on the CPU torch then leaves oneDNN's fused LSTM for an
unfused loop. It is also the way where something is not finite: clearing multiplies what came before
by zero, and NaN times zero is NaN.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Parts = tuple[Tensor, ...]
"""The recurrent state: `(h,)` for a GRU, `(h, c)` for an LSTM, each `[L, B, F]`."""

# sigmoid(-1e4) = 0 and sigmoid(1e4) = 1 exactly in every float type; |W h + b| stays far below.
_SATURATED = 1e4

# A GRU has no oneDNN kernel to lose; measured on one core at 64 channels, packing is the faster
# way once the pieces are shorter than about eight steps.
_SHORT_PIECE = 8


def run_whole(
    rnn: nn.GRU | nn.LSTM, x: Tensor, parts: Parts, reset: Tensor
) -> tuple[Tensor, Parts]:
    """Return what `run_segment` returns if `reset` is false after the first step."""
    if isinstance(rnn, nn.LSTM):
        features, (h, c) = rnn(x.transpose(0, 1), (parts[0], parts[1]))
        return features.transpose(0, 1), (h, c)
    features, h = rnn(x.transpose(0, 1), parts[0])
    return features.transpose(0, 1), (h,)


def run_segment(
    rnn: nn.GRU | nn.LSTM, x: Tensor, parts: Parts, reset: Tensor
) -> tuple[Tensor, Parts]:
    """Return the features `[B, T, F]` and the final state of a segment with resets in it.

    Args:
        rnn: Unidirectional, with biases, without dropout, time first.
        x: Inputs `[B, T, C]`.
        parts: State before the first step, each `[L, B, F]`; already cleared where `reset[:, 0]`.
        reset: `[B, T]` bool; the first column is not looked at.
    """
    pieces = reset[:, 1:].count_nonzero() + reset.shape[0]
    short = isinstance(rnn, nn.GRU) and bool(reset.numel() < _SHORT_PIECE * pieces)
    if x.is_cuda or short:
        return run_packed(rnn, x, parts, reset)
    features, last = run_cleared(rnn, x, parts, reset)
    # Features lie between -1 and 1: a sum is finite unless one of them is not.
    if not math.isfinite(features.detach().sum().item()):
        return run_packed(rnn, x, parts, reset)
    return features, last


def run_cleared(
    rnn: nn.GRU | nn.LSTM, x: Tensor, parts: Parts, reset: Tensor
) -> tuple[Tensor, Parts]:
    """Return what `run_segment` returns, with an extra step that forgets before every reset."""
    batch, steps = reset.shape
    position, markers = _stretch(reset)
    markers = markers.to(x.dtype)
    length = markers.shape[0]
    last = position[steps - 1 :: steps]
    sequence = x.new_zeros(length * batch, x.shape[2])
    sequence = sequence.index_copy(0, position, x.reshape(batch * steps, -1))
    sequence = sequence.view(length, batch, -1)
    finals = []
    for layer in range(rnn.num_layers):
        state = tuple(part[layer : layer + 1] for part in parts)
        sequence, cell = _run_marked_layer(rnn, layer, torch.cat([sequence, markers], 2), state)
        finals.append((sequence.reshape(length * batch, -1).index_select(0, last), *cell))
    features = sequence.reshape(length * batch, -1).index_select(0, position)
    return features.view(batch, steps, -1), tuple(
        torch.stack(part) for part in zip(*finals, strict=True)
    )


def _stretch(reset: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each step lies once the extra steps are in, and the markers.

    Returns:
        position: `[B * T]`, rows of the stretched sequence seen as `[length * B, ...]`.
        markers: `[length, B, 2]` bool: forget here, hold here.
    """
    batch, steps = reset.shape
    extra = reset.long()
    extra[:, 0] = 0
    time = torch.arange(steps, device=reset.device) + extra.cumsum(1)
    length = int(time[:, -1].max()) + 1
    position = (time * batch + torch.arange(batch, device=reset.device)[:, None]).flatten()
    gap = torch.ones(length * batch, dtype=torch.bool, device=reset.device)
    gap = gap.index_fill(0, position, False).view(length, batch)
    hold = torch.arange(length, device=reset.device)[:, None] > time[:, -1]
    return position, torch.stack([gap & ~hold, hold], dim=2)


def _run_marked_layer(
    rnn: nn.GRU | nn.LSTM, layer: int, sequence: Tensor, state: Parts
) -> tuple[Tensor, Parts]:
    """Return one layer's outputs `[length, B, F]` and, for an LSTM, its final cell `[B, F]`."""
    w_ih, w_hh, b_ih, b_hh = rnn.all_weights[layer]
    if isinstance(rnn, nn.LSTM):
        # Gates in torch's order: input, forget, candidate, output.
        rows = [[-_SATURATED, -_SATURATED], [-_SATURATED, _SATURATED], [0.0, 0.0], [0.0, 0.0]]
        columns = w_ih.new_tensor(rows).repeat_interleave(rnn.hidden_size, 0)
        weights = (torch.cat([w_ih, columns], 1), w_hh, b_ih, b_hh)
        out, _, c = torch.lstm(
            sequence, state, weights, True, 1, 0.0, torch.is_grad_enabled(), False, False
        )
        return out, (c[0],)
    # Gates: reset, update, candidate. The candidate's bias is cancelled so that it is zero too.
    gates = w_ih.new_full((2 * rnn.hidden_size,), -_SATURATED)
    forget = torch.cat([gates, -b_ih[2 * rnn.hidden_size :]])
    columns = torch.stack([forget, torch.zeros_like(forget)], 1)
    weights = (torch.cat([w_ih, columns], 1), w_hh, b_ih, b_hh)
    out, _ = torch.gru(
        sequence, state[0], weights, True, 1, 0.0, torch.is_grad_enabled(), False, False
    )
    return out, ()


def run_packed(
    rnn: nn.GRU | nn.LSTM, x: Tensor, parts: Parts, reset: Tensor
) -> tuple[Tensor, Parts]:
    """Return what `run_segment` returns, with the rows split at the resets and packed."""
    batch, steps = reset.shape
    pieces = _split(reset)
    carried = tuple(
        part.index_select(1, pieces.row).masked_fill(pieces.fresh[:, None], 0.0) for part in parts
    )
    data = x.reshape(batch * steps, -1).index_select(0, pieces.order)
    packed = PackedSequence(data, pieces.batch_sizes)
    out, final = rnn(packed, carried if isinstance(rnn, nn.LSTM) else carried[0])
    finals = final if isinstance(rnn, nn.LSTM) else (final,)
    features = out.data.index_select(0, pieces.inverse).view(batch, steps, -1)
    return features, tuple(part.index_select(1, pieces.last) for part in finals)


class _Pieces(NamedTuple):
    """Rows split at their resets, the longest piece first."""

    row: Tensor
    """The row of the batch each piece comes from, `[N]`."""

    fresh: Tensor
    """Whether the piece starts at a reset rather than from the carried state, `[N]` bool."""

    last: Tensor
    """Each row's last piece, `[B]`."""

    order: Tensor
    """Steps of the batch, flattened to `[B * T]`, in the order of a `PackedSequence`."""

    inverse: Tensor
    """The inverse permutation of `order`."""

    batch_sizes: Tensor
    """Pieces longer than t, for every t; on the CPU, as `PackedSequence` wants it."""


def _split(reset: Tensor) -> _Pieces:
    batch, steps = reset.shape
    starts = reset.clone()
    starts[:, 0] = True
    start = starts.flatten().nonzero().squeeze(1)
    piece = starts.flatten().cumsum(0) - 1
    age = torch.arange(batch * steps, device=reset.device) - start[piece]
    longest_first = torch.bincount(piece).argsort(descending=True, stable=True)
    rank = _invert(longest_first)
    order = (age * start.numel() + rank[piece]).argsort()
    start = start[longest_first]
    return _Pieces(
        row=start // steps,
        fresh=start % steps != 0,
        last=rank[piece[steps - 1 :: steps]],
        order=order,
        inverse=_invert(order),
        batch_sizes=torch.bincount(age).cpu(),
    )


def _invert(permutation: Tensor) -> Tensor:
    """Return the permutation that undoes the given one."""
    positions = torch.arange(permutation.numel(), device=permutation.device)
    return torch.empty_like(permutation).index_copy(0, permutation, positions)
