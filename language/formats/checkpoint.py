"""A language model as data: its configuration and its tensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from doxastic.language.config import LanguageConfig
from doxastic.language.formats.files import ModelFileError
from doxastic.language.formats.tensors import UNUSED

FileFormat = Literal["pth", "safetensors", "hf"]

WEIGHTS, SETTINGS = "model.safetensors", "config.json"
"""The files of a model's folder."""

HEADER = "doxastic"
"""Key of our configuration in the header of a safetensors file."""

NORM_EPS, GROUP_NORM_EPS = 1e-5, 64e-5
"""Of every RWKV-7 in RWKV-LM and the rwkv package, whatever its heads; no tensor tells them."""

_FORMAT, _VERSION = "doxastic-language-model", 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A language model as data."""

    config: LanguageConfig
    """What the model is made of."""

    tensors: Mapping[str, Tensor]
    """The weights by RWKV-LM's names, vectors `[C]`, each in the dtype it was stored in."""

    format: FileFormat
    """The format it was read from."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    """What else the header of its safetensors file says."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors that the model has: without what RWKV-LM's files carry unused."""
        return {name: t for name, t in self.tensors.items() if name not in UNUSED}

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The dtypes of the weights, each once."""
        return tuple(dict.fromkeys(tensor.dtype for tensor in self.weights.values()))

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds all weights."""
        widest = self.dtypes[0]
        for dtype in self.dtypes[1:]:
            widest = torch.promote_types(widest, dtype)
        return widest

    def to(self, dtype: torch.dtype) -> Checkpoint:
        """Return the checkpoint with every tensor in one dtype.

        Raises:
            ModelFileError: A tensor has a finite number that would not be finite.
        """
        tensors = {name: converted(name, t, dtype) for name, t in self.tensors.items()}
        return dataclasses.replace(self, tensors=tensors)


def converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the tensor in another dtype, rounded to the nearest; itself if it has it.

    Raises:
        ModelFileError: It has a finite number that would not be finite.
    """
    result = tensor.to(dtype)
    if torch.finfo(dtype).max < torch.finfo(tensor.dtype).max:
        finite = tensor.isfinite()
        if not torch.equal(result.isfinite(), finite):
            raise ModelFileError(
                f"{name} has numbers up to {tensor[finite].abs().max():g}, which {dtype} cannot "
                "hold. Take bfloat16 or float32."
            )
    return result


def describe(config: LanguageConfig) -> dict[str, Any]:
    """Return our config.json."""
    return {"format": _FORMAT, "version": _VERSION, "config": config.to_dict()}


def is_description(settings: Mapping[str, Any]) -> bool:
    """Return whether a config.json is ours, of any version."""
    return settings.get("format") == _FORMAT


def described(settings: Mapping[str, Any], where: Path) -> LanguageConfig:
    """Return the configuration in our config.json, or in the header of `where`.

    Raises:
        ModelFileError: It is another version's, or the configuration does not fit.
    """
    if settings.get("version") != _VERSION or not isinstance(settings.get("config"), dict):
        raise ModelFileError(
            f"{where} describes its model in version {settings.get('version')}; this doxastic "
            f"reads version {_VERSION}. Use the doxastic that wrote it to convert it."
        )
    try:
        return LanguageConfig.from_dict(settings["config"])
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"{where}: {error}") from error


def in_header(metadata: Mapping[str, str], where: Path) -> LanguageConfig | None:
    """Return the configuration in the header of a safetensors file; None if it has none."""
    if HEADER not in metadata:
        return None
    try:
        return described(json.loads(metadata[HEADER]), where)
    except (json.JSONDecodeError, AttributeError) as error:
        raise ModelFileError(f"{where}: its header {HEADER!r} is damaged: {error}.") from error
