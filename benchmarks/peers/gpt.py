"""Two small GPTs to compare with: one after nanoGPT, one with what has been learnt since.

Written anew from their papers and configurations; both use PyTorch's fused attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of a GPT."""

    vocab_size: int
    block: int
    """Longest context in tokens."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 512
    """Hidden width of the feed-forward network."""

    modern: bool = False
    """Rotary positions, normalised queries and keys, RMS norms, squared ReLU, an own head and zero
    output projections; else learned positions, layer norms, GELU and a tied head."""


class GPT(nn.Module):
    """A decoder of tokens `[B, T]` to logits `[B, T, V]`."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position = None if config.modern else nn.Embedding(config.block, config.width)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))
        self.norm = _norm(config)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self._initialise()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token after each."""
        x = self.embedding(tokens)
        if self.position is not None:
            x = x + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    @torch.no_grad()
    def generate(self, tokens: Tensor, number: int) -> Tensor:
        """Return the tokens with `number` greedy ones more, the whole context read for each."""
        for _ in range(number):
            logits = self(tokens[:, -self.config.block :])[:, -1]
            tokens = torch.cat((tokens, logits.argmax(-1, keepdim=True)), 1)
        return tokens

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            deviation = 0.02
            if name.endswith("projection.weight"):
                deviation = 0.0 if self.config.modern else 0.02 / math.sqrt(2 * self.config.layers)
            nn.init.normal_(parameter, std=deviation)
        if not self.config.modern:
            self.head.weight = self.embedding.weight


class _Layer(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(config), _norm(config)
        self.attention, self.feed_forward = _Attention(config), _FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        x = x + self.feed_forward(self.norm2(x))
        return x


class _Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads, self.modern = config.heads, config.modern
        self.inputs = nn.Linear(config.width, 3 * config.width, bias=False)
        self.projection = nn.Linear(config.width, config.width, bias=False)
        if config.modern:
            cos, sin = _rotations(config.block, config.width // config.heads)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = self.inputs(x).view(batch, time, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.modern:
            q, k = self._rotated(_unit(q)), self._rotated(_unit(k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.projection(y.transpose(1, 2).reshape(batch, time, width))
        return out

    def _rotated(self, x: Tensor) -> Tensor:
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        first, second = x.chunk(2, -1)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), -1)


class _FeedForward(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.modern = config.modern
        self.inner = nn.Linear(config.width, config.hidden, bias=False)
        self.projection = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(x)
        out: Tensor = self.projection(F.relu(hidden).square() if self.modern else F.gelu(hidden))
        return out


def _norm(config: GPTConfig) -> nn.Module:
    if config.modern:
        return nn.RMSNorm(config.width, eps=1e-6)
    return nn.LayerNorm(config.width, bias=False)


def _unit(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:])


def _rotations(block: int, size: int) -> tuple[Tensor, Tensor]:
    rates = 10_000.0 ** (-torch.arange(0, size, 2) / size)
    angles = torch.outer(torch.arange(block), rates)
    return angles.cos(), angles.sin()


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return nanoGPT's groups: matrices decay, vectors do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
