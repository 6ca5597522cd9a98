"""The fused token shift on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doxastic.kernels.cpu.common import ONE, ZERO, compiled
from doxastic.kernels.cpu.simd import LANES, flags, floats, fma, load, splat, store, sub
from doxastic.kernels.cpu.threads import run


@compiled
def _mix(first, last, T, C, G, size, p_x, p_previous, p_reset, p_mix, p_out):
    x, previous, mix, out = floats(p_x), floats(p_previous), floats(p_mix), floats(p_out)
    reset = flags(p_reset)
    zero = splat(ZERO)
    for row in range(first, last):
        for t in range(T):
            o = (row * T + t) * C
            for i in range(0, C, LANES):
                x_i, before = load(x, o + i), zero
                if not reset[row * T + t]:
                    before = load(x, o - C + i) if t > 0 else load(previous, row * C + i)
                difference = sub(before, x_i)
                for g in range(G):
                    store(out, g * size + o + i, fma(difference, load(mix, g * C + i), x_i))


@compiled
def _mix_backward(
    first, last, T, C, p_x, p_previous, p_reset, p_mix, grads, p_dx, p_dprevious, p_dmix
):
    """Write the gradients of x and previous; add to dmix, `[B, G, C]`; `grads` holds G addresses.

    From the last step to the first; `dprevious` holds what each owes the one before it.
    """
    x, previous, mix = floats(p_x), floats(p_previous), floats(p_mix)
    dx, dprevious, dmix = floats(p_dx), floats(p_dprevious), floats(p_dmix)
    reset = flags(p_reset)
    zero, one = splat(ZERO), splat(ONE)
    G = len(grads)
    for row in range(first, last):
        p = row * C
        dprevious[p : p + C] = ZERO
        for t in range(T - 1, -1, -1):
            fresh = reset[row * T + t]
            for i in range(0, C, LANES):
                o = (row * T + t) * C + i
                before, dx_t, dbefore = zero, load(dprevious, p + i), zero
                if not fresh:
                    before = load(x, o - C) if t > 0 else load(previous, p + i)
                difference = sub(before, load(x, o))
                for g in range(G):
                    grad, mix_g, m = load(floats(grads[g]), o), load(mix, g * C + i), g * C + i
                    dx_t = fma(grad, sub(one, mix_g), dx_t)
                    dbefore = fma(grad, mix_g, dbefore)
                    m += row * G * C
                    store(dmix, m, fma(grad, difference, load(dmix, m)))
                store(dx, o, dx_t)
                store(dprevious, p + i, zero if fresh else dbefore)


def forward(x: Tensor, previous: Tensor, reset: Tensor, mix: Tensor) -> Tensor:
    """Return the G mixed inputs, `[G, B, T, C]`; all contiguous."""
    (B, T, C), G = x.shape, mix.shape[0]
    out = x.new_empty(G, B, T, C)
    run(_mix, B, G * x.numel(), T, C, G, x.numel(), x, previous, reset, mix, out)
    return out


def backward(
    x: Tensor, previous: Tensor, reset: Tensor, mix: Tensor, grads: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, previous and mix; `grads` are those of the mixed inputs."""
    (B, T, C), G = x.shape, mix.shape[0]
    dx, dprevious, dmix = torch.empty_like(x), torch.empty_like(previous), x.new_zeros(B, G, C)
    kept = [grad.contiguous() for grad in grads]
    addresses = tuple(grad.data_ptr() for grad in kept)
    tensors = (x, previous, reset, mix, addresses, dx, dprevious, dmix)
    run(_mix_backward, B, 3 * G * x.numel(), T, C, *tensors)
    return dx, dprevious, dmix.sum(0)


class FusedShiftMix(torch.autograd.Function):
    """`shift_mix` in float32 on the CPU, for widths of whole vectors."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, previous: Tensor, reset: Tensor, mix: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the G mixed inputs."""
        tensors = [z.contiguous() for z in (x, previous, reset, mix)]
        ctx.save_for_backward(*tensors)
        mixed = forward(*tensors).flatten(0, 1)
        # No views: those that one function returns several of cannot be changed in place.
        return torch.unsafe_split_with_sizes(mixed, [x.shape[0]] * mix.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, previous and mix."""
        x, previous, reset, mix = ctx.saved_tensors
        dx, dprevious, dmix = backward(x, previous, reset, mix, grads)
        return dx, dprevious, None, dmix
