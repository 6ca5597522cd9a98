"""Bytes as tokens: no file, no vocabulary to learn, and every input can be expressed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from doxastic.language.tokenizers.base import Tokenizer, utf8

END_OF_DOCUMENT = 256


class ByteTokenizer(Tokenizer):
    """Id = byte; 256 ends a document, so `vocab_size` is 257."""

    takes_any_bytes = True

    def __init__(self) -> None:
        table = [bytes([byte]) for byte in range(256)] + [b""]
        super().__init__("bytes", "bytes", table, END_OF_DOCUMENT, "bytes")

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the UTF-8 bytes of a text, or any bytes, as int64 `[N]`."""
        return np.frombuffer(utf8(text), np.uint8).astype(np.int64)

    def encode_stream(self, pieces: Iterable[bytes]) -> Iterator[np.ndarray]:
        """Yield the ids of each piece."""
        return map(self.encode, pieces)
