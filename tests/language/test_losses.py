"""Cross entropy in chunks: values, gradients, penalties, and that the logits never exist."""

from __future__ import annotations

import math

import pytest
import torch
from tolerances import KERNEL, SAME, assert_close
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from doxastic.language.losses import cross_entropy_sum

PENALTIES = [(0.0, 0.0), (1e-2, 0.0), (0.0, 1e-2), (3e-2, 2e-2)]


def _inputs(tokens=23, width=8, vocabulary=37, dtype=torch.float64):
    features = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    head = nn.Linear(width, vocabulary, bias=False, dtype=dtype)
    return features, head, torch.randint(vocabulary, (tokens,))


def _plainly(features, head, targets, z_loss, logit_penalty):
    logits = head(features)
    plain = functional.cross_entropy(logits, targets, reduction="sum")
    normaliser = logits.logsumexp(1).square().sum()
    return plain + z_loss * normaliser + logit_penalty / 2 * logits.amax(1).square().sum(), plain


class _AnyHead(nn.Module):
    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.inner = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


@pytest.mark.parametrize("any_head", [False, True])
@pytest.mark.parametrize(("z_loss", "logit_penalty"), PENALTIES)
@pytest.mark.parametrize("chunk", [1, 7, 23, None])
def test_value_and_gradients_are_those_of_the_definition(chunk, z_loss, logit_penalty, any_head):
    features, head, targets = _inputs()
    total, plain = cross_entropy_sum(
        features,
        _AnyHead(head) if any_head else head,
        targets,
        z_loss=z_loss,
        logit_penalty=logit_penalty,
        chunk_tokens=chunk,
    )
    # Scaled, as the trainer does to make a mean of it.
    (total / 23).backward()
    ours = total, plain, features.grad, head.weight.grad
    features.grad = head.weight.grad = None
    total, plain = _plainly(features, head, targets, z_loss, logit_penalty)
    (total / 23).backward()
    theirs = total, plain, features.grad, head.weight.grad
    for name, x, y in zip(("total", "plain", "features", "weight"), ours, theirs, strict=True):
        assert_close(name, x, y, KERNEL[torch.float64])


def test_the_logit_penalty_has_the_gradient_of_l2wrap():
    features, head, targets = _inputs()
    count = len(targets)
    total, _ = cross_entropy_sum(features, head, targets, logit_penalty=1e-4)
    plain, _ = cross_entropy_sum(features, head, targets)
    (ours,) = torch.autograd.grad((total - plain) / count, features)
    # RWKV-LM adds to the gradient of the logits, at the highest one, 1e-4 / (B T) times it.
    logits = head(features)
    highest, where = logits.max(1, keepdim=True)
    d_logits = torch.zeros_like(logits).scatter(1, where, highest * 1e-4 / count)
    # The penalty is what two losses 1e5 times as large differ by.
    assert_close("gradient", ours, d_logits @ head.weight, 1e5 * SAME[torch.float64])


def test_what_is_frozen_gets_no_gradient():
    features, head, targets = _inputs()
    head.requires_grad_(False)
    cross_entropy_sum(features, head, targets).total.backward()
    assert head.weight.grad is None and features.grad is not None
    features = features.detach()
    head.requires_grad_(True)
    cross_entropy_sum(features, head, targets).total.backward()
    assert head.weight.grad is not None


def test_without_gradient_the_value_is_the_same():
    features, head, targets = _inputs()
    with torch.no_grad():
        silent = cross_entropy_sum(features, head, targets).total
    assert torch.equal(silent, cross_entropy_sum(features, head, targets).total)


def test_no_targets_make_a_loss_of_zero_with_zero_gradient():
    features, head, targets = _inputs()
    total, _ = cross_entropy_sum(features[:0], head, targets[:0])
    total.backward()
    assert total == 0 and not head.weight.grad.any()


def test_under_bfloat16_loss_and_weight_gradient_are_float32():
    features, head, targets = _inputs(dtype=torch.float32)
    exact, _ = cross_entropy_sum(features, head, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = cross_entropy_sum(features, head, targets)
    rounded.backward()
    assert rounded.dtype is head.weight.grad.dtype is torch.float32
    assert_close("loss", rounded, exact, KERNEL[torch.bfloat16])
    assert rounded != exact


def test_the_loss_of_a_uniform_guess_is_the_log_of_the_vocabulary():
    features, head, targets = _inputs(dtype=torch.float32)
    nn.init.zeros_(head.weight)
    _, plain = cross_entropy_sum(features, head, targets)
    assert plain.item() / len(targets) == pytest.approx(math.log(37), rel=SAME[torch.float32])


class _LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_there_are_never_more_logits_than_those_of_a_chunk():
    features, head, targets = _inputs(tokens=512, vocabulary=300)
    with _LargestTensor() as largest:
        cross_entropy_sum(features, head, targets, chunk_tokens=16).total.backward()
    # The features are the largest there is.
    assert largest.numel <= max(16 * 300, 512 * 8)


def test_shapes_that_do_not_fit_are_refused():
    features, head, targets = _inputs()
    with pytest.raises(ValueError, match=r"features have shape \[23, 8\] and targets \[22\]"):
        cross_entropy_sum(features, head, targets[1:])
