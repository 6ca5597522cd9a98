"""State-offset tuning: a matrix per head that is added to the state wherever it is read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from doxastic.language.model import LanguageModel
from doxastic.memory.time_mix import TimeMix


def add_state_offset(model: LanguageModel) -> None:
    """Give every time mix a trainable offset, zero at first, and freeze all the rest.

    With the offset O a head reads y = (S + O) r: a constant memory, which unlike a tuned initial
    state neither decays nor is written over. It survives resets too, so any batches train it. The
    fused layer does not know it, but the compiled step does: reading gets slower, decoding hardly.

    Raises:
        ValueError: The model has offsets already.
    """
    if offsets(model):
        raise ValueError("the model has state offsets already; call remove_state_offset first.")
    model.requires_grad_(False)
    for mix in _time_mixes(model).values():
        like = mix.w0
        zeros = torch.zeros(mix.heads, mix.head_size, mix.head_size, device=like.device)
        # In half precision the small steps of training would vanish.
        mix.state_offset = nn.Parameter(zeros.to(torch.promote_types(like.dtype, torch.float32)))


def remove_state_offset(model: LanguageModel) -> None:
    """Take the offsets out; the base is as it was, bit for bit, and frozen."""
    for mix in _time_mixes(model).values():
        mix.state_offset = None


def offsets(model: LanguageModel) -> dict[str, Tensor]:
    """Return the offsets there are, `[H, V, K]` each, by the names of their parameters."""
    return {
        f"{name}.state_offset": mix.state_offset
        for name, mix in _time_mixes(model).items()
        if mix.state_offset is not None
    }


def _time_mixes(model: LanguageModel) -> dict[str, TimeMix]:
    return {name: mix for name, mix in model.named_modules() if isinstance(mix, TimeMix)}
