"""Where the Triton kernels are tested, and the comparison with a float64 truth on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import cotangents
from tolerances import KERNEL, assert_close
from torch import Tensor

# Triton is installed on Linux alone; elsewhere every module that imports this one is skipped.
INTERPRETING = pytest.importorskip("doxastic.kernels.triton.common").INTERPRETING.value

# On the CPU in Triton's interpreter, which stands in for a GPU where there is none.
INTERPRETER = pytest.param(
    "cpu",
    marks=pytest.mark.skipif(
        not INTERPRETING, reason="the kernels were compiled: TRITON_INTERPRET is not set"
    ),
)
GPU = pytest.param("cuda", marks=pytest.mark.gpu)
every_device = pytest.mark.parametrize("device", [INTERPRETER, GPU])
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"]
)


def check(
    function: Callable[..., Any],
    truth: Callable[..., Any],
    inputs: dict[str, Tensor],
    device: str,
    dtype: torch.dtype = torch.float32,
    single: tuple[str, ...] = ("state",),
    **options: Any,
) -> None:
    """Fail unless outputs and every gradient agree with the truth in float64.

    Args:
        function: The kernel, called with everything on `device`.
        truth: The same in PyTorch, called with the same numbers in float64.
        inputs: float64.
        device: "cpu" or "cuda".
        dtype: Of the inputs.
        single: Inputs that stay in float32.
        options: Handed to both, tensors moved to `device`.
    """
    given = {n: x.to(torch.float32 if n in single else dtype) for n, x in inputs.items()}
    expected = results(truth, {name: x.double() for name, x in given.items()}, **options)
    moved = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in options.items()}
    actual = results(function, {name: x.to(device) for name, x in given.items()}, **moved)
    for name, x in expected.items():
        assert_close(name, actual[name].cpu(), x, KERNEL[dtype])


def results(
    function: Callable[..., Any], inputs: dict[str, Tensor], **options: Any
) -> dict[str, Tensor]:
    """Return outputs and gradients by name, from fixed random gradients of every output."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    outputs = function(**leaves, **options)
    gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents(outputs))
    named = {f"output {i}": y for i, y in enumerate(outputs)}
    return named | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}
