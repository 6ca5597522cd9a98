"""Settings that no training can use are refused, and the smallest epsilon is safe in float32."""

from __future__ import annotations

import pytest
import torch

from doxastic.language.training_config import SMALLEST_EPSILON, TrainingConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updates": 0}, "updates is 0; expected 1 or more"),
        ({"accumulation": -1}, "accumulation is -1; expected 1 or more"),
        ({"backpropagate_windows": 0}, "backpropagate_windows is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"final_learning_rate": 1.0}, "final_learning_rate is 1.0; expected at most"),
        ({"decay_fraction": 1.5}, "decay_fraction is 1.5; expected 0 to 1"),
        ({"betas": (0.9, 1.0)}, r"betas is \[0.9, 1.0\]; expected two numbers in \[0, 1\)"),
        ({"epsilon": 1e-20}, "epsilon is 1e-20; expected at least 1e-19"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0; expected 0 or more"),
        ({"patience": -1}, "patience is -1; expected 0 or more"),
        ({"weight_decay": float("inf")}, "weight_decay is inf"),
    ],
)
def test_values_that_no_training_can_use_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**settings)


@pytest.mark.parametrize("epsilon", [TrainingConfig().epsilon, SMALLEST_EPSILON])
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-30, 1e-23, 1e-21, 1e-19, 1e-18, 1e-12, 1.0])
def test_a_step_is_never_larger_than_the_learning_rate_whatever_the_gradient(size, epsilon):
    weight = torch.zeros(64, requires_grad=True)
    betas = TrainingConfig().betas
    adam = torch.optim.AdamW([weight], 0.5, betas, epsilon, weight_decay=0.0, fused=True)
    weight.grad = torch.full_like(weight, size)
    adam.step()
    # With the same gradient at every step Adam moves by the learning rate; float32 rounds the
    # roots of the smallest squares to a digit or two.
    assert weight.isfinite().all() and weight.abs().max() <= 0.5 * 1.2
