"""Which parameters of a language model learn how fast, and which decay."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the parameter groups of RWKV-LM for an optimiser of the Adam family.

    Only matrices named `*.weight` decay: vectors, low-rank factors and norms would be pulled away
    from where they belong. The decay's bias w0 learns twice as fast. Frozen parameters are left
    out; parameters that are used twice come once. Groups have a `name`, and are left out if empty.

    Args:
        model: A `LanguageModel`, plain or wrapped.
        learning_rate: Of all but w0.
        weight_decay: Of the matrices, as the optimiser understands it.

    Source: RWKV-LM, RWKV-v7/train_temp/src/model.py, `configure_optimizers`.
    """
    groups: dict[str, list[nn.Parameter]] = {"decayed": [], "plain": [], "fast": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_group(name, parameter)].append(parameter)
    rates = {"decayed": 1.0, "plain": 1.0, "fast": 2.0}
    return [
        {
            "name": name,
            "params": parameters,
            "lr": rates[name] * learning_rate,
            "weight_decay": weight_decay if name == "decayed" else 0.0,
        }
        for name, parameters in groups.items()
        if parameters
    ]


def _group(name: str, parameter: nn.Parameter) -> str:
    if name.endswith("att.w0"):
        return "fast"
    return "decayed" if name.endswith(".weight") and parameter.ndim >= 2 else "plain"
