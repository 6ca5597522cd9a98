"""The files of a token store, as they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "doxastic token store"
VERSION = 1
FILES = ("store.json", "tokens.bin", "documents.npy", "mask.bin")
# What store.json says of the other files and of their tokens.
FIELDS = {
    "fingerprint": str,
    "tokenizer": str,
    "vocab_size": int,
    "end_of_document": int,
    "largest_id": int,
    "dtype": str,
    "tokens": int,
    "documents": int,
    "masked": bool,
    "identity": str,
}


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smaller of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def read_description(folder: Path) -> dict[str, Any]:
    """Return what store.json says.

    Raises:
        ValueError: If the folder holds no store, one of another version, or a damaged description.
    """
    path = folder / "store.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no token store: {error}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe a token store; build it again.")
    if about.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {about.get('version')}; expected {VERSION}. Build the store again."
        )
    for field, kind in FIELDS.items():
        if type(found := about.get(field)) is not kind:
            raise ValueError(
                f"{path} says that {field} is {found!r}; expected a value of type {kind.__name__}. "
                "Build the store again."
            )
    # No other dtype is ever asked of the disk: as objects, tokens would be followed as pointers.
    if about["dtype"] != (dtype := token_dtype(about["vocab_size"])).name:
        raise ValueError(
            f"{path} says that {about['vocab_size']} ids are stored as {about['dtype']}; expected "
            f"{dtype}. Build the store again."
        )
    return about


def map_array(path: Path, dtype: np.dtype, count: int) -> np.memmap:
    """Return an array of so many entries, mapped from a file.

    Raises:
        ValueError: If the file is missing, or its size is another one.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; build the store again.") from error
    if size != count * dtype.itemsize:
        raise ValueError(
            f"{path} has {size} bytes; expected {count * dtype.itemsize}, {count} times {dtype}. "
            "It was cut short or changed; build the store again."
        )
    return np.memmap(path, dtype, "r", shape=(count,))


def read_documents(path: Path, count: int, tokens: int) -> np.ndarray:
    """Return where documents start, int64 `[D]`, mapped from a file.

    Raises:
        ValueError: If they are not so many, or do not ascend from 0 to below the number of tokens.
    """
    try:
        documents = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}; build the store again.") from error
    if (documents.dtype, documents.shape) != (np.dtype(np.int64), (count,)):
        raise ValueError(
            f"{path} has {documents.shape} {documents.dtype}; expected ({count},) int64. Build the "
            "store again."
        )
    starts = np.append(documents, tokens)
    if starts[0] != 0 or (np.diff(starts) <= 0).any():
        raise ValueError(f"{path} does not ascend from 0 to {tokens}; build the store again.")
    return documents
