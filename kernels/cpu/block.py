"""A whole block of small width on the CPU as one differentiable operation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doxastic.kernels.checks import can_fuse
from doxastic.kernels.cpu import block_backward, block_forward, block_pieces
from doxastic.kernels.cpu.common import vectors, whole
from doxastic.kernels.cpu.layers import fits_channel_mix, fits_time_mix
from doxastic.kernels.cpu.low_rank import LARGEST_RANK
from doxastic.kernels.cpu.simd import LANES
from doxastic.kernels.cpu.threads import run

# The weights should stay in the second-level cache, and long rows are for threads over heads.
LARGEST_WIDTH, LARGEST_LENGTH = 128, 1024
# The gradients of the parameters are summed within each of at most so many parts of the batch.
PARTS = 8

Eps = tuple[float, float, float]


def block(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return output `[B, T, C]`, the new time shift, state and channel shift, and the value.

    The last is that before its residual, `[B, T, C]`. The kernels read addresses: call it only with
    what `fits_block`.

    `args` are x, time_shift, state, channel_shift, reset, v_first (or None), the eps of the first
    layer norm, the group norm and the second layer norm, and the parameters: weight and bias of the
    first layer norm, those of `layers.time_mix_layer` but v0, v1, v2, weight and bias of the second
    layer norm, those of `layers.channel_mix_layer`, and, given v_first, v0, v1, v2.
    """
    tensors = (args[0], args[1], args[2], args[3], args[5], *args[7:])
    keep = torch.is_grad_enabled() and any(z is not None and z.requires_grad for z in tensors)
    outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _Block.apply(keep, *args)
    return outputs


def fits_block(
    x: Tensor, time_shift: Tensor, state: Tensor, channel_shift: Tensor, reset: Tensor,
    v_first: Tensor | None, eps: Eps, *parameters: Tensor,
) -> bool:  # fmt: skip
    """Return whether `block` may take these arguments: plain, of fitting shapes, small, short."""
    if x.ndim != 3 or x.shape[2] > LARGEST_WIDTH or x.shape[1] > LARGEST_LENGTH:
        return False
    norms, mix, hidden = (*parameters[:2], *parameters[25:27]), parameters[2:25], parameters[27:30]
    residual = parameters[30:]
    ranks = (z.shape[-1] for z in (*mix[7:12:3], mix[12], *residual[1:2]))
    return (
        fits_time_mix(x, time_shift, state, reset, v_first, eps[1], *mix, *residual)
        and fits_channel_mix(x, channel_shift, reset, *hidden)
        and hidden[1].shape[0] % LANES == 0
        and max(ranks) <= LARGEST_RANK
        and all(z.shape == (x.shape[2],) for z in norms)
        and can_fuse(x.shape[2], *norms)
    )


