"""The language models that are compared, and one step of training for all of them."""

from __future__ import annotations

import torch
from peers import gpt
from torch import Tensor, nn
from torch.nn import functional as F

from doxastic.language.config import LanguageConfig, LowRanks
from doxastic.language.model import LanguageModel
from doxastic.language.optimizer_groups import parameter_groups

OURS, NANO, MODERN = "doxastic RWKV-7", "GPT, nanoGPT's", "GPT, modern"
RATE, LAST_RATE, DECAY = 1e-3, 1e-4, 0.1


def ours(vocab_size: int, layers: int = 4) -> LanguageModel:
    """Return our model in the protocol's size: heads and ranks of 32."""
    return LanguageModel(
        LanguageConfig(
            vocab_size=vocab_size, width=128, layers=layers, head_size=32,
            low_ranks=LowRanks(32, 32, 32, 32),
        )
    )  # fmt: skip


def peer(vocab_size: int, block: int, *, modern: bool) -> gpt.GPT:
    """Return a GPT; the modern one is as large as ours."""
    config = gpt.GPTConfig(vocab_size=vocab_size, block=block, modern=modern)
    if modern:
        missing = size(ours(vocab_size)) - size(gpt.GPT(config))
        hidden = config.hidden + round(missing / (2 * config.width * config.layers))
        config = gpt.GPTConfig(vocab_size=vocab_size, block=block, hidden=hidden, modern=True)
    return gpt.GPT(config)


def build(name: str, vocab_size: int, block: int) -> nn.Module:
    """Return a model by its name."""
    if name == OURS:
        return ours(vocab_size)
    return peer(vocab_size, block, modern=name == MODERN)


def size(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits `[B, T, V]` of either kind of model."""
    out = model(tokens)
    logits: Tensor = out[0] if isinstance(out, tuple) else out
    return logits


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW with the model's own groups, learning rates relative to the schedule."""
    if isinstance(model, LanguageModel):
        groups = parameter_groups(model, learning_rate=1.0, weight_decay=DECAY)
    else:
        groups = gpt.parameter_groups(model, DECAY)
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), eps=1e-8, fused=True)
    for group in optimizer.param_groups:
        group["share"] = group["lr"]
    return optimizer


def descend(
    model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor, targets: Tensor, rate: float
) -> None:
    """Take one step of training."""
    loss = F.cross_entropy(logits_of(model, tokens).flatten(0, 1), targets.flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    optimizer.step()
