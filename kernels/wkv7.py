"""The public WKV-7 recurrence: checks, the choice of a backend, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from doxastic.kernels import reference
from doxastic.kernels.checks import (
    automatic,
    check_decay,
    check_rank,
    check_reset,
    check_state,
    check_tensor,
    find_backend,
    without_autocast,
)
from doxastic.kernels.transforms import BLIND, check_backend, is_transformed
from doxastic.kernels.wkv7_backends import (
    BACKENDS,
    MOST_KEYS,
    STEP_BACKENDS,
    Inputs,
    cpu_step,
    triton_step,
)


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Return the outputs `y` and the last state of the WKV-7 recurrence.

    For every batch row and head, with `S_t` a matrix `[V, K]` (row = value, column = key):

        S_t = S_{t-1} diag(e^{w_t}) + (S_{t-1} a_t) b_t^T + v_t k_t^T
        y_t = S_t r_t

    Everything is computed in float32, or in float64 when any input is float64, under autocast too.
    Gradients reach every input and the initial state; second derivatives need backend "chunked" or
    "reference".

    Args:
        r: Query (receptance) `[B, T, H, K]`, or Q queries per step `[B, T, H, Q, K]`.
        w: Log-decay `[B, T, H, K]`, at most 0. Checked on the CPU; elsewhere a positive value
            goes unnoticed. The chunked backend also needs `w >= chunked.lowest_log_decay`, the
            others take whatever is not positive.
        k: Key `[B, T, H, K]`.
        v: Value `[B, T, H, V]`.
        a: Removal vector `[B, T, H, K]`; RWKV-7 has minus the normalised key.
        b: Replacement vector `[B, T, H, K]`; RWKV-7 has the normalised key times its rate.
        state: State before the first step `[B, H, V, K]`, float32; None for zeros.
        reset: `[B, T]` bool; true at t clears the state before step t is consumed.
        backend: "auto", or a key of `BACKENDS`. "auto" looks at device and dtype, and takes
            "chunked" under `torch.func` and forward-mode differentiation.

    Returns:
        `y [B, T, H, V]`, or `[B, T, H, Q, V]`, in the dtype of v; and the state after the last
        step `[B, H, V, K]` in the dtype of the computation, float32 for half precision too.

    Raises:
        ValueError: A shape, dtype, device or backend does not fit.

    Source: RWKV-7 "Goose" (Peng et al., 2025, arXiv 2503.14456), section 4.
    """
    check_rank("v", v, "[B, T, H, V]", 4)
    dtype = _check("[B, T, H", v, (r, w, k, v, a, b), state, reset)
    check_decay("w", w)
    if backend == "auto":
        backend = automatic("wkv7", v.device, dtype, _obstacle(r, v, k))
    else:
        check_backend(backend)
    with without_autocast(v):
        return find_backend(backend, BACKENDS)(r, w, k, v, a, b, state, reset)


def wkv7_step(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the output and the state after one step of `wkv7`.

    Equal to `wkv7` with `T = 1`, without the cost of a sequence. The sign of w is not checked.

    Args:
        r: Query `[B, H, K]`, or several `[B, H, Q, K]`.
        w: Log-decay `[B, H, K]`, at most 0.
        k: Key `[B, H, K]`.
        v: Value `[B, H, V]`.
        a: Removal vector `[B, H, K]`.
        b: Replacement vector `[B, H, K]`.
        state: State before the step `[B, H, V, K]`, float32; None for zeros.
        reset: `[B]` bool; true clears the state before the step.
        backend: "auto", or a key of `STEP_BACKENDS`.
        inplace: Write the new state over `state` and return that tensor. Without gradients only.

    Returns:
        `y [B, H, V]` (or `[B, H, Q, V]`) in the dtype of v, and the state `[B, H, V, K]`.

    Raises:
        ValueError: A shape, dtype, device or backend does not fit, or `inplace` cannot be done.
    """
    check_rank("v", v, "[B, H, V]", 3)
    dtype = _check("[B, H", v, (r, w, k, v, a, b), state, reset)
    tracked = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (r, w, k, v, a, b, state)
    )
    if inplace:
        _check_inplace(state, dtype, tracked)
    if backend == "auto":
        backend = automatic("wkv7_step", v.device, dtype, _obstacle(r, v, k))
    else:
        check_backend(backend)
    step = find_backend(backend, STEP_BACKENDS)
    if step is cpu_step and not tracked and not torch.compiler.is_compiling():
        return cpu_step(r, w, k, v, a, b, state, reset, inplace)
    if step is triton_step and not tracked:
        return triton_step(r, w, k, v, a, b, state, reset, inplace)
    if step in (cpu_step, triton_step):
        r, w, k, v, a, b = (x.unsqueeze(1) for x in (r, w, k, v, a, b))
        sequence = BACKENDS[backend]
        y, new = sequence(r, w, k, v, a, b, state, None if reset is None else reset.unsqueeze(1))
        y = y.squeeze(1)
    else:
        with without_autocast(v):
            y, new = step(r, w, k, v, a, b, state, reset)
    return y, state.copy_(new) if inplace and state is not None else new


def _obstacle(r: Tensor, v: Tensor, k: Tensor) -> str:
    """Return what keeps the fast backend of the device from it, other than the dtype."""
    if is_transformed():
        return BLIND
    if v.is_cuda:
        return "" if k.shape[-1] <= MOST_KEYS else f"the kernels take K of at most {MOST_KEYS}"
    return "the compiled kernel reads one query per step" if r.ndim > v.ndim else ""


def _check(
    letters: str, v: Tensor, inputs: Inputs, state: Tensor | None, reset: Tensor | None
) -> torch.dtype:
    """Check everything against the leading axes of v and return the dtype to compute in."""
    r, w, k, _, a, b = inputs
    lead, values = v.shape[:-1], v.shape[-1]
    check_rank("k", k, f"{letters}, K]", v.ndim)
    keys = k.shape[-1]
    for name, x in (("v", v), ("k", k), ("w", w), ("a", a), ("b", b)):
        axis, width = ("V", values) if name == "v" else ("K", keys)
        check_tensor(name, x, f"{letters}, {axis}]", (*lead, width), v, "v and k")
    if r.ndim == v.ndim + 1:
        check_rank("r", r, f"{letters}, Q, K]", r.ndim)
        check_tensor("r", r, f"{letters}, Q, K]", (*lead, r.shape[-2], keys), v, "v and k")
    else:
        check_tensor("r", r, f"{letters}, K] or {letters}, Q, K]", (*lead, keys), v, "v and k")
    dtype = reference.accumulation_dtype(*inputs)
    check_state(state, "[B, H, V, K]", (lead[0], lead[-1], values, keys), dtype, v)
    check_reset(reset, "[B, T]" if len(lead) == 3 else "[B]", lead[:-1], v)
    return dtype


def _check_inplace(state: Tensor | None, dtype: torch.dtype, tracked: bool) -> None:
    if state is None or state.dtype != dtype or not state.is_contiguous() or tracked:
        came = "None" if state is None else f"{state.dtype}, contiguous: {state.is_contiguous()}"
        raise ValueError(
            f"inplace needs a contiguous {dtype} state and no gradients; state is {came}, "
            f"gradients {'are' if tracked else 'are not'} recorded."
        )
