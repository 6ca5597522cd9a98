"""The inside of RWKV-7's time mix: everything between its projections, as one operation."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from doxastic.kernels.checks import can_fuse, can_launch, check_rank, check_reset, check_tensor
from doxastic.kernels.wkv7 import wkv7

# log w = -e^(-1/2) sigmoid(decay): the decay w of a step lies in (0.545, 1).
DECAY_SCALE = math.exp(-0.5)


def time_mix(
    r: Tensor, decay: Tensor, k: Tensor, v: Tensor, rate: Tensor, gate: Tensor, *,
    k_k: Tensor, k_a: Tensor, r_k: Tensor,
    norm_weight: Tensor, norm_bias: Tensor, norm_eps: float,
    state: Tensor, reset: Tensor, double_rate: bool = False, offset: Tensor | None = None,
    write: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gated output `[B, T, C]` and the final state `[B, H, V, K]`.

    With alpha = sigmoid(rate) and, per head, kk = k k_k / |k k_k| and k~ = k (1 + (alpha-1) k_a):

        y = wkv7(r, -e^(-1/2) sigmoid(decay), k~, v, -kk, kk alpha)
        out = gate (GroupNorm(y) + (r . k~ r_k) v)

    With `double_rate` the last argument of wkv7 is kk 2 alpha; with `offset` y = (S + offset) r;
    with `write` g, wkv7 is given g v and g kk alpha: what a step replaces is scaled, the bonus is
    not. All three are composed of PyTorch's operations around `wkv7`.

    In float32 on the CPU this is one fused operation, on CUDA three: front, `wkv7` and back, or a
    single one for a step without gradient. Elsewhere it is composed of PyTorch's operations around
    `wkv7`. The output of the fused forms has the dtype of v, that of the composed one the promoted
    dtype; autocast changes none of it.

    Args:
        r: Receptance `[B, T, C]`, like decay, k, v, rate and gate.
        decay: Pre-activation of the decay.
        k: Key.
        v: Value.
        rate: Pre-activation of the in-context learning rate.
        gate: Output gate.
        k_k: `[C]`, scales the key that is removed.
        k_a: `[C]`, how far the rate scales the key that is written.
        r_k: `[H, K]`, the bonus of the current step.
        norm_weight: `[C]`, of the group norm with one group a head.
        norm_bias: `[C]`.
        norm_eps: Added to the variance.
        state: Matrix state `[B, H, V, K]` before the first step.
        reset: `[B, T]` bool.
        double_rate: Whether the rate of the removal lies in (0, 2).
        offset: `[H, V, K]`, added to the state where it is read, never carried; None for nothing.
        write: `[B, T, H]`, scales what is written and what is removed for it; None for 1.

    Raises:
        ValueError: A shape, dtype or device does not fit.

    Source:
        RWKV-LM, RWKV-v7/rwkv_v7_numpy.py.
    """
    sequences = {"r": r, "decay": decay, "k": k, "v": v, "rate": rate, "gate": gate}
    vectors = {"k_k": k_k, "k_a": k_a, "norm_weight": norm_weight, "norm_bias": norm_bias}
    _check(sequences, vectors, r_k, state, reset)
    parameters = (k_k, k_a, r_k, norm_weight, norm_bias)
    if double_rate or offset is not None or write is not None:
        if offset is not None:
            check_tensor("offset", offset, "[H, V, K]", state.shape[1:], state, "state")
        if write is not None:
            check_tensor("write", write, "[B, T, H]", (*r.shape[:2], r_k.shape[0]), r, "r and r_k")
        return _composed(
            r, decay, k, v, rate, gate, *parameters, norm_eps, state, reset,
            2.0 if double_rate else 1.0, offset, write,
        )  # fmt: skip
    if can_fuse(r_k.shape[1], *sequences.values(), *parameters, state):
        from doxastic.kernels.cpu.time_mix import FusedTimeMix

        fused: tuple[Tensor, Tensor] = FusedTimeMix.apply(
            r, decay, k, v, rate, gate, *parameters, norm_eps, state, reset
        )
        return fused
    if state.dtype is torch.float32 and can_launch(*sequences.values(), *parameters):
        return _launched(r, decay, k, v, rate, gate, *parameters, norm_eps, state, reset)
    return _composed(r, decay, k, v, rate, gate, *parameters, norm_eps, state, reset)


