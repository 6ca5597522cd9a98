"""RWKV's World vocabulary: the longest token that fits, from left to right, on bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from doxastic.language.tokenizers.base import Tokenizer, utf8
from doxastic.language.tokenizers.world_vocabulary import GreedyEncoder, digest, read_vocabulary

# `digest` of rwkv_vocab_v20230424.txt; the file's own SHA-256 depends on how it spells literals.
OFFICIAL = "17c772012220c47c754d2345b5aab8c21c3d62c0cb2208c51f765485ab7414e5"
END_OF_DOCUMENT = 0


class WorldTokenizer(Tokenizer):
    """Greedy longest match over a table of byte strings; id 0 ends a document.

    The official vocabulary comes with the package pyrwkv-tokenizer, whose encoder is used for it.
    A vocabulary file may be named instead: unless its table is the official one and the package
    is there, the encoder in Python does the work. Both give the same ids.
    """

    encoder: str
    """`"rust"` or `"python"`: what encodes. Bytes that are not UTF-8 always take the second."""

    def __init__(self, vocabulary: str | Path | None = None) -> None:
        path = _official_file() if vocabulary is None else Path(vocabulary).expanduser()
        table = read_vocabulary(path)
        fingerprint = digest(table)
        spec = "world" if vocabulary is None else f"world:{path.resolve()}"
        super().__init__("World", spec, table, END_OF_DOCUMENT, f"world {fingerprint}")
        fast = fingerprint == OFFICIAL and _package() is not None
        self.encoder = "rust" if fast else "python"
        self._lengths = np.array([len(token or b"") for token in table])

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the token ids of a text, or of any bytes, int64 `[N]`.

        Raises:
            ValueError: If the text holds half of a surrogate pair, or a byte that is no token of
                the vocabulary; in the official one every byte is.
        """
        data = utf8(text)
        if self.encoder == "rust":
            try:
                return np.array(self._rust(data.decode()), np.int64)
            except UnicodeDecodeError:
                pass
        return np.array(self._greedy(data), np.int64)

    def encode_stream(self, pieces: Iterable[bytes]) -> Iterator[np.ndarray]:
        """Yield the token ids of one text that comes in pieces.

        A token is final once so many bytes are known from its first one on as the longest token
        has: no longer one can fit then. What follows does not depend on what went before.
        """
        rest, longest = b"", int(self._lengths.max())
        for piece in pieces:
            rest += piece
            ids = self.encode(rest)
            ends = self._lengths[ids].cumsum()
            starts = ends - self._lengths[ids]
            count = int(np.searchsorted(starts, len(rest) - longest, side="right"))
            # The Rust encoder takes whole characters, and a token may end within one.
            while count and _within_a_character(rest, ends[count - 1]):
                count -= 1
            if count:
                yield ids[:count]
                rest = rest[ends[count - 1] :]
        if rest:
            yield self.encode(rest)

    @functools.cached_property
    def _rust(self) -> Callable[[str], list[int]]:
        package = _package()
        assert package is not None
        return package.RWKVTokenizer().encode

    @functools.cached_property
    def _greedy(self) -> GreedyEncoder:
        return GreedyEncoder(self._table)


def _within_a_character(data: bytes, position: int) -> bool:
    return position < len(data) and data[position] & 0xC0 == 0x80


def _package() -> Any:
    """Return the package with the official vocabulary and its encoder, None if it is absent."""
    try:
        import pyrwkv_tokenizer
    except ModuleNotFoundError:
        return None
    return pyrwkv_tokenizer


def _official_file() -> Path:
    package = _package()
    if package is None:
        raise ImportError(
            "the World tokenizer needs the package pyrwkv-tokenizer: "
            "`pip install 'doxastic[world]'`, or name a vocabulary file, world:<file>."
        )
    return Path(package.__file__).parent / "rwkv_vocab_v20230424.txt"
