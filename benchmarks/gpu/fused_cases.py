"""Cases of `kernels.py --device cuda`: the fused operations around WKV-7 against PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from doxastic.kernels import time_mix as mixing
from doxastic.kernels import token_shift
from doxastic.kernels.belief_moments import (
    belief_features,
    belief_moments,
    belief_moments_features,
)
from doxastic.kernels.channel_mix import squared_relu
from doxastic.kernels.moments import weighted_moments
from gpu.cases import COMPOSED, OURS, Case, Contender, Draw, Function, Inputs

# (B, T, M).
MOMENTS_SHAPES = ((8, 4096, 256), (4096, 128, 64), (256, 512, 64))
# (B, T, H, K = V) of a layer.
LAYER_SHAPES = ((8, 4096, 32, 64), (256, 512, 4, 32), (16, 64, 4, 64))
# RWKV-7 mixes the current and the previous input six times.
MIXES = 6


def moments_case(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cuda") -> Case:
    """Return the decayed weighted moments, fused against PyTorch's operations."""
    draw = Draw(dtype, device)

    def inputs(*shape: int) -> Inputs:
        value, log_weight, decay = (draw(*shape) for _ in range(3))
        return draw.cast(
            {"value": value, "log_weight": log_weight, "log_decay": -0.1 * decay.exp()}
        )

    def fused(*x: Tensor) -> Sequence[Tensor]:
        return weighted_moments(*x, backend="triton")

    def composed(*x: Tensor) -> Sequence[Tensor]:
        return weighted_moments(*x, backend="chunked")

    return _fused_case(
        "weighted_moments", shape, dtype, inputs(*shape), inputs(*_short(shape)),
        ("mean", "spread", "evidence", "state"), 3, fused, composed,
    )  # fmt: skip


def belief_case(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cuda") -> Case:
    """Return the belief's features, fused against PyTorch's operations around the moments."""
    draw = Draw(dtype, device)

    def inputs(batch: int, steps: int, size: int) -> Inputs:
        raw, prior, state = draw(batch, steps, 3 * size), draw(size).exp(), draw(batch, 3, size)
        inputs = {"raw": raw, "prior": prior, "state": state.square()}
        return draw.cast(inputs, "prior", "state") | {"reset": draw.resets(batch, steps)}

    def fused(raw: Tensor, prior: Tensor, state: Tensor, reset: Tensor) -> Sequence[Tensor]:
        return belief_moments_features(raw, prior, state=state, reset=reset)

    def composed(raw: Tensor, prior: Tensor, state: Tensor, reset: Tensor) -> Sequence[Tensor]:
        *belief, state = belief_moments(raw, prior, state=state, reset=reset)
        return belief_features(*belief), state

    return _fused_case(
        "belief_moments_features", shape, dtype, inputs(*shape), inputs(*_short(shape)),
        ("features", "state"), 1, fused, composed,
    )  # fmt: skip


def time_mix_case(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cuda") -> Case:
    """Return the inside of a time mix, fused against PyTorch's operations around `wkv7`."""
    draw = Draw(dtype, device)
    names = ("k_k", "k_a", "r_k", "norm_weight", "norm_bias", "state")

    def inputs(batch: int, steps: int, heads: int, size: int) -> Inputs:
        width = heads * size
        inputs = {x: draw(batch, steps, width) for x in ("r", "decay", "k", "v", "rate", "gate")}
        inputs |= {x: 1.0 + 0.3 * draw(width) for x in ("k_k", "k_a")}
        inputs |= {"r_k": draw(heads, size)}
        inputs |= {x: 1.0 + 0.3 * draw(width) for x in ("norm_weight", "norm_bias")}
        inputs |= {"state": draw(batch, heads, size, size)}
        return draw.cast(inputs, "state") | {"reset": draw.resets(batch, steps)}

    eps = 1e-5 * shape[-1]

    def fused(*x: Tensor) -> Sequence[Tensor]:
        parameters = dict(zip(names, x[6:12], strict=True))
        return mixing.time_mix(*x[:6], **parameters, norm_eps=eps, reset=x[12])

    def composed(*x: Tensor) -> Sequence[Tensor]:
        return mixing._composed(*x[:11], eps, *x[11:])

    return _fused_case(
        "time_mix", shape, dtype, inputs(*shape), inputs(*_short(shape)), ("out", "state"), 1,
        fused, composed,
    )  # fmt: skip


def shift_case(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cuda") -> Case:
    """Return all mixes of a token shift, fused against PyTorch's operations."""
    draw = Draw(dtype, device)

    def inputs(batch: int, steps: int, heads: int, size: int) -> Inputs:
        width = heads * size
        inputs = {"x": draw(batch, steps, width), "previous": draw(batch, width)}
        inputs |= {"reset": draw.resets(batch, steps), "mix": draw(MIXES, width).sigmoid()}
        return draw.cast(inputs)

    outputs = tuple(f"mixed {i}" for i in range(MIXES))
    return _fused_case(
        "shift_mix", shape, dtype, inputs(*shape), inputs(*_short(shape)), outputs, MIXES,
        token_shift.shift_mix, token_shift._composed,
    )  # fmt: skip


def squared_relu_case(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cuda") -> Case:
    """Return the squared ReLU of a channel mix four times as wide as the layer."""
    draw = Draw(dtype, device)

    def inputs(batch: int, steps: int, heads: int, size: int) -> Inputs:
        return draw.cast({"x": draw(batch, steps, 4 * heads * size)})

    def fused(x: Tensor) -> Sequence[Tensor]:
        return (squared_relu(x),)

    def composed(x: Tensor) -> Sequence[Tensor]:
        return (torch.relu(x).square(),)

    return _fused_case(
        "squared_relu", shape, dtype, inputs(*shape), inputs(*_short(shape)), ("y",), 1,
        fused, composed,
    )  # fmt: skip


def _short(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape with few rows and steps, none of them a power of two."""
    return (min(3, shape[0]), min(515, shape[1]), *shape[2:])


def _fused_case(
    operation: str, shape: tuple[int, ...], dtype: torch.dtype, inputs: Inputs, checked: Inputs,
    outputs: tuple[str, ...], differentiated: int, fused: Function, composed: Function,
) -> Case:  # fmt: skip
    """Return a case of which the composed form in float64 is the truth."""
    contenders = {OURS: Contender(fused, ours=True), COMPOSED: Contender(composed)}
    return Case(
        operation=operation, shape=shape, dtype=dtype, inputs=inputs, outputs=outputs,
        differentiated=differentiated, contenders=contenders, truth=composed, checked=checked,
    )  # fmt: skip
