"""A token store from files: streamed, whole or not there at all, and kept while they last."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from doxastic.language.token_store.files import FORMAT, VERSION, read_description
from doxastic.language.token_store.placing import building, install, require_replaceable
from doxastic.language.token_store.sources import (
    SUFFIXES,
    Progress,
    Source,
    Tally,
    digest_of,
    documents,
    list_sources,
)
from doxastic.language.token_store.store import TokenStore
from doxastic.language.token_store.writer import StoreWriter
from doxastic.language.tokenizers import Tokenizer


def build_store(
    source: str | Path,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    field: str = "text",
    suffixes: Iterable[str] = SUFFIXES,
    progress: Progress | None = None,
) -> TokenStore:
    """Return the store of a corpus, built in `folder` unless it is there already.

    A text file is one document. Of a folder, every file with one of the suffixes is one, in the
    order of their paths. A line of JSONL is a document too: the text in `field`, or a prompt,
    which is read but not learnt, and its completion; the two are encoded each on its own, as they
    are when text is generated. Empty documents are left out.

    The store in `folder` is used again if it was made in the same way from files of the same
    names and contents. A file whose size and time of modification are as they were counts as
    unchanged; of the same size but another time, its SHA-256 decides.

    Memory is bounded, by the longest line for JSONL. The store appears in one step once it is
    complete; what a killed build leaves is no store, and the next build on that machine clears it.

    Args:
        source: A text file, a `.jsonl` file, or a folder of either.
        tokenizer: What cuts the text.
        folder: Where the store goes; if it exists, it must be empty or hold a store.
        field: The field of a line of JSONL with the text.
        suffixes: The files of a folder to read.
        progress: Called about once per mebibyte, and at the end, with the number of bytes that
            have been read, and of all there are.

    Raises:
        ValueError: If a file is empty, not UTF-8 (all but the byte tokenizer need it) or no
            JSONL, if there is nothing to read, or `folder` holds something else.
        OSError: If a file cannot be read, or the store not be written.
    """
    source, folder = Path(source), Path(folder)
    suffixes = sorted(set(suffixes))
    sources = list_sources(source, suffixes)
    recipe = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": tokenizer.fingerprint,
        "field": field,
        "suffixes": suffixes if source.is_dir() else [],
    }
    if _is_current(folder, recipe, sources):
        return TokenStore.open(folder)
    require_replaceable(folder)
    with building(folder) as built:
        tally = Tally(sources, progress)
        about = recipe | _write(built, folder, sources, tokenizer, field, tally)
        tally.tell()
        if not about["documents"]:
            raise ValueError(f"{source} is empty; expected at least one document with text.")
        about["sources"] = [
            {
                "name": s.name,
                "size": s.size,
                "modified": s.modified,
                "sha256": tally.digests[s.name],
            }
            for s in sources
        ]
        # Another process may have built the same meanwhile, and be reading it.
        if not _is_current(folder, recipe, sources):
            install(built, folder, json.dumps(about, indent=1))
    return TokenStore.open(folder)


def _write(
    built: Path,
    folder: Path,
    sources: list[Source],
    tokenizer: Tokenizer,
    field: str,
    tally: Tally,
) -> dict[str, Any]:
    """Write the tokens of all documents, and return what store.json says about them."""
    as_text = not tokenizer.takes_any_bytes
    with StoreWriter(built, tokenizer, folder) as writer:
        for source in sources:
            for parts in documents(source, field, as_text, tally):
                writer.start_document()
                for pieces, counts in parts:
                    for ids in tokenizer.encode_stream(pieces):
                        writer.append(ids, counts)
        return writer.finish()


def _is_current(folder: Path, recipe: dict[str, Any], sources: list[Source]) -> bool:
    """Return whether the folder holds the store that would be built."""
    try:
        TokenStore.open(folder)
        about = read_description(folder)
    except ValueError:
        return False
    before = {entry["name"]: entry for entry in about["sources"]}
    if any(about.get(key) != value for key, value in recipe.items()):
        return False
    if before.keys() != {source.name for source in sources}:
        return False
    return all(_is_unchanged(source, before[source.name]) for source in sources)


def _is_unchanged(source: Source, before: dict[str, Any]) -> bool:
    if source.size != before["size"]:
        return False
    return source.modified == before["modified"] or digest_of(source.path) == before["sha256"]
