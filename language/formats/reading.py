"""Reading a language model of any of the three formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from doxastic.language.config import LanguageConfig
from doxastic.language.formats import files, hugging_face
from doxastic.language.formats.checkpoint import (
    GROUP_NORM_EPS,
    HEADER,
    NORM_EPS,
    SETTINGS,
    WEIGHTS,
    Checkpoint,
    FileFormat,
    described,
    in_header,
    is_description,
)
from doxastic.language.formats.files import ModelFileError
from doxastic.language.formats.other_models import refuse_other_models
from doxastic.language.formats.tensors import (
    UNUSED,
    Spelling,
    check_tensors,
    infer_config,
    without_leading_ones,
)


class _Content(NamedTuple):
    """What lies on the disk, as it is."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    settings: dict[str, Any] | None
    """config.json, where it belongs to the tensors."""
    where: Path
    """The file of the tensors."""
    format: FileFormat


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Return the model in a .pth, a .safetensors file or a folder, of any of the three formats.

    Nothing is executed and nothing is fetched. The tensors may lie in the file until they are used.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ModelFileError: It is no RWKV-7 language model, or a damaged one.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no model at {path}; expected a file or a folder.")
    content = _read(path)
    refuse_other_models(content.tensors, content.where)
    is_theirs = hugging_face.has_these_names(content.tensors)
    spelling = hugging_face.SPELLING if is_theirs else Spelling()
    tensors = hugging_face.from_theirs(content.tensors) if is_theirs else content.tensors
    tensors = {name: without_leading_ones(name, tensor) for name, tensor in tensors.items()}
    config = (_their_config if is_theirs else _our_config)(tensors, content)
    check_tensors(tensors, config, content.where, spelling)
    return Checkpoint(
        config=config,
        tensors=_without_placeholders(tensors),
        format="hf" if is_theirs else content.format,
        metadata={key: text for key, text in content.metadata.items() if key != HEADER},
    )


def _read(path: Path) -> _Content:
    if path.is_dir():
        return _read_folder(path)
    if not files.is_safetensors(path):
        pickled = files.read_pickled(path)
        # No reader of RWKV-LM's .pth looks at a config.json beside it.
        beside = _settings(path.parent) if hugging_face.has_these_names(pickled) else None
        return _Content(pickled, {}, beside, path, "pth")
    tensors, metadata = files.read_safetensors(path)
    # Beside a file that says itself what it is, config.json may be another model's.
    beside = None if HEADER in metadata else _settings(path.parent)
    return _Content(tensors, metadata, beside, path, "safetensors")


def _read_folder(folder: Path) -> _Content:
    weights, index = folder / WEIGHTS, folder / files.INDEX
    if weights.is_file():
        tensors, metadata = files.read_safetensors(weights)
        return _Content(tensors, metadata, _settings(folder), weights, "safetensors")
    if index.is_file():
        return _Content(files.read_parts(index), {}, _settings(folder), index, "safetensors")
    others = sorted(
        file.name
        for file in folder.iterdir()
        if file.suffix in (".pth", ".bin", ".pt", ".safetensors")
    )
    remedy = f"Name one of its files: {', '.join(others)}." if others else "Check the path."
    raise ModelFileError(f"{folder} has neither {WEIGHTS} nor {files.INDEX}. {remedy}")


def _settings(folder: Path) -> dict[str, Any] | None:
    path = folder / SETTINGS
    return files.read_json(path) if path.is_file() else None


def _our_config(tensors: Mapping[str, Tensor], content: _Content) -> LanguageConfig:
    """Return the configuration of a file with RWKV-LM's names.

    The header was written with the tensors, in one step; config.json may have been edited since.
    """
    where, place = content.where, content.where.with_name(SETTINGS)
    beside = None
    if content.settings is not None and is_description(content.settings):
        beside = described(content.settings, place)
    config = in_header(content.metadata, where) or beside
    if config is None:
        return infer_config(
            tensors, where, Spelling(), norm_eps=NORM_EPS, group_norm_eps=GROUP_NORM_EPS
        )
    if beside is not None and beside != config:
        ours, theirs = config.to_dict(), beside.to_dict()
        odd = next(key for key in ours if ours[key] != theirs[key])
        raise ModelFileError(
            f"{place}: {odd} is {theirs[odd]}; the header of {where.name} says {ours[odd]}, and "
            f"it was written with the tensors. Undo the change, or delete {place.name}."
        )
    return config


def _their_config(tensors: Mapping[str, Tensor], content: _Content) -> LanguageConfig:
    """Return the configuration of a file with the Hugging Face layout's names."""
    where, place = content.where, content.where.with_name(SETTINGS)
    settings = content.settings or {}
    if settings:
        hugging_face.check_options(settings, place)
    config = in_header(content.metadata, where)
    if config is None:
        eps, group_eps = hugging_face.eps_of(settings, place)
        config = infer_config(
            tensors, where, hugging_face.SPELLING, norm_eps=eps, group_norm_eps=group_eps
        )
    hugging_face.check_same_model(settings, config, place)
    return config


def _without_placeholders(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the zeros that stand for what no program reads."""
    unused = [tensors[name] for name in UNUSED if name in tensors]
    if any(tensor.any() for tensor in unused):
        return tensors
    return {name: tensor for name, tensor in tensors.items() if name not in UNUSED}
