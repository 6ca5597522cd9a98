"""What every tokenizer does: a table of bytes by id, and an encoder whose output it inverts."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

Table = Sequence[bytes | None]
"""The bytes of each id in order; None where an id below the highest stands for no token."""


class Tokenizer(ABC):
    """A vocabulary of byte strings and the rule that cuts text into them.

    Ids run from 0 to `vocab_size - 1`. A model may have a larger vocabulary (the embeddings of
    RWKV's World models have 65,536 rows for 65,530 ids): whoever samples from it leaves the rest
    out.
    """

    name: str
    """What it is called in messages."""

    spec: str
    """What `load_tokenizer` makes it from again."""

    fingerprint: str
    """Equal for two tokenizers exactly if they encode alike, wherever their files lie."""

    end_of_document: int
    """The id that opens every stored document, and is sampled where one ends; it has no bytes."""

    takes_any_bytes: bool = False
    """Whether files need not be UTF-8."""

    def __init__(
        self, name: str, spec: str, table: Table, end_of_document: int, fingerprint: str
    ) -> None:
        self.name = name
        self.spec = spec
        self.fingerprint = fingerprint
        self.end_of_document = end_of_document
        self._table = table

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return len(self._table)

    @abstractmethod
    def encode(self, text: str | bytes) -> np.ndarray:
        """Return the token ids of a text, int64 `[N]`.

        Raises:
            ValueError: If the text holds half of a surrogate pair, or bytes that the tokenizer
                cannot express.
        """

    @abstractmethod
    def encode_stream(self, pieces: Iterable[bytes]) -> Iterator[np.ndarray]:
        """Yield the token ids of one text that comes in pieces, in bounded memory.

        Together they are what `encode` returns for the whole, wherever the pieces were cut.
        """

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token stands for, possibly a part of a UTF-8 character.

        Raises:
            ValueError: If no token has this id.
        """
        token = self._table[token_id] if 0 <= token_id < len(self._table) else None
        if token is None:
            raise ValueError(
                f"the {self.name} tokenizer has no token {token_id}; its ids run from 0 to "
                f"{self.vocab_size - 1}. Were the ids made by another tokenizer?"
            )
        return token

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes that a sequence of ids stands for, whatever they are."""
        return b"".join(map(self.token_bytes, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of a sequence of ids; U+FFFD stands where the bytes are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", "replace")


class StreamDecoder:
    """Text from ids that come one at a time: a character appears once its last byte is there.

    The pieces, with what `finish` returns, are together what `Tokenizer.decode` returns for all
    ids at once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the characters that this token completes, often one word, sometimes none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """Return what a last, incomplete character leaves, U+FFFD or nothing, and start anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def utf8(text: str | bytes) -> bytes:
    """Return the text as bytes.

    Raises:
        ValueError: If it holds half of a surrogate pair, which UTF-8 cannot express.
    """
    if isinstance(text, bytes):
        return text
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} of the text is {text[error.start]!r}, half of a surrogate "
            "pair; expected whole characters. Read the text with errors='replace', or give bytes."
        ) from error
