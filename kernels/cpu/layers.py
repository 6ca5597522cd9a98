"""Whole layers on the CPU as one differentiable operation each, from shift to last projection.

At the sizes of reinforcement learning a third of a layer's time goes by between its operations:
autograd's bookkeeping over one small tensor after another. Here forward and backward are
written out over the compiled loops and PyTorch's matrix products. Letters: N = B T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doxastic.kernels.checks import can_fuse
from doxastic.kernels.cpu import channel_mix, low_rank, time_mix, token_shift
from doxastic.kernels.cpu.low_rank import LINEAR, SIGMOID, TANH

sigmoid_backward = torch.ops.aten.sigmoid_backward


def time_mix_layer(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return output `[B, T, C]`, final state and the value before its residual `[B, T, C]`.

    The kernels read addresses: call it only with what `fits_time_mix`.

    `args` are x, shift, state, reset, v_first (or None), the group norm's eps, and the
    parameters: x_r, x_w, x_k, x_v, x_a, x_g, w0, w1, w2, a0, a1, a2, g1, g2, the weights of
    receptance, key, value and output, k_k, k_a, r_k, weight and bias of the group norm, and,
    given v_first, v0, v1, v2. See `doxastic.memory.time_mix.TimeMix` for their meaning.
    """
    outputs: tuple[Tensor, Tensor, Tensor] = _TimeMixLayer.apply(*args)
    return outputs


def fits_time_mix(
    x: Tensor, shift: Tensor, state: Tensor, reset: Tensor, v_first: Tensor | None, eps: float,
    *parameters: Tensor,
) -> bool:  # fmt: skip
    """Return whether `time_mix_layer` may take these arguments: plain, and of fitting shapes."""
    B, T, C = x.shape if x.ndim == 3 else (0, 0, 0)
    H, K = state.shape[1:3] if state.ndim == 4 else (0, 0)
    tensors = [x, shift, state, *parameters]
    w, a, g = (parameters[i].shape[0] for i in (8, 11, 13))
    shapes: list[tuple[int, ...]] = [
        (B, T, C), (B, C), (B, H, K, K), *[(C,)] * 7, (C, w), (w, C), (C,), (C, a), (a, C),
        (C, g), (g, C), *[(C, C)] * 4, (C,), (C,), (H, K), (C,), (C,),
    ]  # fmt: skip
    if v_first is not None:
        rank = parameters[25].shape[0]
        tensors.append(v_first)
        shapes += [(C,), (C, rank), (rank, C), (B, T, C)]
    return (
        T > 0
        and C == H * K
        and _is_reset(reset, B, T)
        and [z.shape for z in tensors] == shapes
        and can_fuse(K, *tensors)
    )


def channel_mix_layer(*args: Tensor) -> Tensor:
    """Return `[B, T, C]`; `args` are x, shift, reset, x_k and the weights of key and value.

    The kernels read addresses: call it only with what `fits_channel_mix`.
    """
    output: Tensor = _ChannelMixLayer.apply(*args)
    return output


def fits_channel_mix(
    x: Tensor, shift: Tensor, reset: Tensor, x_k: Tensor, key: Tensor, value: Tensor
) -> bool:
    """Return whether `channel_mix_layer` may take these arguments: plain, of fitting shapes."""
    B, T, C = x.shape if x.ndim == 3 else (0, 0, 0)
    hidden, tensors = key.shape[0], (x, shift, x_k, key, value)
    shapes = [(B, T, C), (B, C), (C,), (hidden, C), (C, hidden)]
    return (
        T > 0
        and _is_reset(reset, B, T)
        and [z.shape for z in tensors] == shapes
        and can_fuse(C, *tensors)
    )


def _is_reset(reset: Tensor, batch: int, steps: int) -> bool:
    return reset.shape == (batch, steps) and reset.dtype is torch.bool and reset.is_cpu


