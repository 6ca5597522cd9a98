"""The squared ReLU of the CPU's fused channel mix, tails of less than a vector included."""

from __future__ import annotations

import pytest
import torch

channel_mix = pytest.importorskip("doxastic.kernels.cpu.channel_mix")


@pytest.mark.parametrize("size", [1, 15, 16, 33, 640, 1_000_003])
@pytest.mark.parametrize("threads", [1, 2])
def test_output_and_gradient_equal_the_definition(size: int, threads: int) -> None:
    torch.manual_seed(size)
    x, dy = torch.randn(size, requires_grad=True), torch.randn(size)
    expected = x.relu().square()
    (gradient,) = torch.autograd.grad(expected, x, dy)
    torch.set_num_threads(threads)
    try:
        y = channel_mix.forward(x.detach())
        dx = channel_mix.backward(x.detach(), dy.clone())
    finally:
        torch.set_num_threads(1)
    assert torch.equal(y, expected)
    torch.testing.assert_close(dx, gradient, rtol=1e-6, atol=0.0)


def test_what_is_not_a_number_stays_so() -> None:
    x = torch.full((17,), float("nan"))
    assert channel_mix.forward(x).isnan().all()
    assert channel_mix.backward(x, torch.ones(17)).isnan().all()
