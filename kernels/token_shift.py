"""Token shift: every layer sees a mix of the current input and the previous one."""

from __future__ import annotations

import torch
from torch import Tensor


def shift_mix(x: Tensor, previous: Tensor, reset: Tensor, mix: Tensor) -> tuple[Tensor, ...]:
    """Return `x_t + (x_{t-1} - x_t) mix[g]` for each of the G rows of `mix`, each `[B, T, C]`.

    In float32 on the CPU this is one fused operation.

    Args:
        x: `[B, T, C]`.
        previous: The input before the first step, `[B, C]`.
        reset: `[B, T]` bool; true at `t` means that `x_{t-1}` counts as zero.
        mix: `[G, C]`; 0 takes the current input, 1 the previous one.

    Source:
        RWKV-LM, RWKV-v7/rwkv_v7_numpy.py.
    """
    if _is_fusible(x):
        from doxastic.kernels.cpu.token_shift import FusedShiftMix

        mixed: tuple[Tensor, ...] = FusedShiftMix.apply(x, previous, reset, mix)
        return mixed
    return _composed(x, previous, reset, mix)


def _is_fusible(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    try:
        from doxastic.kernels.cpu.simd import LANES
    except ImportError:
        return False
    return x.shape[-1] % LANES == 0


def _composed(x: Tensor, previous: Tensor, reset: Tensor, mix: Tensor) -> tuple[Tensor, ...]:
    """Return what `shift_mix` returns, from PyTorch's operations."""
    shifted = torch.cat([previous.to(x.dtype).unsqueeze(1), x[:, :-1]], dim=1)
    difference = shifted.masked_fill(reset.unsqueeze(-1), 0.0) - x
    return torch.addcmul(x, difference, mix[:, None, None]).unbind(0)
