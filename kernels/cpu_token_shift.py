"""The fused token shift on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from doxastic.kernels.cpu import ONE, ZERO, compiled, flat
from doxastic.kernels.simd import LANES, add, fma, load, mul, splat, store, sub
from doxastic.kernels.threads import run


@compiled
def _mix(first, last, T, C, G, size, x, previous, reset, mix, out):
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
def _mix_backward(first, last, T, C, x, previous, reset, mix, grads, dx, dprevious, dmix):
    """Write the gradients; `grads` is a tuple of G arrays, `dmix` `[B, G, C]` is summed after."""
    zero, one = splat(ZERO), splat(ONE)
    G = len(grads)
    for row in range(first, last):
        for g in range(G):
            grad = grads[g]
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


class FusedShiftMix(torch.autograd.Function):
    """`shift_mix` in float32 on the CPU, for widths of whole vectors."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, previous: Tensor, reset: Tensor, mix: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the G mixed inputs."""
        x, previous, reset, mix = (z.contiguous() for z in (x, previous, reset, mix))
        (B, T, C), G = x.shape, mix.shape[0]
        out = x.new_empty(G, B, T, C)
        tensors = (x, previous, reset, mix, out)
        run(_mix, B, G * x.numel(), T, C, G, x.numel(), *map(flat, tensors))
        ctx.save_for_backward(x, previous, reset, mix)
        return out.unbind(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, previous and mix."""
        x, previous, reset, mix = ctx.saved_tensors
        (B, T, C), G = x.shape, mix.shape[0]
        dx, dprevious, dmix = torch.zeros_like(x), torch.zeros_like(previous), x.new_empty(B, G, C)
        arrays = tuple(flat(grad.contiguous()) for grad in grads)
        run(
            _mix_backward, B, 3 * G * x.numel(), T, C, *map(flat, (x, previous, reset, mix)),
            arrays, *map(flat, (dx, dprevious, dmix)),
        )  # fmt: skip
        return dx, dprevious, None, dmix.sum(0)
