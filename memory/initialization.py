"""The official initialisation of RWKV-7, and where small widths need another one.

Source: RWKV-LM, RWKV-v7/train_temp/src/model.py. With layer l of L, u_c = c / C,
q = l / (L - 1) and p = 1 - l / L, each function returns the vector or matrix named in its
docstring.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def shift_ratio(width: int, power: float) -> Tensor:
    """Return the token-shift mix `1 - u^power`, `[C]`: early channels look further back."""
    return 1.0 - (torch.arange(width) / width) ** power


def zigzag(width: int, head_size: int) -> Tensor:
    """Return `t |t|` with t from -1 to 1 across each head, `[C]`."""
    half = max(head_size - 1, 1) / 2
    t = (torch.arange(width) % head_size - half) / half
    return t * t.abs()


def ramp(width: int) -> Tensor:
    """Return c / (C - 1) - 1/2, `[C]`."""
    return torch.arange(width) / max(width - 1, 1) - 0.5


def decay_bias(width: int, head_size: int, depth: float) -> Tensor:
    """Return w0, `[C]`: slow to fast decays across the channels, spread inside each head.

    Args:
        width: Channels C.
        head_size: Channels of a head.
        depth: q, 0 in the first layer and 1 in the last.
    """
    position = torch.arange(width) / max(width - 1, 1)
    slope: Tensor = position ** (1.0 + depth**0.3)
    return -6.0 + 6.0 * slope + 0.5 + 2.5 * zigzag(width, head_size)


def orthogonal_(weight: Tensor, gain: float) -> Tensor:
    """Fill a low-rank factor with an orthogonal matrix of `gain`, larger if it is tall."""
    rows, columns = weight.shape
    scale = math.sqrt(rows / columns) if rows > columns else 1.0
    return nn.init.orthogonal_(weight, gain=gain * scale)


def norm_weight(layer: int, layers: int, eps: float | None) -> float:
    """Return the initial weight of the time mix's group norm.

    Officially ((1 + l) / L)^0.7, with an eps far below the variance: every head's output has the
    same size whatever its state holds. Where the state gathers evidence its size says how much
    there is; an `eps` far above the variance, with the weight sqrt(eps), keeps it:
    sqrt(eps) (y - mean) / sqrt(variance + eps) is nearly y - mean.
    """
    return float(((1 + layer) / layers) ** 0.7) if eps is None else math.sqrt(eps)


def gate_factor(rank: int, width: int, official: bool = False) -> Tensor:
    """Return g2, `[rank, C]`, such that the gate sigma(x g1) g2 starts at 1 for every channel.

    Where `official`, it is the official one.

    With g1 = 0 the gate starts at half the column sums of g2. The official g2 (orthogonal,
    gain 0.1) relies on ranks of 128 and more for these sums to have a useful size; at the rank
    of 8 that a width of 64 calls for they are near 0 with random signs, and the layer starts
    as noise. The orthogonal part is kept, the column sums are set to 2.
    """
    factor = orthogonal_(torch.empty(rank, width), 0.1)
    return factor if official else factor + (2.0 - factor.sum(0)) / rank
