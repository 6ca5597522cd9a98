"""Token shift: every layer sees a mix of the current input and the previous one."""

from __future__ import annotations

import torch
from torch import Tensor

from doxastic.kernels.checks import can_fuse, can_launch, check_rank, check_reset, check_tensor


def shift_mix(x: Tensor, previous: Tensor, reset: Tensor, mix: Tensor) -> tuple[Tensor, ...]:
    """Return `x_t + (x_{t-1} - x_t) mix[g]` for each of the G rows of `mix`, each `[B, T, C]`.

    In float32 on the CPU this is one fused operation, on CUDA one for float32, bfloat16 and
    float16. The results have the promoted dtype of x and `mix`, under autocast too.

    Args:
        x: `[B, T, C]`.
        previous: The input before the first step, `[B, C]`.
        reset: `[B, T]` bool; true at `t` means that `x_{t-1}` counts as zero.
        mix: `[G, C]`; 0 takes the current input, 1 the previous one.

    Raises:
        ValueError: A shape, dtype or device does not fit.

    Source:
        RWKV-LM, RWKV-v7/rwkv_v7_numpy.py.
    """
    check_rank("x", x, "[B, T, C]", 3)
    check_rank("mix", mix, "[G, C]", 2)
    batch, _, width = x.shape
    check_tensor("previous", previous, "[B, C]", (batch, width), x, "x")
    check_tensor("mix", mix, "[G, C]", (mix.shape[0], width), x, "x")
    check_reset(reset, "[B, T]", x.shape[:2], x)
    if can_fuse(width, x, previous, mix):
        from doxastic.kernels.cpu.token_shift import FusedShiftMix

        mixed: tuple[Tensor, ...] = FusedShiftMix.apply(x, previous, reset, mix)
        return mixed
    if can_launch(x, previous, mix):
        from doxastic.kernels.triton import token_shift

        return token_shift.shift_mix(x, previous, reset, mix)
    return _composed(x, previous, reset, mix)


def _composed(x: Tensor, previous: Tensor, reset: Tensor, mix: Tensor) -> tuple[Tensor, ...]:
    """Return what `shift_mix` returns, from PyTorch's operations."""
    shifted = torch.cat([previous.to(x.dtype).unsqueeze(1), x[:, :-1]], dim=1)
    difference = shifted.masked_fill(reset.unsqueeze(-1), 0.0) - x
    return torch.addcmul(x, difference, mix[:, None, None]).unbind(0)
