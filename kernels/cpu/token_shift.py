"""The fused token shift on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doxastic.kernels.cpu.common import ONE, ZERO, compiled
from doxastic.kernels.cpu.simd import LANES, add, flags, floats, fma, load, mul, splat, store, sub
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
    """Write the gradients; `grads` holds G addresses, `dmix` `[B, G, C]` is summed after."""
    x, previous, mix, dx, dprevious = (
        floats(p_x),
        floats(p_previous),
        floats(p_mix),
        floats(p_dx),
        floats(p_dprevious),
    )
    dmix = floats(p_dmix)
    reset = flags(p_reset)
    zero, one = splat(ZERO), splat(ONE)
    G = len(grads)
    for row in range(first, last):
        for g in range(G):
            grad = floats(grads[g])
            for i in range(0, C, LANES):
                mix_i, dmix_i = load(mix, g * C + i), zero
                for t in range(T):
                    o = (row * T + t) * C + i
                    grad_i, before = load(grad, o), zero
                    store(dx, o, fma(grad_i, sub(one, mix_i), load(dx, o)))
                    if not reset[row * T + t]:
                        dbefore = mul(grad_i, mix_i)
                        if t > 0:
                            before = load(x, o - C)
                            store(dx, o - C, add(load(dx, o - C), dbefore))
                        else:
                            p = row * C + i
                            before = load(previous, p)
                            store(dprevious, p, add(load(dprevious, p), dbefore))
                    dmix_i = fma(grad_i, sub(before, load(x, o)), dmix_i)
                store(dmix, (row * G + g) * C + i, dmix_i)


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
    dx, dprevious, dmix = torch.zeros_like(x), torch.zeros_like(previous), x.new_empty(B, G, C)
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
