"""Eager recurrences: the equations as they are written, and the ground truth for every backend.

One Python step per time step, any floating dtype, every derivative by autograd. Time is taken
apart with `unbind(1)`: the backward of `x[:, t]` allocates a gradient as large as `x` at every
step, which makes the backward quadratic in `T`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Moments = tuple[Tensor, Tensor, Tensor]
"""Evidence, mean and spread."""


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype to compute in: the promoted dtype of the tensors, at least float32."""
    dtype = torch.float32
    for other in {tensor.dtype for tensor in tensors}:
        dtype = torch.promote_types(dtype, other)
    return dtype


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state of the WKV-7 recurrence, step by step.

    Arguments, shapes and results as in `doxastic.kernels.wkv7.wkv7`, except that the state has
    the dtype of the computation: float64 when any input is float64, else float32.
    """
    dtype = accumulation_dtype(r, w, k, v, a, b)
    batch, steps, heads, value_size = v.shape
    if state is None:
        state = torch.zeros(batch, heads, value_size, k.shape[-1], dtype=dtype, device=v.device)
    state = state.to(dtype)
    sequences = [x.to(dtype).unbind(1) for x in (r, w, k, v, a, b)]
    resets = [None] * steps if reset is None else reset.unbind(1)
    outputs = []
    for *inputs, reset_t in zip(*sequences, resets, strict=True):
        y, state = _step(inputs, state, reset_t)
        outputs.append(y)
    return torch.stack(outputs, 1).to(v.dtype), state


def wkv7_step(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output and the state after one step; inputs as `wkv7` without `T`."""
    dtype = accumulation_dtype(r, w, k, v, a, b)
    if state is None:
        state = torch.zeros(*v.shape, k.shape[-1], dtype=dtype, device=v.device)
    y, state = _step([x.to(dtype) for x in (r, w, k, v, a, b)], state.to(dtype), reset)
    return y.to(v.dtype), state


def _step(inputs: Sequence[Tensor], state: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    r, w, k, v, a, b = inputs
    if reset is not None:
        # Filling, not multiplying: neither a gradient nor a NaN crosses a reset.
        state = state.masked_fill(reset[:, None, None, None], 0.0)
    removed = state @ a.unsqueeze(-1)  # [B, H, V, 1]
    state = state * w.exp().unsqueeze(-2) + removed * b.unsqueeze(-2)
    state = state + v.unsqueeze(-1) * k.unsqueeze(-2)
    if r.ndim == 4:  # [B, H, Q, K]
        return r @ state.mT, state
    return (state @ r.unsqueeze(-1)).squeeze(-1), state


def weighted_moments(
    value: Tensor,
    log_weight: Tensor,
    log_decay: Tensor,
    state: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, spread, evidence and the last state of decayed weighted moments.

    Arguments, shapes and results as in `doxastic.kernels.moments.weighted_moments`, except that
    the state has the dtype of the computation.
    """
    dtype = accumulation_dtype(value, log_weight, log_decay)
    batch, steps, width = value.shape
    if state is None:
        state = torch.zeros(batch, 3, width, dtype=dtype, device=value.device)
    evidence, mean, spread = state.to(dtype).unbind(1)
    sequences = [x.to(dtype).unbind(1) for x in (value, log_weight, log_decay)]
    resets = [None] * steps if reset is None else reset.unbind(1)
    means, spreads, evidences = [], [], []
    for value_t, log_weight_t, log_decay_t, reset_t in zip(*sequences, resets, strict=True):
        if reset_t is not None:
            evidence, mean, spread = (
                x.masked_fill(reset_t[:, None], 0.0) for x in (evidence, mean, spread)
            )
        decayed = log_decay_t.exp() * evidence
        evidence, mean, spread = merge_moments(
            (decayed, mean, spread), (log_weight_t.exp(), value_t, torch.zeros_like(value_t))
        )
        means.append(mean)
        spreads.append(spread)
        evidences.append(evidence)
    last = torch.stack((evidence, mean, spread), 1)
    return torch.stack(means, 1), torch.stack(spreads, 1), torch.stack(evidences, 1), last


def merge_moments(first: Moments, second: Moments) -> Moments:
    """Return `(evidence, mean, spread)` of the union of two weighted samples.

    With the shares `p = n1 / n` and `q = n2 / n` of `n = n1 + n2`:
    `mean = m1 + q (m2 - m1)` and `spread = p s1 + q s2 + p q (m2 - m1)^2`. Every term of the
    spread is non-negative, so no rounding makes it negative (Chan, Golub and LeVeque, 1983).
    An empty union, `n = 0`, keeps the first mean and has no spread.
    """
    evidence = first[0] + second[0]
    divisor = evidence.clamp_min(torch.finfo(evidence.dtype).tiny)
    share_first, share_second = first[0] / divisor, second[0] / divisor
    shift = second[1] - first[1]
    mean = first[1] + share_second * shift
    spread = share_first * (first[2] + share_second * shift.square()) + share_second * second[2]
    return evidence, mean, spread
