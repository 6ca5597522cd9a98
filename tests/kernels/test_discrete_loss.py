"""PPO's compiled loss for Discrete actions against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from tolerances import KERNEL, assert_close
from torch import Tensor

module = pytest.importorskip("doxastic.kernels.cpu.discrete_loss")

CLIP, VALUE, ENTROPY = 0.2, 0.5, 0.3


def definition(
    logits: Tensor, value: Tensor, action: Tensor, old: Tensor, advantage: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the total and the five measures, from PyTorch's operations."""
    log_probs = logits.log_softmax(-1)
    log_ratio = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1) - old
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    policy = -torch.minimum(ratio * advantage, clipped * advantage).mean()
    error = VALUE * (value - target).square().mean()
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    rest = (ratio - 1 - log_ratio).mean(), (ratio != clipped).double().mean()
    return policy + error - ENTROPY * entropy, torch.stack([policy, error, entropy, *rest])


def inputs(steps: int, actions: int, scale: float) -> list[Tensor]:
    """Return arguments in float64 that float32 can hold, with ratios in and out of the interval."""
    torch.manual_seed(steps + actions)
    logits, action = scale * torch.randn(steps, actions), torch.randint(actions, (steps,))
    log_prob = logits.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
    old = log_prob + 0.3 * torch.randn(steps)
    others = (torch.randn(steps) for _ in range(3))
    value, advantage, target = others
    return [z.double() for z in (logits, value)] + [
        action,
        *(z.double() for z in (old, advantage, target)),
    ]


def compiled(given: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the kernel returns."""
    plain = (z.detach() if z.dtype is torch.int64 else z.detach().float() for z in given)
    return module.discrete_loss(*plain, CLIP, VALUE, ENTROPY)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("actions", [1, 2, 7])
@pytest.mark.parametrize("steps", [1, 2, 300])
def test_measures_and_gradients_equal_the_definition(
    steps: int, actions: int, scale: float
) -> None:
    given = inputs(steps, actions, scale)
    given[0].requires_grad_()
    given[1].requires_grad_()
    total, expected = definition(*given)
    dlogits, dvalue = torch.autograd.grad(total, given[:2])
    measured, ours, other = compiled(given)
    for name, x, truth in zip(("policy", "value", "entropy"), measured, expected, strict=False):
        torch.testing.assert_close(x.double(), truth.detach(), rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(measured[3:].double(), expected[3:].detach(), rtol=1e-3, atol=1e-5)
    assert_close("gradient of the value", other, dvalue, KERNEL[torch.float32])
    # Log-probabilities of the order of 100 hold five digits.
    torch.testing.assert_close(ours.double(), dlogits, rtol=1e-3, atol=1e-5 / steps)


@pytest.mark.parametrize("place", [0, 1, 3, 4, 5])
def test_what_is_not_finite_shows_in_a_measure(place: int) -> None:
    given = inputs(5, 3, 1.0)
    given[place].view(-1)[7 if place == 0 else 2] = float("nan")
    assert compiled(given)[0].isnan().any()