class _Block(torch.autograd.Function):
    """The block of `doxastic.memory.block`, float32, for heads of whole vectors."""

    @staticmethod
    def forward(
        ctx: Any, keep: bool, x: Tensor, time_shift: Tensor, state: Tensor, channel_shift: Tensor,
        reset: Tensor, v_first: Tensor | None, eps: Eps, *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Return what `block` returns; keep what the backward needs, if it is to come."""
        x, time_shift, state, channel_shift, reset = (
            z.contiguous() for z in (x, time_shift, state, channel_shift, reset)
        )
        v_first = None if v_first is None else v_first.contiguous()
        parameters = tuple(z.contiguous() for z in parameters)
        weights = (*parameters[:2], torch.stack(parameters[2:8]), *parameters[8:])
        sizes = _sizes(x, state, weights)
        pieces = len(x) * -(-x.shape[1] // block_pieces.STEPS) if keep else 0
        kept = x.new_empty(
            pieces, block_pieces.kept_places(x.shape[2], state.shape[2], *sizes[3:5])[-1] // 4
        )
        out, value = torch.empty_like(x), torch.empty_like(x)
        last = (
            torch.empty_like(time_shift),
            torch.empty_like(state),
            torch.empty_like(channel_shift),
        )
        run(
            block_forward.forward, len(x), _work(x, weights), *sizes, _eps(eps),
            _addresses(weights), x, time_shift, state, channel_shift, reset, _address(v_first),
            kept, out, value, *last,
        )  # fmt: skip
        ctx.eps, ctx.number = eps, len(weights)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            *weights, x, time_shift, state, channel_shift, reset, v_first, kept, value
        )
        return out, *last, value

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dout: Tensor | None, dtime_last: Tensor | None, dfinal: Tensor | None,
        dchannel_last: Tensor | None, dvalue: Tensor | None,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Return the gradients of everything but `keep`, `reset` and `eps`."""
        # Read once: under gradient checkpointing they may not be unpacked a second time.
        saved = ctx.saved_tensors
        weights, rest = saved[: ctx.number], saved[ctx.number :]
        x, time_shift, state, channel_shift, reset, v_first, kept, value = rest
        dout = torch.zeros_like(x) if dout is None else dout.contiguous()
        dfinal = torch.zeros_like(state) if dfinal is None else dfinal.contiguous()
        dtime_last, dchannel_last, dvalue = (
            None if z is None else z.contiguous() for z in (dtime_last, dchannel_last, dvalue)
        )
        dx, dtime, dstate, dchannel = (
            torch.empty_like(z) for z in (x, time_shift, state, channel_shift)
        )
        dfirst = None if v_first is None else torch.empty_like(v_first)
        lengths = [z.numel() for z in weights]
        *places, size = itertools.accumulate((4 * n for n in lengths), initial=0)
        parts = min(PARTS, max(1, len(x) // 2))
        sums = x.new_zeros(parts, sum(lengths))
        run(
            block_backward.backward, parts, 3 * _work(x, weights), parts, len(x),
            *_sizes(x, state, weights), _eps(ctx.eps), _addresses(weights),
            _filled(places), size,
            x, time_shift, channel_shift, reset, _address(v_first), kept, value,
            dout, _address(dtime_last), dfinal, _address(dchannel_last), _address(dvalue),
            dx, dtime, dstate, dchannel, _address(dfirst), sums,
        )  # fmt: skip
        pieces = (sums[0] if parts == 1 else sums.sum(0)).split(lengths)
        # The first factor of a low-rank map comes transposed.
        gradients = [
            piece.view(weight.shape[::-1]).t() if i in DOWN else piece.view(weight.shape)
            for i, (piece, weight) in enumerate(zip(pieces, weights, strict=True))
        ]
        ln1, mix, others = gradients[:2], gradients[2].unbind(0), gradients[3:]
        return None, dx, dtime, dstate, dchannel, None, dfirst, None, *ln1, *mix, *others


# Places among the weights, the six shift ratios one of them: how many there are with a value
# residual, the first factors of the low-rank maps, and the hidden layer.
ALL, DOWN, HIDDEN = 28, (4, 7, 9, 26), 23


def _sizes(x: Tensor, state: Tensor, weights: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Return T, H, K in vectors, F, W and the ranks."""
    ranks = tuple(weights[i].shape[1] if i < len(weights) else 0 for i in DOWN)
    H, K = state.shape[1:3]
    return x.shape[1], H, vectors(K), len(weights[HIDDEN]), whole(max(ranks)), ranks


def _work(x: Tensor, weights: tuple[Tensor, ...]) -> int:
    return len(x) * x.shape[1] * sum(z.numel() for z in weights)


def _eps(eps: Eps) -> tuple[np.float32, ...]:
    return tuple(np.float32(z) for z in eps)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _addresses(weights: tuple[Tensor, ...]) -> tuple[int, ...]:
    return _filled([z.data_ptr() for z in weights])


def _filled(numbers: list[int]) -> tuple[int, ...]:
    """Return the numbers of all weights, 0 for those of a value residual that is not there."""
    return *numbers, *(0,) * (ALL - len(numbers))
