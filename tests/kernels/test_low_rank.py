"""The compiled low-rank maps equal their definition, gradients included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tolerances import KERNEL, assert_close
from torch import Tensor

low_rank = pytest.importorskip("doxastic.kernels.cpu.low_rank")

ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    low_rank.LINEAR: lambda z: z,
    low_rank.TANH: torch.tanh,
    low_rank.SIGMOID: torch.sigmoid,
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 37, 130])
@pytest.mark.parametrize("rank", [1, 8, 20, low_rank.LARGEST_RANK + 1])
@pytest.mark.parametrize("has_bias", [True, False])
def test_output_and_gradients_equal_the_definition(
    kind: int, tokens: int, rank: int, has_bias: bool
) -> None:
    torch.manual_seed(tokens + rank)
    shapes = ((tokens, 64), (64, rank), (rank, 64), (64,))
    x, down, up, bias = inputs = [
        (0.5 * torch.randn(shape, dtype=torch.float64)).requires_grad_() for shape in shapes
    ]
    expected = ACTIVATIONS[kind](x @ down) @ up + (bias if has_bias else 0.0)
    dy = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, inputs[: 4 if has_bias else 3], dy)
    x, down, up, bias = (tensor.detach().float() for tensor in inputs)
    inner, y = low_rank.forward(x, down, up, bias if has_bias else None, kind)
    dx = torch.empty_like(x)
    ddown, dup, dbias = low_rank.backward(dy.float(), x, down, up, inner, kind, dx)
    tolerance = KERNEL[torch.float32]
    assert_close("y", y, expected, tolerance)
    found = (dx, ddown, dup, dbias)
    for name, ours, truth in zip(("x", "down", "up", "bias"), found, gradients, strict=False):
        assert_close(f"gradient of {name}", ours, truth, tolerance)


def test_strided_factors_are_read_as_they_are_meant() -> None:
    torch.manual_seed(0)
    x, down, up = torch.randn(9, 64), torch.randn(8, 64).t(), torch.randn(64, 8).t()
    _, y = low_rank.forward(x, down, up, None, low_rank.TANH)
    assert_close("y", y, torch.tanh(x.double() @ down.double()) @ up.double(), 2e-6)
