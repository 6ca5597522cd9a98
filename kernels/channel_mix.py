"""The squared ReLU inside RWKV-7's channel mix."""

from __future__ import annotations

import torch
from torch import Tensor

from doxastic.kernels.checks import can_launch


def squared_relu(x: Tensor) -> Tensor:
    """Return `relu(x)^2`, in the dtype of x.

    On CUDA this is one operation for float32, bfloat16 and float16, computed in float32; elsewhere
    two of PyTorch's. On the CPU the whole layer is fused instead, see `kernels/cpu/layers.py`.

    Args:
        x: `[..., C]`, at least one axis.
    """
    if x.ndim and can_launch(x):
        from doxastic.kernels.triton import channel_mix

        squared: Tensor = channel_mix.squared_relu(x)
        return squared
    return torch.relu(x).square()
