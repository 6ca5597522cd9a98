"""The CPU kernels as differentiable PyTorch operators.

Each raw function of `cpu.py` is registered with `torch.library`, so that autograd, `torch.compile`,
export and fake tensors know it. The operators take contiguous float32 tensors and real tensors
for state and reset; the public functions see to both. Second derivatives exist only in the
chunked and the reference backend.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from doxastic.kernels.checks import empty_state

Tensors2 = tuple[Tensor, Tensor]
Tensors4 = tuple[Tensor, Tensor, Tensor, Tensor]
Tensors7 = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _cpu() -> ModuleType:
    """Return the module with the compiled kernels; numba is loaded on first use."""
    try:
        from doxastic.kernels import cpu
    except ImportError as error:
        raise ImportError(
            "backend 'cpu' needs numba, which could not be imported. Install it with "
            "`pip install numba`, or pass backend='chunked', which needs torch alone."
        ) from error
    return cpu


def wkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, reset: Tensor
) -> Tensors2:
    """Return y and the final state on the CPU, differentiable once in every float tensor.

    Args:
        r: Query; like w (log-decay), k, a, b of shape `[B, T, H, K]`, float32 contiguous.
        w: Log-decay.
        k: Key.
        v: Value `[B, T, H, V]`.
        a: Removal vector.
        b: Replacement vector.
        state: `[B, H, V, K]`.
        reset: `[B, T]` bool.
    """
    y, final, _, _ = _wkv7_forward(r, w, k, v, a, b, state, reset)
    return y, final


def wkv7_step(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    state: Tensor, reset: Tensor, inplace: bool,
) -> Tensors2:  # fmt: skip
    """Return y `[B, H, V]` and the new state of one step on the CPU, without gradients."""
    outputs: Tensors2 = _cpu().wkv7_step(r, w, k, v, a, b, state, reset, inplace)
    return outputs


@torch.library.custom_op("doxastic::wkv7_forward", mutates_args=(), device_types="cpu")
def _wkv7_forward(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, reset: Tensor
) -> Tensors4:
    outputs: Tensors4 = _cpu().wkv7_forward(r, w, k, v, a, b, state, reset)
    return outputs


@_wkv7_forward.register_fake
def _(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, reset: Tensor
) -> Tensors4:
    chunk, lanes = _cpu().CHUNK, _cpu().LANES
    batch, steps, heads, value_size = v.shape
    rows, columns = -(-value_size // lanes) * lanes, -(-r.shape[-1] // lanes) * lanes
    removed = v.new_empty(batch, steps, heads, rows)
    stored = v.new_empty(batch, -(-steps // chunk), heads, rows, columns)
    return v.new_empty(v.shape), state.new_empty(state.shape), removed, stored


@torch.library.custom_op("doxastic::wkv7_backward", mutates_args=(), device_types="cpu")
def _wkv7_backward(
    dy: Tensor, dfinal: Tensor,
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    reset: Tensor, u: Tensor, stored: Tensor,
) -> Tensors7:  # fmt: skip
    gradients: Tensors7 = _cpu().wkv7_backward(dy, dfinal, r, w, k, v, a, b, reset, u, stored)
    return gradients


@_wkv7_backward.register_fake
def _(
    dy: Tensor, dfinal: Tensor,
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    reset: Tensor, u: Tensor, stored: Tensor,
) -> Tensors7:  # fmt: skip
    dr, dw, dk, dv, da, db = (x.new_empty(x.shape) for x in (r, w, k, v, a, b))
    return dr, dw, dk, dv, da, db, dfinal.new_empty(dfinal.shape)


def _save_wkv7(ctx: Any, inputs: tuple[Tensor, ...], output: Tensors4) -> None:
    r, w, k, v, a, b, _, reset = inputs
    _, _, u, stored = output
    ctx.save_for_backward(r, w, k, v, a, b, reset, u, stored)
    # Else autograd would fill a zero gradient for u and stored at every call.
    ctx.set_materialize_grads(False)


def _differentiate_wkv7(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    dy, dfinal = gradients[:2]
    # Read once: under gradient checkpointing they may not be unpacked a second time.
    saved = ctx.saved_tensors
    r, _, _, v = saved[:4]
    if dy is None:
        dy = torch.zeros_like(v)
    if dfinal is None:
        dfinal = empty_state(v, v.shape[0], v.shape[2], v.shape[3], r.shape[3])
    return *_wkv7_backward(dy.contiguous(), dfinal.contiguous(), *saved), None


_wkv7_forward.register_autograd(_differentiate_wkv7, setup_context=_save_wkv7)


def weighted_moments(
    value: Tensor, log_weight: Tensor, log_decay: Tensor, state: Tensor, reset: Tensor
) -> Tensors4:
    """Return mean, spread, evidence and the final state on the CPU, differentiable once.

    Args:
        value: `[B, T, M]`, float32 contiguous, like log_weight and log_decay.
        log_weight: Log of each value's evidence.
        log_decay: Log-decay.
        state: `[B, 3, M]`: evidence, mean, spread.
        reset: `[B, T]` bool.
    """
    outputs: Tensors4 = _moments_forward(value, log_weight, log_decay, state, reset)
    return outputs


@torch.library.custom_op("doxastic::moments_forward", mutates_args=(), device_types="cpu")
def _moments_forward(
    value: Tensor, log_weight: Tensor, log_decay: Tensor, state: Tensor, reset: Tensor
) -> Tensors4:
    outputs: Tensors4 = _cpu().moments_forward(value, log_weight, log_decay, state, reset)
    return outputs


@_moments_forward.register_fake
def _(
    value: Tensor, log_weight: Tensor, log_decay: Tensor, state: Tensor, reset: Tensor
) -> Tensors4:
    mean, spread, evidence = (value.new_empty(value.shape) for _ in range(3))
    return mean, spread, evidence, state.new_empty(state.shape)


@torch.library.custom_op("doxastic::moments_backward", mutates_args=(), device_types="cpu")
def _moments_backward(
    dmean: Tensor, dspread: Tensor, devidence: Tensor, dfinal: Tensor,
    value: Tensor, log_weight: Tensor, log_decay: Tensor, state: Tensor, reset: Tensor,
    mean: Tensor, spread: Tensor, evidence: Tensor,
) -> Tensors4:  # fmt: skip
    gradients: Tensors4 = _cpu().moments_backward(
        dmean, dspread, devidence, dfinal,
        value, log_weight, log_decay, state, reset, mean, spread, evidence,
    )  # fmt: skip
    return gradients


@_moments_backward.register_fake
def _(
    dmean: Tensor, dspread: Tensor, devidence: Tensor, dfinal: Tensor,
    value: Tensor, log_weight: Tensor, log_decay: Tensor, state: Tensor, reset: Tensor,
    mean: Tensor, spread: Tensor, evidence: Tensor,
) -> Tensors4:  # fmt: skip
    dvalue, dlog_weight, dlog_decay = (value.new_empty(value.shape) for _ in range(3))
    return dvalue, dlog_weight, dlog_decay, state.new_empty(state.shape)


def _save_moments(ctx: Any, inputs: tuple[Tensor, ...], output: Tensors4) -> None:
    ctx.save_for_backward(*inputs, *output[:3])


def _differentiate_moments(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    return *_moments_backward(*(g.contiguous() for g in gradients), *ctx.saved_tensors), None


_moments_forward.register_autograd(_differentiate_moments, setup_context=_save_moments)
