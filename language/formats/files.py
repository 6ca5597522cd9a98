"""Tensors in files: reading what others wrote, without running it."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INDEX = "model.safetensors.index.json"
"""The list of the parts of a model that Hugging Face cut into several files."""

# How an archive of torch begins.
_ARCHIVE = b"PK\x03\x04"


class ModelFileError(ValueError):
    """A file that is no model this program can read; the message names file, tensor and remedy."""


def read_pickled(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that `torch.save` wrote; code in it is refused, never run.

    The tensors of a zip archive stay in the file until they are read.

    Raises:
        ModelFileError: The file is cut short, holds more than tensors, or is none of torch's.
    """
    is_archive = _is_archive(path)
    if not is_archive and _begins_with(path, _ARCHIVE):
        # Looking for the end of a short one, PyTorch seeks to before it, as if the disk failed.
        raise _unreadable(path, is_archive, "")
    try:
        with warnings.catch_warnings():
            # About old versions of pickle, with a request to report them to PyTorch.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except (OSError, MemoryError):
        raise
    except Exception as error:
        # What is read from damaged bytes fails in every way there is.
        raise _unreadable(path, is_archive, str(error)) from error
    if not isinstance(content, Mapping):
        raise ModelFileError(
            f"{path} holds a {type(content).__name__}; expected a dictionary of tensors by name."
        )
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ModelFileError(
                f"{path} holds a {type(tensor).__name__} under {name!r}; expected tensors alone. "
                "It looks like a training checkpoint: save the model's own state_dict from it."
            )
    return dict(content)


def is_safetensors(path: Path) -> bool:
    """Return whether a file is meant as safetensors: by its name, or by how it begins."""
    with path.open("rb") as file:
        # The length of the header, then the header: a JSON object.
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file and the text in its header.

    Raises:
        ModelFileError: The file is cut short or no safetensors file.
    """
    safetensors = import_safetensors()
    if path.is_dir():
        # The package fails on one without naming it.
        raise ModelFileError(f"{path} is a folder; expected a safetensors file.")
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ModelFileError(
            f"{path} is not a whole safetensors file ({path.stat().st_size:,} bytes): {error}. "
            "Copy or download it again."
        ) from error


def read_parts(index: Path) -> dict[str, Tensor]:
    """Return the tensors of a model that was cut into several safetensors files.

    Args:
        index: The file `model.safetensors.index.json`; its parts lie beside it.

    Raises:
        ModelFileError: The index is damaged, or a part or a tensor of it is missing.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelFileError(f"{index} has no weight_map; expected names and their files.")
    tensors: dict[str, Tensor] = {}
    for part in dict.fromkeys(map(str, places.values())):
        # A name is looked up beside the index only: a path could lead anywhere on the disk.
        if Path(part).name != part:
            raise ModelFileError(f"{index} names the file {part!r}; expected a name without path.")
        if not (index.parent / part).is_file():
            raise ModelFileError(
                f"{index.parent} has no {part}, which {index.name} names. Copy all parts."
            )
        found, _ = read_safetensors(index.parent / part)
        listed = {name for name, place in places.items() if place == part}
        if listed != found.keys():
            odd = sorted(listed ^ found.keys())[0]
            where = "is missing there" if odd in listed else "is there and not listed"
            raise ModelFileError(f"{index} and {part} disagree: {odd} {where}. Copy all parts.")
        tensors.update(found)
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ModelFileError: It is not valid, or not an object.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelFileError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} holds a {type(content).__name__}; expected an object.")
    return content


def import_safetensors() -> Any:
    """Return the package, or raise `ImportError` with what to install."""
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            "reading and writing safetensors needs the package safetensors: pip install "
            "safetensors, or use a .pth"
        ) from error
    return safetensors


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        # It has an end, with nonsense in it.
        return False


def _begins_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _unreadable(path: Path, is_archive: bool, reason: str) -> ModelFileError:
    """Return why `torch.load` refused: code, a cut, or no file of torch at all."""
    size = path.stat().st_size
    if code := re.search(r"GLOBAL ([\w.]+)", reason):
        return ModelFileError(
            f"{path} holds code ({code[1]}) beside tensors; expected tensors alone. Code in a "
            "file is never run here: save the model's own state_dict, or as safetensors."
        )
    if _begins_with(path, _ARCHIVE) and not is_archive:
        return ModelFileError(
            f"{path} is cut short: it begins as an archive of torch, but its end is missing "
            f"({size:,} bytes). Copy or download it again."
        )
    if _begins_with(path, b"GGUF"):
        return ModelFileError(
            f"{path} is a GGUF file of llama.cpp; expected .pth, safetensors or a folder. Take "
            "the checkpoint it was made from."
        )
    return ModelFileError(
        f"{path} is not a checkpoint, or a damaged one ({size:,} bytes): torch cannot read it. "
        "Expected a .pth of RWKV-LM, a .safetensors file or a folder."
    )
