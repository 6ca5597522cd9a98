"""The vocabulary files of RWKV's World tokenizer, and the search for the longest token."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

from doxastic.language.tokenizers.base import Table


def read_vocabulary(path: Path) -> Table:
    r"""Return the bytes of each id in a vocabulary file; id 0, the end of a document, has none.

    A line holds an id, a Python literal of type `str` (as UTF-8) or `bytes`, and the number of
    bytes: `129 b'\x80' 1`. The literals are parsed, never evaluated.

    Raises:
        ValueError: If a line is something else, its length disagrees, or an id or a token stands
            there twice; the message names the line.
    """
    tokens: dict[int, bytes] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the vocabulary {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                token_id, token = _parse(line)
                if token_id in tokens:
                    raise ValueError(f"id {token_id} stood there before")
            except (ValueError, SyntaxError) as error:
                raise ValueError(
                    f"{path}, line {number}: {error}; expected '<id from 1> <literal> <length>' "
                    "as in rwkv_vocab_v20230424.txt."
                ) from error
            tokens[token_id] = token
    if not tokens:
        raise ValueError(f"{path} is empty; expected a vocabulary of the World tokenizer.")
    if len(set(tokens.values())) < len(tokens):
        raise ValueError(f"{path} gives the same token two ids; expected one id for each.")
    return [b"", *(tokens.get(token_id) for token_id in range(1, max(tokens) + 1))]


def digest(table: Table) -> str:
    """Return the SHA-256 of a table of tokens, however its file spells them."""
    lines = ("" if token is None else token.hex() for token in table)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class GreedyEncoder:
    """The longest token that fits at each byte, from left to right.

    Only the lengths that tokens with the next two bytes have are tried: on English text that is
    two to three times as fast as a walk down a tree of characters.
    """

    def __init__(self, table: Table) -> None:
        self._ids = {token: index for index, token in enumerate(table) if token}
        lengths: dict[bytes, set[int]] = {}
        for token in self._ids:
            lengths.setdefault(token[:2], set()).add(len(token))
        self._lengths = {
            start: tuple(sorted(found, reverse=True)) for start, found in lengths.items()
        }

    def __call__(self, data: bytes) -> list[int]:
        """Return the ids of the data.

        Raises:
            ValueError: If no token fits somewhere.
        """
        ids, position, get = [], 0, self._ids.get
        while position < len(data):
            for length in self._lengths.get(data[position : position + 2], ()):
                token = get(data[position : position + length])
                if token is not None:
                    break
            else:
                # No token of two bytes or more begins so, or the data ends within them all.
                length, token = 1, get(data[position : position + 1])
                if token is None:
                    raise ValueError(
                        f"no token of the vocabulary fits at byte {position} of the text, "
                        f"{data[position : position + 8]!r}; expected one for each single byte."
                    )
            ids.append(token)
            position += length
        return ids


def _parse(line: str) -> tuple[int, bytes]:
    token_id, _, rest = line.strip().partition(" ")
    literal, _, length = rest.rpartition(" ")
    token = ast.literal_eval(literal)
    token = token.encode() if isinstance(token, str) else token
    if not isinstance(token, bytes) or not token:
        raise ValueError(f"{literal[:40]} is no string with characters")
    if len(token) != int(length):
        raise ValueError(f"{literal[:40]} has {len(token)} bytes, not {length}")
    if not 1 <= int(token_id) < 1 << 31:
        raise ValueError(f"id {token_id} is outside 1 to 2^31 - 1")
    return int(token_id), token
