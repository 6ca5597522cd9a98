"""Byte-level BPE from a `tokenizer.json` of Hugging Face, read by the package tokenizers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from doxastic.language.tokenizers.base import Table, Tokenizer, utf8

# What opens and ends documents, where no tokenizer_config.json says it: GPT-2 and GPT-NeoX,
# Llama 3, Llama 2 and Mistral, Gemma.
END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
# Bytes of a document above which it is encoded in parts. The encoder needs memory for all of its
# text at once: about 270 bytes per token were measured with tokenizers 0.23.
PART = 1 << 20
# A joint is looked for in so many bytes before the end of a part.
SEARCHED = 1 << 14
CONTINUATION = bytes(range(0x80, 0xC0))
# Bytes that are in no text, in UTF-8.
NEVER = {0xC0, 0xC1, *range(0xF5, 0x100)}
# Between letters or digits, before a space or the end of a line.
SPACE, LINE_END = r"[^\W_](?= [^\W_])", r"[^\W_](?=\n[^\W_])"


class HuggingFaceTokenizer(Tokenizer):
    """The ids that `tokenizers` gives, special tokens in the text included.

    Only byte-level vocabularies are taken: their tokens are byte strings, so that ids decode one
    by one and exactly. The end of a document is `eos_token` of a tokenizer_config.json beside the
    file, or a special token of a usual name.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path).expanduser().resolve()
        self._encoder = _read(path)
        layout = json.loads(self._encoder.to_str())
        _check_byte_level(path, layout)
        # What puts a space before every text would put one before a part that begins otherwise.
        prefixed = '"add_prefix_space": true' in json.dumps(layout.get("pre_tokenizer"))
        self._joints = (SPACE,) if prefixed else (SPACE, LINE_END)
        end = _end_of_document(path, self._encoder)
        super().__init__(
            "Hugging Face",
            str(path),
            _table(path, self._encoder, end),
            end,
            f"hugging-face {hashlib.sha256(path.read_bytes()).hexdigest()} end {end}",
        )

    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the token ids of a text, int64 `[N]`.

        Raises:
            ValueError: If the text holds half of a surrogate pair, or bytes that are not UTF-8.
        """
        data = utf8(text)
        try:
            whole = data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"byte {error.start} of the text is not UTF-8 ({error.reason}); the {self.name} "
                "tokenizer takes text only. The tokenizers 'bytes' and 'world' take any bytes."
            ) from error
        return np.array(self._encoder.encode(whole, add_special_tokens=False).ids, np.int64)

    def encode_stream(self, pieces: Iterable[bytes]) -> Iterator[np.ndarray]:
        """Yield the token ids of one text that comes in pieces.

        Up to a mebibyte is encoded as a whole. A longer text is parted where a space or the end of
        a line stands between two letters or digits, and the tokenizer's own pattern parts it there
        before it merges, as those of GPT-2 and its successors do. Where none does, because tokens
        span words, the text is held and encoded as a whole, however long.
        """
        rest = b""
        for piece in pieces:
            rest += piece
            position = self._last_joint(rest) if len(rest) > PART else 0
            if position:
                yield self.encode(rest[:position])
                rest = rest[position:]
        if rest:
            yield self.encode(rest)

    def _last_joint(self, data: bytes) -> int:
        """Return where to part a text, 0 for nowhere; its end is searched."""
        if self._encoder.pre_tokenizer is None:
            return 0
        tail = data[-SEARCHED:].lstrip(CONTINUATION)
        text = tail.decode("utf-8", "ignore")
        parts = self._encoder.pre_tokenizer.pre_tokenize_str(text)
        starts = {start for _, (start, _) in parts}
        for joint in self._joints:
            found = [m.end() for m in re.finditer(joint, text) if m.end() in starts]
            if found:
                return len(data) - len(tail) + len(text[: found[-1]].encode())
        return 0


def _read(path: Path) -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{path} needs the package tokenizers: `pip install 'doxastic[hf]'`."
        ) from error
    try:
        encoder = tokenizers.Tokenizer.from_file(str(path))
    # The package raises bare exceptions.
    except Exception as error:
        raise ValueError(f"{path} is no tokenizer.json of Hugging Face: {error}") from error
    # A file may ask for both, and a text would be cut without a word.
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _check_byte_level(path: Path, layout: dict[str, Any]) -> None:
    decoder = layout.get("decoder") or {}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if part}
    if kinds != {"ByteLevel"}:
        raise ValueError(
            f"{path} decodes with {sorted(kinds) or 'nothing'}; expected ['ByteLevel'], a "
            "byte-level vocabulary such as GPT-2's, GPT-NeoX's or Llama 3's."
        )


def _end_of_document(path: Path, encoder: Any) -> int:
    names = list(END_TOKENS)
    config = path.with_name("tokenizer_config.json")
    if config.is_file():
        token = json.loads(config.read_text(encoding="utf-8")).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        names = [token, *names] if token else names
    for name in names:
        token_id = encoder.token_to_id(name)
        if token_id is not None:
            return int(token_id)
    raise ValueError(
        f"{path} has no token that ends a document, none of {names}; put a "
        'tokenizer_config.json beside it with {"eos_token": "<its name>"}.'
    )


def _table(path: Path, encoder: Any, end: int) -> Table:
    vocabulary = encoder.get_vocab(with_added_tokens=True)
    table: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    added = {index: token.content for index, token in encoder.get_added_tokens_decoder().items()}
    alphabet = _alphabet()
    for token, index in vocabulary.items():
        try:
            text = added.get(index)
            table[index] = bytes(alphabet[c] for c in token) if text is None else text.encode()
        except KeyError as error:
            raise ValueError(
                f"{path}: token {index}, {token!r}, has the character {error}, which stands for "
                "no byte; expected a byte-level vocabulary."
            ) from error
    _check_alphabet(path, encoder, alphabet)
    table[end] = b""
    return table


def _check_alphabet(path: Path, encoder: Any, alphabet: dict[str, int]) -> None:
    """Refuse a vocabulary without a token for every byte: the library drops what it lacks."""
    known = encoder.get_vocab(with_added_tokens=False)
    absent = sorted({byte for char, byte in alphabet.items() if char not in known} - NEVER)
    if absent:
        raise ValueError(
            f"{path} has no token for {len(absent)} bytes, {absent[0]:#04x} the first, which texts "
            "would lose; expected one for every byte of UTF-8. Train it again with "
            "initial_alphabet=ByteLevel.alphabet()."
        )


def _alphabet() -> dict[str, int]:
    """Return the byte each character of a byte-level vocabulary stands for.

    Printable bytes of Latin-1 stand for themselves; the others, in order, are the characters from
    U+0100 on. Source: GPT-2's encoder.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    plain = {chr(byte): byte for byte in printable}
    return plain | {chr(0x100 + index): byte for index, byte in enumerate(others)}
