"""The public decayed weighted moments: checks, the choice of a backend, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from doxastic.kernels import operators, reference, scan
from doxastic.kernels.checks import (
    automatic,
    check_cpu,
    check_decay,
    check_rank,
    check_reset,
    check_state,
    check_tensor,
    find_backend,
)
from doxastic.kernels.transforms import BLIND, check_backend, is_transformed

Backend = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
"""`(value, log_weight, log_decay, state, reset) -> (mean, spread, evidence, state)`."""


def weighted_moments(
    value: Tensor,
    log_weight: Tensor,
    log_decay: Tensor,
    *,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, spread and evidence of everything seen so far, and the last state.

    Each value z counts with the weight e^kappa, which decays by e^omega at every later step:

        n_t = e^{omega_t} n_{t-1} + e^{kappa_t}        q_t = e^{kappa_t} / n_t
        m_t = m_{t-1} + q_t (z_t - m_{t-1})
        s_t = (1 - q_t) (s_{t-1} + q_t (z_t - m_{t-1})^2)

    m is the weighted mean, s the weighted variance around it, never negative. Everything is
    computed in float32, or in float64 when any input is float64, under autocast too. Gradients
    reach every input and the initial state; second derivatives need backend "chunked" or
    "reference".

    Args:
        value: Values z `[B, T, M]`.
        log_weight: Evidence log-weights kappa `[B, T, M]`. Keep them within about -80 and 80:
            the evidence is a float32.
        log_decay: Log-decays omega `[B, T, M]`, at most 0, applied to what came before the step.
            Checked on the CPU; elsewhere a positive value goes unnoticed.
        state: State before the first step `[B, 3, M]`, float32: evidence, mean, spread. None,
            or zeros: nothing was seen.
        reset: `[B, T]` bool; true at t clears the state before step t is consumed.
        backend: "auto", or a key of `BACKENDS`. "auto" looks at device and dtype, and takes
            "chunked" under `torch.func` and forward-mode differentiation.

    Returns:
        mean, spread, evidence, each `[B, T, M]`, and the state after the last step `[B, 3, M]`,
        all in the dtype of the computation, float32 for half precision too.

    Raises:
        ValueError: A shape, dtype, device or backend does not fit.

    Source: West, "Updating mean and variance estimates", Communications of the ACM 22(9), 1979.
    """
    check_rank("value", value, "[B, T, M]", 3)
    batch, _, width = value.shape
    for name, x in (("value", value), ("log_weight", log_weight), ("log_decay", log_decay)):
        check_tensor(name, x, "[B, T, M]", value.shape, value, "value")
    dtype = reference.accumulation_dtype(value, log_weight, log_decay)
    check_state(state, "[B, 3, M]", (batch, 3, width), dtype, value)
    check_reset(reset, "[B, T]", value.shape[:2], value)
    check_decay("log_decay", log_decay)
    if backend == "auto":
        obstacle = BLIND if is_transformed() else ""
        backend = automatic("weighted_moments", value.device, dtype, obstacle)
    else:
        check_backend(backend)
    return find_backend(backend, BACKENDS)(value, log_weight, log_decay, state, reset)


def _cpu(
    value: Tensor,
    log_weight: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_cpu(value.device, reference.accumulation_dtype(value, log_weight, log_decay))
    batch, steps, width = value.shape
    if state is None:
        state = torch.zeros(batch, 3, width)
    if reset is None:
        reset = torch.zeros(batch, steps, dtype=torch.bool)
    value, log_weight, log_decay, state = (
        x.float().contiguous() for x in (value, log_weight, log_decay, state)
    )
    return operators.weighted_moments(value, log_weight, log_decay, state, reset.contiguous())


def _triton(
    value: Tensor,
    log_weight: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from doxastic.kernels.triton import moments as triton

    batch, steps, width = value.shape
    if state is None:
        state = torch.zeros(batch, 3, width, device=value.device)
    if reset is None:
        reset = torch.zeros(batch, steps, dtype=torch.bool, device=value.device)
    return triton.weighted_moments(value, log_weight, log_decay, state, reset)


BACKENDS: dict[str, Backend] = {
    "reference": reference.weighted_moments,
    "chunked": scan.weighted_moments,
    "cpu": _cpu,
    "triton": _triton,
}
