"""The backends of WKV-7: every implementation behind the same arguments, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from doxastic.kernels import chunked, operators, reference
from doxastic.kernels.checks import check_cpu, check_decay, empty_state

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""r, w, k, v, a, b."""
Backend = Callable[..., tuple[Tensor, Tensor]]
"""`(r, w, k, v, a, b, state, reset) -> (y, state)`, state and reset may be None."""
MOST_KEYS = 128
"""Largest K of backend "triton"; V has no bound."""


def _prepare(inputs: Inputs) -> Inputs:
    """Return the inputs as the compiled kernel wants them, contiguous float32 on the CPU."""
    r, w, k, v, a, b = inputs
    check_cpu(v.device, reference.accumulation_dtype(*inputs))
    if r.ndim > v.ndim:
        raise ValueError(
            f"r has shape {list(r.shape)}; backend 'cpu' takes one query per step, "
            f"{v.ndim} axes. Pass backend='chunked'."
        )
    r, w, k, v, a, b = (x.float().contiguous() for x in inputs)
    return r, w, k, v, a, b


def _chunked(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    lowest = chunked.lowest_log_decay(reference.accumulation_dtype(r, w, k, v, a, b))
    check_decay("w", w, lowest)
    return chunked.wkv7(r, w, k, v, a, b, state, reset)


def _cpu(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    r, w, k, v32, a, b = _prepare((r, w, k, v, a, b))
    batch, steps, heads, width = v.shape
    if state is None:
        state = empty_state(v, batch, heads, width, k.shape[-1])
    if reset is None:
        reset = torch.zeros(batch, steps, dtype=torch.bool)
    y, state = operators.wkv7(r, w, k, v32, a, b, state.contiguous(), reset.contiguous())
    return y.to(v.dtype), state


def cpu_step(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return y and the state after one step on the CPU, without gradients."""
    r, w, k, v32, a, b = _prepare((r, w, k, v, a, b))
    if state is None:
        state = torch.zeros(*v.shape, k.shape[-1])
    if reset is None:
        reset = torch.zeros(len(v), dtype=torch.bool)
    state, reset = state.contiguous(), reset.contiguous()
    y, state = operators.wkv7_step(r, w, k, v32, a, b, state, reset, inplace)
    return y.to(v.dtype), state


def _triton(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if k.shape[-1] > MOST_KEYS:
        raise ValueError(
            f"k has {k.shape[-1]} keys; backend 'triton' takes at most {MOST_KEYS}. "
            "Pass backend='chunked'."
        )
    from doxastic.kernels.triton import wkv7 as triton

    return triton.wkv7(r, w, k, v, a, b, state, reset)


def triton_step(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    state: Tensor | None, reset: Tensor | None, inplace: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return y and the state after one step on a GPU, without gradients."""
    from doxastic.kernels.triton import step

    return step.wkv7_step(r, w, k, v, a, b, state, reset, inplace)


BACKENDS: dict[str, Backend] = {
    "reference": reference.wkv7,
    "chunked": _chunked,
    "cpu": _cpu,
    "triton": _triton,
}
# A single step has no chunks: the eager step serves both names.
STEP_BACKENDS: dict[str, Backend] = {
    "reference": reference.wkv7_step,
    "chunked": reference.wkv7_step,
    "cpu": cpu_step,
    "triton": triton_step,
}
