"""Language models for tests, in which every tensor matters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from doxastic.language.config import LanguageConfig
from doxastic.language.formats import Checkpoint
from doxastic.language.model import LanguageModel
from doxastic.memory.time_mix import LowRanks


def small_config(head_size: int = 16, **changes: Any) -> LanguageConfig:
    """Return a small configuration whose sizes differ from each other and from the official."""
    sizes: dict[str, Any] = {
        "vocab_size": 37,
        "width": 64,
        "layers": 3,
        "head_size": head_size,
        "hidden_size": 96,
        "low_ranks": LowRanks(decay=12, rate=10, value=6, gate=20),
    }
    return LanguageConfig(**{**sizes, **changes})


def random_tensors(config: LanguageConfig, seed: int = 0) -> dict[str, Tensor]:
    """Return weights of the size that trained ones have; none is zero or one throughout."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in LanguageModel(config).state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        last = name.rsplit(".", 1)[-1]
        if last.startswith("x_"):
            tensors[name] = torch.rand(tensor.shape, generator=generator)
        elif (".ln" in f".{name}" and last == "weight") or last in ("k_k", "k_a", "s0"):
            tensors[name] = 1 + 0.2 * noise
        elif tensor.ndim == 1 or last == "r_k":
            tensors[name] = 0.3 * noise
        else:
            rows = last[-1] in "12" and not last.endswith("weight")
            tensors[name] = noise * tensor.shape[0 if rows else 1] ** -0.5
    return tensors


def random_model(config: LanguageConfig, seed: int = 0) -> LanguageModel:
    """Return a model with `random_tensors`."""
    model = LanguageModel(config)
    model.load_state_dict(random_tensors(config, seed))
    return model


def random_checkpoint(config: LanguageConfig, seed: int = 0) -> Checkpoint:
    """Return a checkpoint with `random_tensors`."""
    return Checkpoint(config=config, tensors=random_tensors(config, seed), format="safetensors")


def assert_same_tensors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Fail unless names, dtypes, shapes and every bit agree."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert actual[name].shape == tensor.shape, name
        assert torch.equal(
            actual[name].contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)
        ), name
