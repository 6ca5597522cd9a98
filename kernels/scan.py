"""Weighted moments in plain PyTorch as three linear recurrences, each solved by doubling.

The fallback for every dtype and device, and the backend with second derivatives: what
`chunked.py` is for `wkv7`. A recurrence `x_t = d_t x_{t-1} + c_t` over `T` steps takes `log2 T`
operations on whole sequences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from doxastic.kernels.reference import accumulation_dtype
from doxastic.kernels.transforms import is_transformed


def weighted_moments(
    value: Tensor,
    log_weight: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, spread, evidence and the last state of decayed weighted moments.

    Arguments, shapes and results as in `doxastic.kernels.moments.weighted_moments`; computed in
    float64 when any input is float64, else in float32. The evidence `n`, the sum `n mean` and the
    sum of squares `n spread` obey linear recurrences. The last one gains
    `e^kappa (1 - e^kappa / n) (value - previous mean)^2`, never a difference of large sums.
    """
    dtype = accumulation_dtype(value, log_weight, log_decay)
    value, weight, decay = value.to(dtype), log_weight.to(dtype).exp(), log_decay.to(dtype).exp()
    if state is None:
        state = value.new_zeros(value.shape[0], 3, value.shape[2])
    if reset is not None:
        decay = decay.masked_fill(reset.unsqueeze(-1), 0.0)
    first_evidence, first_mean, first_spread = state.to(dtype).unsqueeze(2).unbind(1)
    evidence = _scan(decay, weight, first_evidence)
    divisor = evidence.clamp_min(torch.finfo(dtype).tiny)
    mean = _scan(decay, weight * value, first_evidence * first_mean) / divisor
    kept = decay * _previous(evidence, first_evidence) / divisor
    gain = weight * kept * (value - _previous(mean, first_mean)).square()
    spread = _scan(decay, gain, first_evidence * first_spread) / divisor
    return mean, spread, evidence, torch.stack((evidence[:, -1], mean[:, -1], spread[:, -1]), 1)


def _previous(x: Tensor, first: Tensor) -> Tensor:
    """Return the sequence one step later: `first`, then all but the last of `x`."""
    return torch.cat((first, x[:, :-1]), 1)


def _scan(decay: Tensor, gain: Tensor, first: Tensor) -> Tensor:
    """Return every `x_t = decay_t x_{t-1} + gain_t` from `x_{-1} = first`, all `[B, T, M]`."""
    gain = torch.cat((torch.addcmul(gain[:, :1], decay[:, :1], first), gain[:, 1:]), 1)
    # No transform passes a backward written by hand, and a single step needs none.
    if is_transformed() or gain.shape[1] == 1:
        return _linear_scan(decay, gain)
    x: Tensor = _LinearScan.apply(decay, gain)
    return x


def _linear_scan(decay: Tensor, gain: Tensor) -> Tensor:
    """Return every `x_t = decay_t x_{t-1} + gain_t` from zero."""
    # Before each round every step sums up `reach` steps, itself included; `kept`, which begins at
    # step `reach`, is the decay over as many.
    x, kept, reach = gain, decay[:, 1:], 1
    while reach < x.shape[1]:
        x = torch.cat((x[:, :reach], torch.addcmul(x[:, reach:], kept, x[:, :-reach])), 1)
        kept, reach = kept[:, reach:] * kept[:, :-reach], 2 * reach
    return x


class _LinearScan(torch.autograd.Function):
    """`_linear_scan` with a backward that is a scan, differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, gain: Tensor) -> Tensor:
        x = _linear_scan(decay, gain)
        ctx.save_for_backward(decay, x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        decay, x = ctx.saved_tensors
        # The gradient runs through the same recurrence backwards, one step behind.
        later = torch.cat((decay[:, 1:], torch.zeros_like(decay[:, :1])), 1)
        full: Tensor = _LinearScan.apply(later.flip(1), gradient.flip(1)).flip(1)
        return full * _previous(x, torch.zeros_like(x[:, :1])), full
