"""Cases of `kernels.py --device cuda`: what they are made of, WKV-7 against fla, and its step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from peers import fla_wkv7
from torch import Tensor
from torch.nn.functional import normalize

from doxastic.kernels.wkv7 import wkv7, wkv7_step

Inputs = dict[str, Tensor]
Function = Callable[..., Sequence[Tensor]]
FORWARD, BOTH = "forward", "forward + backward"
PASSES = (FORWARD, BOTH)
OURS, OURS_RESETS, COMPOSED = "doxastic", "doxastic, resets", "composed"

# (B, T, H, K = V).
WKV7_SHAPES = (
    (8, 4096, 32, 64), (1, 65536, 32, 64), (4096, 128, 4, 32), (256, 512, 4, 32), (16, 64, 4, 64),
)  # fmt: skip
# (B, H, K = V): decoding of one and of 64 sequences, acting in 4096 environments.
STEP_SHAPES = ((1, 32, 64), (64, 32, 64), (4096, 4, 32))
DTYPES = (torch.bfloat16, torch.float32)
# Of the arms that have resets: one in about so many steps.
RESET_STEPS = 128


class Contender(NamedTuple):
    """One way to compute what a case asks for."""

    function: Function
    ours: bool = False
    passes: tuple[str, ...] = PASSES
    truth: Function | None = None
    """What it has to equal in float64; None for the truth of the case."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation at one shape and dtype."""

    operation: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    inputs: Inputs
    """By name, in the order in which contenders take them; all but bools have gradients."""
    outputs: tuple[str, ...]
    """Names of what contenders return."""
    differentiated: int
    """So many of the outputs, from the first on, get a gradient; 0 without backward pass."""
    contenders: dict[str, Contender]
    truth: Function
    """The same from float64 inputs."""
    checked: Inputs
    """Inputs of the comparison with the truth."""
    pick: Callable[[str, Tensor], Tensor] = lambda _, x: x
    """Takes of an input, an output or their gradients what is compared."""

    @property
    def title(self) -> str:
        """Return what identifies the case in a file of results."""
        return title(self.operation, self.shape, self.dtype)


def title(operation: str, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """Return what identifies a case in a file of results."""
    return f"{operation} {shape} {dtype_name(dtype)}"


def dtype_name(dtype: torch.dtype) -> str:
    """Return "bfloat16" for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


class Draw:
    """Draws normal numbers, the same for every dtype."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self.dtype, self.device = dtype, device
        self.random = torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        """Return normal numbers in float32."""
        return torch.randn(*shape, generator=self.random, device=self.device)

    def resets(self, *shape: int) -> Tensor:
        """Return bools of which one in `RESET_STEPS` is true."""
        return torch.rand(*shape, generator=self.random, device=self.device) < 1 / RESET_STEPS

    def cast(self, inputs: Inputs, *single: str) -> Inputs:
        """Return the float inputs in the dtype of the case, in float32 where named."""
        return {
            name: x.to(self.dtype) if x.is_floating_point() and name not in single else x
            for name, x in inputs.items()
        }


def _recurrence_inputs(draw: Draw, *shape: int) -> Inputs:
    """Return r, w, k, v, a, b as an RWKV-7 layer makes them."""
    r, w, k, v, key, rate = (draw(*shape) for _ in range(6))
    key = normalize(key, dim=-1)
    w = fla_wkv7.LOWER_BOUND * w.sigmoid()
    return {"r": r, "w": w, "k": k, "v": v, "a": -key, "b": key * rate.sigmoid()}


def corners(name: str, x: Tensor) -> Tensor:
    """Return the first and the last batch row and head, whose chains depend on nothing else."""
    x = x[:: max(1, len(x) - 1)]
    if name == "reset":
        return x
    axis = 1 if name == "state" else 2
    last = x.shape[axis] - 1
    return x.index_select(axis, torch.tensor([0, last][: last + 1], device=x.device))


def wkv7_case(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cuda") -> Case:
    """Return WKV-7 of ours and of fla; compared at the whole length, chain by chain.

    The truth is the chunk form in float64, itself held to the recurrence, see `gpu.checks`.
    """
    draw = Draw(dtype, device)
    inputs = draw.cast(_recurrence_inputs(draw, *shape))
    inputs["reset"] = draw.resets(*shape[:2])

    def ours(*x: Tensor) -> Sequence[Tensor]:
        return wkv7(*x[:6], backend="triton")

    def ours_resets(*x: Tensor) -> Sequence[Tensor]:
        return wkv7(*x[:6], reset=x[6], backend="triton")

    def truth(*x: Tensor) -> Sequence[Tensor]:
        return wkv7(*x[:6], backend="chunked")

    def truth_resets(*x: Tensor) -> Sequence[Tensor]:
        return wkv7(*x[:6], reset=x[6], backend="chunked")

    contenders = {
        OURS: Contender(ours, ours=True),
        OURS_RESETS: Contender(ours_resets, ours=True, truth=truth_resets),
    }
    if fla_wkv7.is_installed():
        passes = {fla_wkv7.CHUNK_64_STORED: (BOTH,), fla_wkv7.RECURRENT: (FORWARD,)}
        for name, peer in fla_wkv7.functions().items():
            contenders[name] = Contender(
                lambda *x, peer=peer: peer(*x[:6]), passes=passes.get(name, PASSES)
            )
    return Case(
        operation="wkv7", shape=shape, dtype=dtype, inputs=inputs, outputs=("y", "state"),
        differentiated=1, contenders=contenders, truth=truth, checked=inputs, pick=corners,
    )  # fmt: skip


def step_case(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cuda") -> Case:
    """Return a step of WKV-7 that overwrites its state, against PyTorch's operations."""
    draw = Draw(dtype, device)
    inputs = _recurrence_inputs(draw, *shape) | {"state": draw(*shape, shape[-1])}
    inputs = draw.cast(inputs, "state")

    def fused(*x: Tensor) -> Sequence[Tensor]:
        return wkv7_step(*x[:6], state=x[6], backend="triton", inplace=True)

    def composed(*x: Tensor) -> Sequence[Tensor]:
        return wkv7_step(*x[:6], state=x[6], backend="reference")

    return Case(
        operation="wkv7_step", shape=shape, dtype=dtype, inputs=inputs, outputs=("y", "state"),
        differentiated=0, truth=composed, checked=inputs,
        contenders={
            OURS: Contender(fused, ours=True, passes=(FORWARD,)),
            COMPOSED: Contender(composed, passes=(FORWARD,)),
        },
    )  # fmt: skip
