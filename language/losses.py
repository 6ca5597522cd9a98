"""Next-token cross entropy over a large vocabulary, without ever holding all the logits."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from doxastic.memory.linear import are_plain

CHUNK_LOGITS = 2**24
"""Logits computed at once, 64 MiB in float32: enough to keep the matrix products busy."""


class LossSum(NamedTuple):
    """Sums over tokens; divide by a number of tokens to get means."""

    total: Tensor
    """Scalar float32, what is descended: cross entropy and penalties."""
    cross_entropy: Tensor
    """Scalar float32 without gradient, in nats."""


def cross_entropy_sum(
    features: Tensor,
    head: nn.Module,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    logit_penalty: float = 0.0,
    chunk_tokens: int | None = None,
) -> LossSum:
    """Return the sums over tokens of the cross entropy and of what is added to it.

    Per token with logits l and target y: `-log softmax(l)_y + z_loss (log sum exp l)^2 +
    logit_penalty / 2 (max l)^2`. The last is RWKV-LM's L2Wrap, there with 1e-4: it pulls the
    highest logit towards 0. Logits exist for `chunk_tokens` tokens at a time and are float32
    whatever the head computes in; a plain linear head gets its gradient in the forward pass, any
    other is computed again in the backward pass.

    Args:
        features: What the head reads, `[N, C]`.
        head: From features to logits `[N, V]`.
        targets: `[N]` int64, in `[0, V)`.
        z_loss: Weight of the squared log normaliser.
        logit_penalty: Weight of the squared highest logit.
        chunk_tokens: Tokens at a time; by default so many that there are 2^24 logits.

    Source: the z-loss is that of Chowdhery et al. (PaLM, arXiv 2204.02311), section 5.
    """
    if features.ndim != 2 or targets.shape != features.shape[:1]:
        raise ValueError(
            f"features have shape {list(features.shape)} and targets {list(targets.shape)}; "
            "expected [N, C] and [N]."
        )
    if are_plain(head):
        weight = cast(Tensor, head.weight)
        chunk = chunk_tokens or max(1, CHUNK_LOGITS // len(weight))
        weights = (z_loss, logit_penalty)
        total, plain = _LinearCrossEntropy.apply(
            features, weight, targets, chunk, weights, torch.is_grad_enabled()
        )
        return LossSum(total, plain)
    return _through_any_head(features, head, targets, z_loss, logit_penalty, chunk_tokens or 256)


class _LinearCrossEntropy(torch.autograd.Function):
    """The sums for `logits = features weight^T`; the gradient is made beside them, chunk by chunk.

    One pass needs three matrix products a chunk, where computing the logits again in the backward
    pass would need four. The weight's gradient is summed in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        weights: tuple[float, float],
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        kind = features.device.type
        dtype = features.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        precise = torch.promote_types(dtype, torch.float32)
        d_features = d_weight = None
        if with_gradient and ctx.needs_input_grad[0]:
            d_features = torch.empty_like(features)
        if with_gradient and ctx.needs_input_grad[1]:
            d_weight = torch.zeros_like(weight, dtype=precise)
        total, plain = torch.zeros(2, dtype=precise, device=features.device).unbind()
        with torch.autocast(kind, enabled=False):
            matrix = weight.to(dtype)
            for start in range(0, len(features), chunk):
                rows = slice(start, start + chunk)
                x = features[rows].to(dtype)
                logits = functional.linear(x, matrix).to(precise)
                sums, d_logits = _sums_and_gradient(logits, targets[rows], *weights)
                total, plain = total + sums[0], plain + sums[1]
                d_logits = d_logits.to(dtype)
                if d_features is not None:
                    d_features[rows] = d_logits @ matrix
                if d_weight is not None:
                    d_weight += d_logits.T @ x
        ctx.save_for_backward(d_features, d_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(plain)
        return total, plain

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        d_features, d_weight = ctx.saved_tensors
        if d_features is not None:
            d_features = d_features * d_total.to(d_features.dtype)
        if d_weight is not None:
            d_weight = (d_weight * d_total).to(ctx.weight_dtype)
        return d_features, d_weight, None, None, None, None


def _sums_and_gradient(
    logits: Tensor, targets: Tensor, z_loss: float, logit_penalty: float
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return (total, cross entropy) and the total's gradient by the logits; logits are used up."""
    target = targets[:, None]
    at_target = logits.gather(1, target)
    highest = logits.max(dim=1, keepdim=True) if logit_penalty else None
    probability = functional.log_softmax(logits, dim=1)
    log_probability = probability.gather(1, target)
    plain = -log_probability.sum()
    gradient = probability.exp_()
    total = plain
    if z_loss:
        normaliser = at_target - log_probability
        total = total + z_loss * normaliser.square().sum()
        gradient.mul_(1.0 + 2.0 * z_loss * normaliser)
    gradient.scatter_add_(1, target, torch.full_like(at_target, -1.0))
    if highest is not None:
        total = total + 0.5 * logit_penalty * highest.values.square().sum()
        gradient.scatter_add_(1, highest.indices, logit_penalty * highest.values)
    return (total, plain), gradient


def _through_any_head(
    features: Tensor,
    head: nn.Module,
    targets: Tensor,
    z_loss: float,
    logit_penalty: float,
    chunk: int,
) -> LossSum:
    def sums(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(x)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        plain = functional.cross_entropy(logits, target, reduction="sum")
        total = plain + z_loss * logits.logsumexp(dim=1).square().sum()
        total = total + 0.5 * logit_penalty * logits.max(dim=1).values.square().sum()
        return total, plain.detach()

    parts = [
        checkpoint(sums, x, target, use_reentrant=False)
        for x, target in zip(features.split(chunk), targets.split(chunk), strict=True)
    ]
    total, plain = (torch.stack(column).sum() for column in zip(*parts, strict=True))
    return LossSum(total, plain)
