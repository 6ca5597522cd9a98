"""Small language models whose every parameter matters, and what is fed to them."""

from __future__ import annotations

from typing import Any

import torch
from kernel_cases import random_reset
from torch import Tensor

from doxastic.language.config import LanguageConfig, LowRanks
from doxastic.language.model import LanguageModel

VOCABULARY = 11
# Widths of whole vectors run the fused layers and the compiled step, others what is composed.
FUSED: dict[str, Any] = {"width": 64, "head_size": 32, "low_ranks": LowRanks(32, 8, 20, 48)}
COMPOSED: dict[str, Any] = {"width": 24, "head_size": 8, "low_ranks": LowRanks(3, 4, 5, 6)}
OPTIONS: dict[str, dict[str, Any]] = {
    "fused": FUSED,
    "composed": COMPOSED,
    "hidden": {**FUSED, "hidden_size": 112, "group_norm_eps": 0.1, "norm_eps": 1e-3},
    "double_rate": {**FUSED, "double_rate": True},
    "matrix": {**FUSED, "deep_embed": "matrix"},
    "vector": {**FUSED, "deep_embed": "vector"},
}


def make(layers: int = 2, seed: int = 0, **sizes: Any) -> LanguageModel:
    """Return a model with noise on its initial values: officially, output projections are zero."""
    torch.manual_seed(seed)
    config = LanguageConfig(vocab_size=VOCABULARY, layers=layers, **{**FUSED, **sizes})
    model = LanguageModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def sample(rows: int = 3, length: int = 21, probability: float = 0.2) -> tuple[Tensor, Tensor]:
    """Return token ids and resets, both `[B, T]`."""
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (rows, length), generator=random)
    return tokens, random_reset(rows, length, probability)
