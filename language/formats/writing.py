"""Writing a language model in any of the three formats."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from doxastic.language.config import LanguageConfig
from doxastic.language.formats import hugging_face, replacing
from doxastic.language.formats.checkpoint import (
    GROUP_NORM_EPS,
    HEADER,
    NORM_EPS,
    SETTINGS,
    WEIGHTS,
    Checkpoint,
    FileFormat,
    describe,
)
from doxastic.language.formats.files import ModelFileError
from doxastic.language.formats.tensors import (
    Spelling,
    check_tensors,
    expected_shapes,
    placeholders,
    with_leading_ones,
)


def write_checkpoint(
    checkpoint: Checkpoint, path: str | Path, format: FileFormat | None = None
) -> None:
    """Write the model; what stood there before stays whole until the new file is.

    Args:
        checkpoint: The model.
        path: For `pth` a file *.pth; for `safetensors` a folder, or a file *.safetensors; for
            `hf` a folder.
        format: None for `pth` where the path ends with .pth, else `safetensors`.

    Raises:
        ModelFileError: The format cannot say what the model is, or does not fit the path.
        OSError: The disk refuses.
    """
    path = Path(path)
    format, weights = destination(path, format)
    check_tensors(checkpoint.tensors, checkpoint.config, Path("the model"), Spelling())
    header = {"format": "pt", HEADER: json.dumps(describe(checkpoint.config))}
    metadata = {**checkpoint.metadata, **header}
    if format == "pth":
        _write_pth(checkpoint, weights)
    elif format == "hf":
        settings = hugging_face.their_config(checkpoint.config, checkpoint.dtype)
        _write_folder(path, hugging_face.to_theirs(checkpoint.tensors), metadata, settings)
    elif weights == path:
        replacing.write_safetensors(weights, checkpoint.tensors, metadata)
    else:
        _write_folder(path, checkpoint.tensors, metadata, describe(checkpoint.config))


def destination(path: str | Path, format: FileFormat | None = None) -> tuple[FileFormat, Path]:
    """Return the format that `write_checkpoint` writes, and the file that the tensors go to.

    Raises:
        ValueError: There is no such format.
        ModelFileError: It does not fit the path.
    """
    path = Path(path)
    if format is None:
        format = "pth" if path.suffix == ".pth" else "safetensors"
    if format not in get_args(FileFormat):
        raise ValueError(f"format is {format!r}; expected one of {', '.join(get_args(FileFormat))}")
    is_file = format == "pth" or (format == "safetensors" and path.suffix == ".safetensors")
    if format == "pth" and path.suffix != ".pth":
        raise ModelFileError(f"{path} does not end with .pth, which the rwkv package appends.")
    if format != "pth" and path.suffix == ".pth":
        raise ModelFileError(f"{path} ends with .pth; expected a folder for the format {format}.")
    if is_file and path.is_dir():
        raise ModelFileError(f"{path} is a folder; expected the name of a file.")
    if not is_file and path.is_file():
        raise ModelFileError(f"{path} is a file; expected the name of a folder.")
    return format, path if is_file else path / WEIGHTS


def _write_pth(checkpoint: Checkpoint, path: Path) -> None:
    _check_constants(checkpoint.config)
    unused = {
        name: zeros.to(checkpoint.dtype) for name, zeros in placeholders(checkpoint.config).items()
    }
    tensors = {**unused, **checkpoint.tensors}
    order = [*expected_shapes(checkpoint.config), *unused]
    replacing.write_pickled(path, {name: with_leading_ones(name, tensors[name]) for name in order})


def _write_folder(
    folder: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    settings: dict[str, Any],
) -> None:
    place = folder / SETTINGS

    def make_way() -> None:
        # The header of the weights says what they are. A config.json of another model goes before
        # they come: whenever the process is killed, what stands in the folder can be read.
        if place.is_file() and place.read_bytes() != replacing.as_json(settings):
            place.unlink()

    replacing.write_safetensors(folder / WEIGHTS, tensors, metadata, make_way)
    replacing.write_json(place, settings)


def _check_constants(config: LanguageConfig) -> None:
    """Refuse what the readers of a .pth would not know.

    Raises:
        ModelFileError: The model has an eps or an option of its own.
    """
    if config.double_rate:
        raise ModelFileError("a .pth has no place for double_rate; write safetensors instead.")
    for name, official in (("norm_eps", NORM_EPS), ("group_norm_eps", GROUP_NORM_EPS)):
        value = getattr(config, name)
        if not math.isclose(value, official, rel_tol=1e-9):
            raise ModelFileError(
                f"{name} is {value:g}, but every reader of a .pth computes with {official:g}: "
                "other outputs from the same tensors. Write safetensors instead."
            )
