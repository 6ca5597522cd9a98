"""Inputs for the kernel tests, and the same call with all its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

WKV7 = ("r", "w", "k", "v", "a", "b", "state")
MOMENTS = ("value", "log_weight", "log_decay", "state")
TIME_MIX = ("r", "decay", "k", "v", "rate", "gate")
# The least log-decay that RWKV-7 can produce.
FLOOR = -0.6065306597


def wkv7_inputs(
    B: int = 2,
    T: int = 33,
    H: int = 2,
    K: int = 8,
    V: int = 8,
    *,
    queries: int | None = None,
    decay: float | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Return float64 inputs as RWKV-7 makes them, that float32 can hold, with a state."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    key = normalize(draw(B, T, H, K), dim=-1)
    inputs = {
        "r": draw(B, T, H, K) if queries is None else draw(B, T, H, queries, K),
        "w": FLOOR * draw(B, T, H, K).sigmoid(),
        "k": draw(B, T, H, K),
        "v": draw(B, T, H, V),
        "a": -key,
        "b": key * draw(B, T, H, K).sigmoid(),
        "state": draw(B, H, V, K),
    }
    if decay is not None:
        inputs["w"] = torch.full((B, T, H, K), decay)
    return {name: x.double() for name, x in inputs.items()}


def moments_inputs(B: int = 2, T: int = 33, M: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Return float64 inputs of `weighted_moments` that float32 can hold, with a state."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    state = torch.stack((draw(B, M).exp(), draw(B, M), draw(B, M).square()), 1)
    inputs = (draw(B, T, M), draw(B, T, M), -draw(B, T, M).exp(), state)
    return {name: x.double() for name, x in zip(MOMENTS, inputs, strict=True)}


def time_mix_inputs(B: int = 2, T: int = 21, H: int = 2, K: int = 16) -> dict[str, Tensor]:
    """Return float64 inputs of `time_mix` that float32 can hold, without `norm_eps`."""
    random = torch.Generator().manual_seed(0)
    C = H * K

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    inputs = {name: draw(B, T, C) for name in TIME_MIX}
    inputs |= {"k_k": 0.7 + 0.3 * draw(C), "k_a": 1.0 + 0.3 * draw(C), "r_k": draw(H, K)}
    inputs |= {"norm_weight": 1.0 + 0.3 * draw(C), "norm_bias": draw(C)}
    inputs["state"] = draw(B, H, K, K)
    return {name: x.double() for name, x in inputs.items()}


def shift_inputs(B: int = 2, T: int = 21, C: int = 32, G: int = 3) -> dict[str, Tensor]:
    """Return float64 inputs of `shift_mix` that float32 can hold."""
    random = torch.Generator().manual_seed(0)
    shapes = {"x": (B, T, C), "previous": (B, C), "mix": (G, C)}
    return {name: torch.randn(s, generator=random).double() for name, s in shapes.items()}


def belief_inputs(B: int = 2, T: int = 21, M: int = 16) -> dict[str, Tensor]:
    """Return float64 inputs of `belief_moments_features` that float32 can hold, with a state."""
    random = torch.Generator().manual_seed(0)
    raw, prior = (torch.randn(s, generator=random).double() for s in ((B, T, 3 * M), (M,)))
    return {"raw": raw, "prior": prior.exp(), "state": moments_inputs(B, 1, M)["state"]}


def strided(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same values laid out with their first two axes swapped in memory."""
    return {
        name: x.transpose(0, 1).contiguous().transpose(0, 1) if x.ndim > 1 else x
        for name, x in inputs.items()
    }


def random_reset(B: int, T: int, probability: float, seed: int = 1) -> Tensor:
    """Return independent resets `[B, T]`."""
    return torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < probability


def reset_at(B: int, T: int, steps: Iterable[int]) -> Tensor:
    """Return resets `[B, T]` at these steps of every row but the last."""
    reset = torch.zeros(B, T, dtype=torch.bool)
    for t in steps:
        reset[:-1, t] = True
    return reset


def with_gradients(
    function: Callable[..., Any], inputs: dict[str, Tensor], dtype: torch.dtype, **options: Any
) -> dict[str, Tensor]:
    """Return outputs and gradients by name, from fixed random gradients of every output."""
    leaves = {name: x.to(dtype).requires_grad_() for name, x in inputs.items()}
    outputs = function(**leaves, **options)
    gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents(outputs))
    results = {f"output {i}": y for i, y in enumerate(outputs)}
    return results | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}


def cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return fixed random gradients of the outputs, equal in every dtype and on every device."""
    random = torch.Generator().manual_seed(2)
    return [torch.randn(y.shape, generator=random).to(y) for y in outputs]
