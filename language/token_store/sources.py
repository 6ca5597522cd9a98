"""The documents in text files, folders and JSONL, read piece by piece."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SUFFIXES = (".txt", ".md", ".jsonl")
"""The files of a folder that are read unless others are chosen."""

PIECE = 1 << 20
Progress = Callable[[int, int], None]


class Source(NamedTuple):
    """A file to read, under the name it has in the description of the store."""

    path: Path
    name: str
    size: int
    modified: int
    """In nanoseconds, as the file system has it."""


class Part(NamedTuple):
    """A stretch of a document, in pieces, and whether its tokens are targets that count."""

    pieces: Iterable[bytes]
    counts: bool


class Tally:
    """What has been read: the digest of each file, and how far it is, told once per mebibyte."""

    def __init__(self, sources: list[Source], progress: Progress | None) -> None:
        self.digests: dict[str, str] = {}
        self._total = sum(source.size for source in sources)
        self._progress = progress
        self._done = self._told = 0

    def watch(self, source: Source, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the pieces of a file, all of it, and count them."""
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
            self._done += len(piece)
            if self._done - self._told >= PIECE:
                self.tell()
            yield piece
        self.digests[source.name] = digest.hexdigest()

    def tell(self) -> None:
        """Call the progress callback, if there is one."""
        self._told = self._done
        if self._progress is not None:
            self._progress(self._done, self._total)


def list_sources(source: Path, suffixes: Iterable[str]) -> list[Source]:
    """Return the files to read: the one named, or those of a folder and all below it, sorted.

    In a folder, files and folders whose name begins with a dot are left out, and so are runs, which
    write metrics and texts of their own while they are trained.

    Raises:
        ValueError: If there is nothing to read.
    """
    if source.is_file():
        return [_describe(source, source.name)]
    if not source.is_dir():
        raise ValueError(f"{source} does not exist; expected a text file, a .jsonl or a folder.")
    wanted = tuple(suffix.lower() for suffix in suffixes)
    visible = [
        path
        for path in source.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(source).parts)
    ]
    runs = {path.parent for path in visible if _configures_run(path)} - {source}
    texts = {
        path.relative_to(source).as_posix(): path
        for path in visible
        if runs.isdisjoint(path.parents)
    }
    chosen = [
        _describe(texts[name], name) for name in sorted(texts) if name.lower().endswith(wanted)
    ]
    if not chosen:
        found = sorted({path.suffix for path in texts.values()})[:20]
        raise ValueError(
            f"{source} has no file that ends in {', '.join(wanted)}; it has the suffixes {found}. "
            "Choose the suffixes to read (--suffixes)."
        )
    return chosen


def documents(source: Source, field: str, as_text: bool, tally: Tally) -> Iterator[list[Part]]:
    """Yield the documents of a file that are not empty: its lines if it is JSONL, else itself.

    Args:
        source: The file.
        field: The field of a line of JSONL that holds the text of a document.
        as_text: Whether a text file must be UTF-8; JSON always must be.
        tally: What counts the bytes that are read.

    Raises:
        ValueError: If bytes are not UTF-8, or a line of JSONL holds no document.
    """
    if source.path.suffix.lower() == ".jsonl":
        yield from _lines(source, field, tally)
    elif source.size:
        pieces = tally.watch(source, _read(source.path))
        yield [Part(_whole_characters(source.path, pieces) if as_text else pieces, True)]
    else:
        tally.digests[source.name] = hashlib.sha256().hexdigest()


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(path: Path, name: str) -> Source:
    about = path.stat()
    return Source(path, name, about.st_size, about.st_mtime_ns)


def _configures_run(path: Path) -> bool:
    """Return whether a file is the configuration in the folder of a run."""
    return path.name == "config.yaml" and (path.parent / "checkpoints").is_dir()


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


def _whole_characters(path: Path, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the same bytes, parted between characters."""
    rest, offset = b"", 0
    for piece in pieces:
        data = rest + piece
        try:
            data.decode()
            end = len(data)
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data":
                raise _not_utf8(path, offset + error.start, error) from error
            end = error.start
        if end:
            yield data[:end]
        rest, offset = data[end:], offset + end
    if rest:
        raise _not_utf8(path, offset, "a character is cut short")


def _not_utf8(path: Path, offset: int, reason: object) -> ValueError:
    reason = reason.reason if isinstance(reason, UnicodeDecodeError) else reason
    return ValueError(
        f"{path} is not UTF-8 at byte {offset}: {reason}. Convert it (iconv -t utf-8), or use the "
        "tokenizer 'bytes', which takes any file."
    )


def _lines(source: Source, field: str, tally: Tally) -> Iterator[list[Part]]:
    offset = 0
    with source.path.open("rb") as file:
        for number, line in enumerate(tally.watch(source, file), 1):
            # Some editors put a mark before the first line, which JSON does not allow.
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if content.strip():
                try:
                    parts = _fields(json.loads(content.decode()), field)
                except UnicodeDecodeError as error:
                    start = offset + len(line) - len(content) + error.start
                    raise ValueError(
                        f"{source.path}, line {number}: not UTF-8 at byte {start} of the file: "
                        f"{error.reason}. JSON is UTF-8; convert it."
                    ) from error
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{source.path}, line {number}: {error}") from error
                if any(text for text, _ in parts):
                    yield [Part([text], counts) for text, counts in parts if text]
            offset += len(line)


def _fields(value: Any, field: str) -> list[tuple[bytes, bool]]:
    if not isinstance(value, dict):
        raise ValueError(f"holds {_kind(value)}; expected an object")
    pair = ("prompt", "completion")
    names = (field,) if field in value else pair
    if missing := [name for name in names if name not in value]:
        raise ValueError(
            f"has the fields {list(value)[:10]}, {missing[0]!r} is missing; expected {field!r}, or "
            "'prompt' and 'completion'"
        )
    for name in names:
        if not isinstance(value[name], str):
            raise ValueError(f"{name!r} is {_kind(value[name])}; expected a string")
    return [(value[name].encode(), name != "prompt") for name in names]


def _kind(value: object) -> str:
    return "null" if value is None else f"a value of type {type(value).__name__}"