class _TimeMixLayer(torch.autograd.Function):
    """The time mix of `doxastic.memory.time_mix`, float32, for heads of whole vectors."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor, state: Tensor, reset: Tensor, v_first: Tensor | None,
        eps: float, *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Return what `time_mix_layer` returns; keep what the backward needs."""
        w0, w1, w2, a0, a1, a2, g1, g2, W_r, W_k, W_v, W_o = parameters[6:18]
        k_k, k_a, r_k, weight, bias = (z.contiguous() for z in parameters[18:23])
        x, shift, state, reset = (z.contiguous() for z in (x, shift, state, reset))
        mix = torch.stack(parameters[:6])
        X = token_shift.forward(x, shift, reset, mix).flatten(1, 2)
        x_r, x_w, x_k, x_v, x_a, x_g = X.unbind(0)
        r, k = x_r @ W_r.t(), x_k @ W_k.t()
        # Outputs come out of their products in their own shape: a view could not be changed in
        # place, and this one is read again by the backward.
        value_out = x_v.view(x.shape) @ W_v.t()
        value = value_out.flatten(0, 1)
        low_w, decay = low_rank.forward(x_w, w1, w2, w0, TANH)
        low_a, rate = low_rank.forward(x_a, a1, a2, a0, LINEAR)
        low_g, gate = low_rank.forward(x_g, g1, g2, None, SIGMOID)
        v, low_v, share = value, None, None
        if v_first is not None:
            v0, v1, v2 = parameters[23:]
            low_v, share = low_rank.forward(x_v, v1, v2, v0, LINEAR)
            v = torch.lerp(value, v_first.reshape(v.shape), share.sigmoid_())
        z, final, kept = time_mix.forward(
            r, decay, k, v, rate, gate, k_k, k_a, r_k, weight, bias, eps, state, reset
        )
        ctx.eps, ctx.number_kept = eps, len(kept)
        # Only the first layer's value is read again, and only a carried state has a gradient.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            *kept, x, shift, mix, X, v_first, value, low_w, low_a, low_g, low_v, share, z,
            *parameters,
        )  # fmt: skip
        return z.view(x.shape) @ W_o.t(), final, value_out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dout: Tensor | None, dfinal: Tensor | None, dvalue: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of everything but `reset` and `eps`."""
        # Read once: under gradient checkpointing they may not be unpacked a second time.
        saved = ctx.saved_tensors
        kept, rest = saved[: ctx.number_kept], saved[ctx.number_kept :]
        x, shift, mix, X, v_first, value, low_w, low_a, low_g, low_v, share, z, *rest = rest
        _, w1, w2, _, a1, a2, g1, g2, W_r, W_k, W_v, W_o = rest[6:18]
        x_r, x_w, x_k, x_v, x_a, x_g = X.unbind(0)
        dout = torch.zeros_like(z) if dout is None else dout.reshape(z.shape)
        if dfinal is None:
            (batch, _, width), size = x.shape, kept[8].shape[1]
            dfinal = x.new_zeros(batch, width // size, size, size)
        dr, ddecay, dk, dv, drate, dgate, *inner, dstate = time_mix.backward(
            dout @ W_o, dfinal, ctx.eps, kept
        )
        dX, dv_first = torch.empty_like(X), None
        residual: tuple[Tensor, ...] = ()
        if v_first is not None:
            _, v1, v2 = rest[23:]
            dshare = sigmoid_backward(dv * (v_first.reshape(value.shape) - value), share)
            dx_v = torch.empty_like(dv)
            dv1, dv2, dv0 = low_rank.backward(dshare, x_v, v1, v2, low_v, LINEAR, dx_v)
            residual = (dv0, dv1, dv2)
            dv_first = (dv * share).view(x.shape)
            dv = torch.addcmul(dv, dv, share, value=-1.0)
        if dvalue is not None:
            dv = dv.add_(dvalue.reshape(dv.shape))
        for i, gradient, weight in ((0, dr, W_r), (2, dk, W_k), (3, dv, W_v)):
            torch.mm(gradient, weight, out=dX[i])
        if v_first is not None:
            dX[3].add_(dx_v)
        dw1, dw2, dw0 = low_rank.backward(ddecay, x_w, w1, w2, low_w, TANH, dX[1])
        da1, da2, da0 = low_rank.backward(drate, x_a, a1, a2, low_a, LINEAR, dX[4])
        dg1, dg2, _ = low_rank.backward(dgate, x_g, g1, g2, low_g, SIGMOID, dX[5])
        dx, dshift, dmix = token_shift.backward(x, shift, kept[11], mix, dX.unbind(0))
        return (
            dx, dshift, dstate, None, dv_first, None, *dmix.unbind(0),
            dw0, dw1, dw2, da0, da1, da2, dg1, dg2,
            dr.t() @ x_r, dk.t() @ x_k, dv.t() @ x_v, dout.t() @ z, *inner, *residual,
        )  # fmt: skip


class _ChannelMixLayer(torch.autograd.Function):
    """The channel mix of `doxastic.memory.channel_mix`, float32, for widths of whole vectors."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor, reset: Tensor, x_k: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Return the output `[B, T, C]`; keep what the backward needs."""
        x, shift, reset, mix = (z.contiguous() for z in (x, shift, reset, x_k.unsqueeze(0)))
        mixed = token_shift.forward(x, shift, reset, mix).flatten(0, 2)
        inner = mixed @ key.t()
        hidden = channel_mix.forward(inner)
        ctx.save_for_backward(x, shift, reset, mix, mixed, inner, hidden, key, value)
        # In its own shape: a view of it could not be changed in place.
        return hidden.view(*reset.shape, hidden.shape[1]) @ value.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of everything but `reset`."""
        x, shift, reset, mix, mixed, inner, hidden, key, value = ctx.saved_tensors
        dout = dout.reshape(mixed.shape)
        dinner = channel_mix.backward(inner, dout @ value)
        dx, dshift, dmix = token_shift.backward(x, shift, reset, mix, (dinner @ key,))
        return dx, dshift, None, dmix[0], dinner.t() @ mixed, dout.t() @ hidden
