"""What was learnt beside a base model, as a folder: low-rank updates, state offsets, or both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doxastic.language.adaptation.lora import (
    adapted_layers,
    apply_lora,
    base_weights,
    merge_lora,
    remove_lora,
)
from doxastic.language.adaptation.state_offset import (
    add_state_offset,
    offsets,
    remove_state_offset,
)
from doxastic.language.adaptation_config import LoRAConfig
from doxastic.language.formats.files import ModelFileError, read_safetensors
from doxastic.language.formats.replacing import write_json, write_safetensors
from doxastic.language.model import LanguageModel
from doxastic.language.state_files import model_identity, weights_identity

TENSORS, DESCRIPTION = "adapter.safetensors", "adapter.json"
"""The files of an adapter's folder; the second says to people what the header of the first says."""

_HEADER, _VERSION = "doxastic-adapter", 1


def save_adapter(model: LanguageModel, folder: str | Path) -> None:
    """Write the model's LoRA and state offsets, and to which base they belong, not the base.

    Args:
        model: A model with either; LoRA may be merged.
        folder: Gets `adapter.safetensors` and `adapter.json`.

    Raises:
        ValueError: There is nothing to write.
        OSError: The disk refuses.
    """
    tensors = _tensors(model)
    if not tensors:
        raise ValueError("the model has neither LoRA nor state offsets; there is nothing to save.")
    description = {
        "version": _VERSION,
        "lora": _lora_description(model),
        "state_offset": bool(offsets(model)),
        "base": {"identity": base_identity(model), "config": model.config.to_dict()},
    }
    folder = Path(folder)
    write_safetensors(folder / TENSORS, tensors, {_HEADER: json.dumps(description)})
    write_json(folder / DESCRIPTION, description)


def load_adapter(model: LanguageModel, path: str | Path, *, merge: bool = False) -> None:
    """Attach what `save_adapter` wrote to its base.

    Args:
        model: The base, changed in place: frozen, with the adapter attached.
        path: The folder, or the file in it.
        merge: Whether LoRA is merged at once, for good: for generation, as fast as the base then.

    Raises:
        FileNotFoundError: There is no adapter at `path`.
        ModelFileError: It is damaged, or another model's.
        ValueError: The model has an adapter already.
    """
    path = Path(path)
    path = path / TENSORS if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"there is no adapter at {path}; expected the folder of one.")
    tensors, header = read_safetensors(path)
    description = _read_description(header, path)
    if _tensors(model):
        raise ValueError("the model has an adapter already; call remove_lora, remove_state_offset.")
    _check_base(model, description["base"], path)
    try:
        if description["lora"] is not None:
            apply_lora(model, description["lora"])
        if description["state_offset"]:
            add_state_offset(model)
        _fill(model, tensors, path)
        if merge and description["lora"] is not None:
            merge_lora(model, for_good=True)
    except BaseException:
        remove_lora(model)
        remove_state_offset(model)
        raise


def base_identity(model: LanguageModel) -> str:
    """Return `model_identity` of the model without what is attached to it or merged."""
    attached = _tensors(model).keys()
    tensors = {name: t for name, t in model.state_dict().items() if name not in attached}
    for name, weight in base_weights(model).items():
        tensors.pop(f"{name}.base.weight", None)
        tensors[f"{name}.weight"] = weight
    return weights_identity(model.config, tensors)


def _tensors(model: LanguageModel) -> dict[str, Tensor]:
    """Return what an adapter is made of, by the names it has in the model."""
    updates = {
        f"{name}.{key}": layer.get_parameter(key)
        for name, layer in adapted_layers(model).items()
        for key in ("lora_a", "lora_b")
    }
    return updates | offsets(model)


def _lora_description(model: LanguageModel) -> dict[str, Any] | None:
    """Return the fields of a `LoRAConfig` that names every adapted projection; None for none."""
    layers = adapted_layers(model)
    if not layers:
        return None
    layer = next(iter(layers.values()))
    rank = len(layer.lora_a)
    return {
        "rank": rank,
        "alpha": layer.scale * rank,
        "dropout": layer.dropout.p,
        "targets": list(layers),
    }


def _read_description(header: Mapping[str, str], where: Path) -> dict[str, Any]:
    """Return what the header says, or raise `ModelFileError`."""
    if _HEADER not in header:
        raise ModelFileError(
            f"{where} is no adapter: its header has no {_HEADER!r}. Expected what save_adapter or "
            "doxastic lm finetune wrote."
        )
    try:
        description: dict[str, Any] = json.loads(header[_HEADER])
        version = description["version"]
        if version == _VERSION:
            description["lora"] = description["lora"] and LoRAConfig(**description["lora"])
            base = description["base"]
            description["base"] = {
                "identity": str(base["identity"]),
                "config": dict(base["config"]),
            }
            return {key: description[key] for key in ("lora", "state_offset", "base")}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{where}: its header {_HEADER!r} is damaged: {error!r}.") from error
    raise ModelFileError(
        f"{where} describes its adapter in version {version}; this doxastic reads version "
        f"{_VERSION}. Use the doxastic that wrote it."
    )


def _check_base(model: LanguageModel, base: Mapping[str, Any], where: Path) -> None:
    """Raise `ModelFileError` unless the adapter was trained on this model's weights."""
    ours, theirs = model.config.to_dict(), base["config"]
    for key, value in theirs.items():
        if ours.get(key) != value:
            raise ModelFileError(
                f"{where} was trained on a base with {key} = {value}; this model has "
                f"{ours.get(key)}. Load it onto the model it was trained on."
            )
    if (identity := model_identity(model)) != base["identity"]:
        raise ModelFileError(
            f"{where} was trained on another base of the same sizes, {base['identity'][:12]}; this "
            f"one is {identity[:12]}: an update means nothing to other weights. Load it onto the "
            "model it was trained on."
        )


@torch.no_grad()
def _fill(model: LanguageModel, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Copy the file's tensors into those that were attached for them."""
    own = _tensors(model)
    if odd := sorted(own.keys() ^ tensors.keys()):
        lacking = "is missing" if odd[0] in own else "is there and not described"
        raise ModelFileError(f"{where} is damaged: {odd[0]} {lacking}.")
    for name, target in own.items():
        if target.shape != tensors[name].shape:
            raise ModelFileError(
                f"{where}: {name} has shape {list(tensors[name].shape)}; expected "
                f"{list(target.shape)}."
            )
        target.copy_(tensors[name])