def _check(
    sequences: dict[str, Tensor], vectors: dict[str, Tensor], r_k: Tensor, state: Tensor,
    reset: Tensor,
) -> None:  # fmt: skip
    """Raise `ValueError` unless every argument of `time_mix` fits r and r_k."""
    r = sequences["r"]
    check_rank("r", r, "[B, T, C]", 3)
    check_rank("r_k", r_k, "[H, K]", 2)
    for name, x in sequences.items():
        check_tensor(name, x, "[B, T, C]", r.shape, r, "r")
    heads, size = r_k.shape
    if r.shape[2] % size:
        raise ValueError(
            f"r_k has shape {list(r_k.shape)}; expected [H, K] with H K = C = {r.shape[2]}, the "
            "width of r."
        )
    check_tensor("r_k", r_k, "[H, K]", (r.shape[2] // size, size), r, "r")
    for name, x in vectors.items():
        check_tensor(name, x, "[C]", (heads * size,), r, "r_k")
    check_tensor("state", state, "[B, H, V, K]", (r.shape[0], heads, size, size), r, "r and r_k")
    check_reset(reset, "[B, T]", r.shape[:2], r)


def _launched(
    r: Tensor, decay: Tensor, k: Tensor, v: Tensor, rate: Tensor, gate: Tensor,
    k_k: Tensor, k_a: Tensor, r_k: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    norm_eps: float, state: Tensor, reset: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what `time_mix` returns, from Triton kernels before and after `wkv7`."""
    if r.shape[1] == 1 and not torch.is_grad_enabled():
        from doxastic.kernels.triton.step import time_mix_step

        return time_mix_step(
            r, decay, k, v, rate, gate, k_k, k_a, r_k, norm_weight, norm_bias, norm_eps,
            state, reset,
        )  # fmt: skip
    from doxastic.kernels.triton.time_mix_back import back
    from doxastic.kernels.triton.time_mix_front import front

    heads = (*r.shape[:2], *r_k.shape)
    w, key, a, b = front(decay, k, rate, k_k, k_a, r_k.shape[0])
    y, state = wkv7(r.view(heads), w, key, v.view(heads), a, b, state=state, reset=reset)
    out: Tensor = back(y, r, key, v, gate, r_k, norm_weight, norm_bias, norm_eps)
    return out, state


def _composed(
    r: Tensor, decay: Tensor, k: Tensor, v: Tensor, rate: Tensor, gate: Tensor,
    k_k: Tensor, k_a: Tensor, r_k: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    norm_eps: float, state: Tensor, reset: Tensor,
    removal: float = 1.0, offset: Tensor | None = None, write: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what `time_mix` returns, from PyTorch's operations and `wkv7`."""
    heads = (*r.shape[:2], *r_k.shape)
    alpha = rate.sigmoid()
    kk = F.normalize((k * k_k).view(heads), dim=-1)
    key = (k * (1 + (alpha - 1) * k_a)).view(heads)
    value, replaced = v.view(heads), removal * kk * alpha.view(heads)
    if write is not None:
        value, replaced = value * write.unsqueeze(-1), replaced * write.unsqueeze(-1)
    y, state = wkv7(
        r.view(heads), (-DECAY_SCALE * decay.sigmoid()).view(heads), key, value,
        -kk, replaced, state=state, reset=reset,
    )  # fmt: skip
    if offset is not None:
        y = y + torch.einsum("hvk,bthk->bthv", offset.to(y.dtype), r.view(heads).to(y.dtype))
    # A norm, alone of all here, wants its parameters in the dtype of its input.
    dtype = torch.promote_types(y.dtype, torch.promote_types(norm_weight.dtype, norm_bias.dtype))
    y, weight, bias = y.to(dtype), norm_weight.to(dtype), norm_bias.to(dtype)
    y = F.group_norm(y.flatten(0, 1).flatten(1), r_k.shape[0], weight, bias, norm_eps)
    bonus = (r.view(heads) * key * r_k).sum(-1, keepdim=True) * v.view(heads)
    return (y.view(r.shape) + bonus.flatten(2)) * gate, state
