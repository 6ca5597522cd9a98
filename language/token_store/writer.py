"""The files of a token store, as they are written: from front to back."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from doxastic.language.token_store.files import token_dtype
from doxastic.language.tokenizers import Tokenizer


class StoreWriter:
    """Documents in, tokens.bin, documents.npy and (once a token does not count) mask.bin out.

    Args:
        folder: Where the files are written.
        tokenizer: What the ids come from.
        target: What messages call the store.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, target: Path) -> None:
        self._folder = folder
        self._target = target
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._digest, self._mask_digest = hashlib.sha256(), hashlib.sha256()
        self._count = self._documents = self._largest = 0
        self._files = contextlib.ExitStack()
        self._tokens = self._open("tokens.bin")
        self._starts = self._open("documents.npy")
        self._mask: Any = None
        self._write_header()

    def __enter__(self) -> StoreWriter:
        """Return the writer; leaving the context closes its files."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files; what is still buffered may not fit on the disk, and is given up."""
        with contextlib.suppress(OSError):
            self._files.close()

    def start_document(self) -> None:
        """Write where a document starts, and the token that opens it."""
        start = np.array([self._count], np.int64).tobytes()
        self._put(self._starts, start, self._digest)
        self._documents += 1
        self.append(np.array([self._tokenizer.end_of_document]), True)

    def append(self, ids: np.ndarray, counts: bool) -> None:
        """Write tokens of the current document; `counts` says whether they are targets."""
        if not len(ids):
            return
        if not counts and self._mask is None:
            self._start_mask()
        tokens = ids.astype(self._dtype).tobytes()
        self._put(self._tokens, tokens, self._digest)
        if self._mask is not None:
            self._put(self._mask, bytes([counts]) * len(ids), self._mask_digest)
        self._count += len(ids)
        self._largest = max(self._largest, int(ids.max()))

    def finish(self) -> dict[str, Any]:
        """Wait until the disk has everything, and return what store.json says about it."""
        with writing(self._target):
            self._starts.seek(0)
            self._write_header()
            for file in (self._tokens, self._starts, self._mask):
                if file is not None:
                    file.flush()
                    os.fsync(file.fileno())
        self._digest.update(self._mask_digest.digest())
        return {
            "tokenizer": self._tokenizer.spec,
            "vocab_size": self._tokenizer.vocab_size,
            "end_of_document": self._tokenizer.end_of_document,
            "dtype": self._dtype.name,
            "tokens": self._count,
            "documents": self._documents,
            "masked": self._mask is not None,
            "largest_id": self._largest,
            "identity": self._digest.hexdigest(),
        }

    def _open(self, name: str) -> Any:
        with writing(self._target):
            return self._files.enter_context((self._folder / name).open("wb"))

    def _put(self, file: Any, content: bytes, digest: Any) -> None:
        digest.update(content)
        with writing(self._target):
            file.write(content)

    def _write_header(self) -> None:
        """Write the header of the .npy file; NumPy pads it so that it can grow in its place."""
        shape = (self._documents,)
        description = {"descr": "<i8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._starts, description)

    def _start_mask(self) -> None:
        """Open the mask, in which all that was written so far counts."""
        self._mask = self._open("mask.bin")
        for start in range(0, self._count, 1 << 20):
            ones = b"\x01" * min(1 << 20, self._count - start)
            self._put(self._mask, ones, self._mask_digest)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into an error that names the store."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            error.errno,
            f"cannot write the token store {folder}: {reason}; free some space or choose another "
            "folder",
        ) from error
