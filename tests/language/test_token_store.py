"""Token stores: what is in the files, whole or not at all; bad files are named."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doxastic.language.token_store import TokenStore, build_store, check_vocabulary
from doxastic.language.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer

BYTES = ByteTokenizer()
END = BYTES.end_of_document


@functools.cache
def world() -> Tokenizer:
    pytest.importorskip("pyrwkv_tokenizer")
    return load_tokenizer("world")


def texts(store: TokenStore) -> list[str]:
    """Return the text of every document, each of which opens with the end of document."""
    ends = [*store.documents[1:], len(store)]
    documents = [store.tokens[a:b] for a, b in zip(store.documents, ends, strict=True)]
    assert all(document[0] == store.end_of_document for document in documents)
    return [
        (BYTES if store.tokenizer == "bytes" else world()).decode(document[1:])
        for document in documents
    ]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_lines(path: Path, *lines: object) -> Path:
    return write(path, "".join(json.dumps(line) + "\n" for line in lines))


def test_a_file_is_one_document(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "héllo\r\n日本")
    store = build_store(source, BYTES, tmp_path / "store")
    assert texts(store) == ["héllo\r\n日本"]
    assert isinstance(store.tokens, np.memmap)
    assert store.tokens.dtype == np.uint16
    assert (len(store), store.mask, store.closed) == (1 + len(source.read_bytes()), None, True)
    assert (store.vocab_size, store.end_of_document, store.largest_id) == (257, END, END)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        "documents.npy",
        "store.json",
        "tokens.bin",
    ]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("b.txt", "a/z.TXT", "a/b/c.md", "skip.bin", ".hidden/h.txt", ".h.txt", "e.txt"):
        write(folder / name, "" if name == "e.txt" else name)
    write_lines(folder / "a" / "lines.jsonl", {"text": "one"}, {"text": ""}, {"text": "two"})
    store = build_store(folder, BYTES, tmp_path / "store")
    assert texts(store) == ["a/b/c.md", "one", "two", "a/z.TXT", "b.txt"]
    assert np.array_equal(store.lengths, [9, 4, 4, 8, 6])
    chosen = build_store(folder, BYTES, tmp_path / "other", suffixes=[".bin"])
    assert texts(chosen) == ["skip.bin"]


def test_runs_in_a_folder_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name in ("a.txt", "b/config.yaml", "b/b.txt", "runs/r/config.yaml", "runs/r/samples/1.txt"):
        write(folder / name, name)
    (folder / "runs" / "r" / "checkpoints").mkdir()
    assert texts(build_store(folder, BYTES, tmp_path / "store")) == ["a.txt", "b/b.txt"]
    # What is named itself is read.
    run = folder / "runs" / "r"
    assert texts(build_store(run, BYTES, tmp_path / "run")) == ["runs/r/samples/1.txt"]


def test_a_line_holds_a_text_or_a_prompt_with_its_completion(tmp_path: Path) -> None:
    source = write(
        tmp_path / "a.jsonl",
        b'\xef\xbb\xbf{"text": "whole"}\r\n\n'
        b'{"prompt": "ask", "completion": "yes", "id": 3}\n'
        b'{"prompt": "", "completion": ""}\n{"prompt": "p", "completion": ""}',
    )
    store = build_store(source, BYTES, tmp_path / "store")
    assert texts(store) == ["whole", "askyes", "p"]
    assert store.mask is not None
    assert "".join("01"[int(counts)] for counts in store.mask) == "111111" + "1000111" + "10"


def test_prompt_and_completion_are_encoded_each_on_its_own(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", {"prompt": "some", "completion": "thing new"})
    store = build_store(source, world(), tmp_path / "store")
    expected = [*world().encode("some"), *world().encode("thing new")]
    assert store.tokens[1:].tolist() == expected != world().encode("something new").tolist()


def test_another_field_may_hold_the_text(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", {"text": 1, "content": "yes"})
    assert texts(build_store(source, BYTES, tmp_path / "store", field="content")) == ["yes"]


@pytest.mark.parametrize("spec", ["bytes", "world"])
def test_a_large_file_is_encoded_like_its_whole_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    tokenizer = world() if spec == "world" else BYTES
    monkeypatch.setattr("doxastic.language.token_store.sources.PIECE", 1000)
    text = "".join(f"{n} 日本語 café {n * n}, " for n in range(2000))
    told: list[tuple[int, int]] = []
    source = write(tmp_path / "a.txt", text)
    store = build_store(
        source, tokenizer, tmp_path / "store", progress=lambda *done: told.append(done)
    )
    assert np.array_equal(store.tokens[1:], tokenizer.encode(text))
    size = source.stat().st_size
    assert len(told) > 20
    assert told == sorted(told)
    assert {total for _, total in told} == {size}
    assert told[-1][0] == size


def test_memory_does_not_grow_with_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("doxastic.language.token_store.sources.PIECE", 1 << 14)
    lines = [{"prompt": "p" * 1000, "completion": "c" * 1000}] * 2000
    source = write_lines(tmp_path / "a.jsonl", *lines)
    text = write(tmp_path / "a.txt", "word " * 900_000)
    for path in (source, text):
        tracemalloc.start()
        build_store(path, BYTES, tmp_path / f"store {path.suffix}")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert path.stat().st_size > 4e6
        assert peak < 1e6


def test_an_unchanged_corpus_is_not_read_again(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "some text")
    before = build_store(source, BYTES, tmp_path / "store")
    written = (tmp_path / "store" / "tokens.bin").stat().st_mtime_ns
    source.chmod(0o600)
    again = build_store(source, BYTES, tmp_path / "store")
    assert again.identity == before.identity
    # Another time of modification alone is no other content.
    os.utime(source, ns=(1, 1))
    build_store(source, BYTES, tmp_path / "store")
    assert (tmp_path / "store" / "tokens.bin").stat().st_mtime_ns == written


@pytest.mark.parametrize("change", ["content", "size", "file", "tokenizer", "field", "damage"])
def test_what_has_changed_is_built_again(tmp_path: Path, change: str) -> None:
    folder, target, field = tmp_path / "data", tmp_path / "store", "text"
    tokenizer: Tokenizer = BYTES
    source = write_lines(folder / "a.jsonl", {"text": "some text", "other": "something"})
    before = build_store(folder, tokenizer, target)
    match change:
        case "content":
            write_lines(source, {"text": "same text", "other": "something"})
            os.utime(source, ns=(1, 1))
        case "size":
            write_lines(source, {"text": "some text!", "other": "something"})
        case "file":
            write(folder / "b.txt", "more")
        case "tokenizer":
            tokenizer = world()
        case "field":
            field = "other"
        case "damage":
            write(target / "tokens.bin", b"12")
    after = build_store(folder, tokenizer, target, field=field)
    assert (after.identity == before.identity) == (change == "damage")
    texts_now = {
        "content": ["same text"],
        "size": ["some text!"],
        "file": ["some text", "more"],
        "field": ["something"],
    }
    assert texts(after) == texts_now.get(change, ["some text"])


def test_who_has_an_older_store_open_keeps_it(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "old text")
    before = build_store(source, BYTES, tmp_path / "store")
    write(source, "a new text")
    after = build_store(source, BYTES, tmp_path / "store")
    assert (texts(before), texts(after)) == (["old text"], ["a new text"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "store"]


def test_of_two_builds_at_once_the_first_to_end_stays(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "text")
    inodes = []

    def build_again(*_: int) -> None:
        build_store(source, BYTES, tmp_path / "store")
        inodes.append((tmp_path / "store" / "tokens.bin").stat().st_ino)

    store = build_store(source, BYTES, tmp_path / "store", progress=build_again)
    assert inodes == [(tmp_path / "store" / "tokens.bin").stat().st_ino]
    assert texts(store) == ["text"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "store"]


def test_a_killed_build_leaves_nothing_that_opens(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "text " * 1000)
    code = """
import os, signal, sys
from doxastic.language.token_store import build, build_store
from doxastic.language.tokenizers import ByteTokenizer
def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
build.install = killed
build_store(sys.argv[1], ByteTokenizer(), sys.argv[2])
"""
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "store")]
    killed = subprocess.run(command, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (left,) = set(tmp_path.iterdir()) - {source}
    assert (left / "tokens.bin").stat().st_size > 0
    for folder in (left, tmp_path / "store"):
        with pytest.raises(ValueError, match="holds no token store"):
            TokenStore.open(folder)
    build_store(source, BYTES, tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "store"]


def test_a_failed_build_keeps_the_older_store(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write(folder / "a.txt", "text")
    build_store(folder, BYTES, tmp_path / "store")
    write(folder / "b.jsonl", "[]")
    with pytest.raises(ValueError, match="line 1"):
        build_store(folder, BYTES, tmp_path / "store")
    assert texts(TokenStore.open(tmp_path / "store")) == ["text"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "store"]


def test_a_full_disk_is_told_with_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    source = write(tmp_path / "a.txt", "text")
    with pytest.raises(OSError, match=r"cannot write the token store .*store: No space left"):
        build_store(source, BYTES, tmp_path / "store")
    assert list(tmp_path.iterdir()) == [source]


def test_nothing_but_a_store_is_replaced(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", "text")
    precious = write(tmp_path / "store" / "precious.doc", "mine")
    with pytest.raises(ValueError, match=r"store holds precious\.doc, which is no part"):
        build_store(source, BYTES, tmp_path / "store")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        build_store(source, BYTES, precious)
    assert precious.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt is empty"),
        ("a.jsonl", b'\n{"text": ""}\n', r"a\.jsonl is empty"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "y"\n', r"a\.jsonl, line 2: .*delimiter"),
        ("a.jsonl", b'{"text": "x"}\n\n["y"]\n', "line 3: holds a value of type list; expected an"),
        ("a.jsonl", b"null\n", "line 1: holds null; expected an object"),
        ("a.jsonl", b'{"txt": "x"}\n', r"line 1: has the fields \['txt'\], 'prompt' is missing"),
        ("a.jsonl", b'{"prompt": "x"}\n', "line 1: .* 'completion' is missing"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: 'text' is a value of type int; expected a string"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "line 2: not UTF-8 at byte 24 of the"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: .*surrogates not allowed"),
        ("a.jsonl", b"[" * 100_000, "line 1: "),
    ],
)
def test_a_bad_source_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    source = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message):
        build_store(source, BYTES, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("content", "offset"),
    [
        (b"M\xfcnchen", 1),
        (b"x" * 997 + "日".encode()[:2] + b"y" * 50, 997),
        (b"x" * 999 + "日".encode() + b"\x80", 1002),
        (b"x" * 999 + "日".encode()[:2], 999),
    ],
)
def test_bytes_that_are_not_text_are_found_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, offset: int
) -> None:
    monkeypatch.setattr("doxastic.language.token_store.sources.PIECE", 1000)
    source = write(tmp_path / "a.txt", content)
    with pytest.raises(ValueError, match=rf"a\.txt is not UTF-8 at byte {offset}: "):
        build_store(source, world(), tmp_path / "store")
    store = build_store(source, BYTES, tmp_path / "store")
    assert BYTES.decode_bytes(store.tokens[1:]) == content


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent does not exist; expected a text file"):
        build_store(tmp_path / "absent", BYTES, tmp_path / "store")
    write(tmp_path / "data" / "a.py", "x")
    with pytest.raises(ValueError, match=r"no file that ends in .*it has the suffixes \['\.py'\]"):
        build_store(tmp_path / "data", BYTES, tmp_path / "store")


def change_description(folder: Path, **changes: object) -> None:
    path = folder / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: cut(f / "tokens.bin"), r"tokens\.bin has 15 bytes; expected 16, 8 times uint16"),
        (lambda f: cut(f / "mask.bin"), r"mask\.bin has 7 bytes; expected 8"),
        (lambda f: cut(f / "documents.npy"), r"cannot read .*documents\.npy"),
        (lambda f: (f / "documents.npy").write_bytes(b""), r"cannot read .*documents\.npy"),
        (lambda f: (f / "tokens.bin").unlink(), r"cannot read .*tokens\.bin: No such file"),
        (lambda f: (f / "store.json").unlink(), "holds no token store"),
        (lambda f: (f / "store.json").write_text("{"), "holds no token store"),
        (lambda f: (f / "store.json").write_text("[]"), "does not describe a token store"),
        (lambda f: change_description(f, version=7), "has version 7; expected 1"),
        # Eight bytes a token: taken at its word, they would be followed as pointers.
        (
            lambda f: change_description(f, dtype="object", tokens=2),
            r"says that 257 ids are stored as object; expected uint16",
        ),
        (lambda f: change_description(f, vocab_size=1 << 17), "131072 ids are stored as uint16"),
        (lambda f: change_description(f, tokens="8"), "says that tokens is '8'; expected .* int"),
        (lambda f: change_description(f, masked=None), "that masked is None; expected .* bool"),
        (lambda f: change_description(f, documents=3), r"has \(2,\) int64; expected \(3,\)"),
        (lambda f: np.save(f / "documents.npy", np.array([0, 8])), "does not ascend from 0 to 8"),
    ],
)
def test_a_damaged_store_is_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    lines = ({"prompt": "a", "completion": "b"}, {"text": "cccc"})
    build_store(write_lines(tmp_path / "a.jsonl", *lines), BYTES, tmp_path / "store")
    spoil(tmp_path / "store")
    with pytest.raises(ValueError, match=message):
        TokenStore.open(tmp_path / "store")


def test_a_store_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    build_store(write(tmp_path / "a.txt", "text"), BYTES, tmp_path / "store")
    assert TokenStore.open(tmp_path / "store", BYTES).tokenizer == "bytes"
    with pytest.raises(ValueError, match="made with the tokenizer 'bytes', whose vocabulary"):
        TokenStore.open(tmp_path / "store", world())


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path: Path) -> None:
    store = build_store(write(tmp_path / "a.txt", "text"), BYTES, tmp_path / "store")
    check_vocabulary(store, 257)
    with pytest.raises(ValueError, match=r"holds the token 256, .*has the ids 0 to 255"):
        check_vocabulary(store, 256)


def in_memory(*lengths: int) -> TokenStore:
    documents = [np.arange(1, length) % 100 for length in lengths]
    return TokenStore.from_documents(documents, vocab_size=257, end_of_document=END)


def test_documents_in_memory_make_the_same_store(tmp_path: Path) -> None:
    lines = ({"prompt": "ask", "completion": "yes"}, {"text": "cccc"})
    built = build_store(write_lines(tmp_path / "a.jsonl", *lines), BYTES, tmp_path / "store")
    made = TokenStore.from_documents(
        [BYTES.encode("askyes"), BYTES.encode("cccc")],
        vocab_size=257,
        end_of_document=END,
        masks=[[False] * 3 + [True] * 3, [True] * 4],
    )
    assert np.array_equal(made.tokens, built.tokens)
    assert np.array_equal(made.documents, built.documents)
    assert np.array_equal(made.mask, built.mask)
    assert (made.largest_id, made.closed) == (built.largest_id, built.closed)


@pytest.mark.parametrize(
    ("documents", "message"),
    [([], "there are no documents"), ([[257]], "ids run from 256 to 257"), ([[-1]], "run from -1")],
)
def test_documents_in_memory_are_checked(documents: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenStore.from_documents(documents, vocab_size=257, end_of_document=END)


def test_masks_in_memory_have_the_lengths_of_documents() -> None:
    with pytest.raises(ValueError, match="masks differ from documents in length"):
        TokenStore.from_documents([[1, 2]], vocab_size=3, end_of_document=0, masks=[[True]])


@pytest.mark.parametrize(
    ("lengths", "fraction", "expected"),
    [
        # Where a document starts: exactly, before, and after the point asked for.
        ((50, 40, 10), 0.1, 90),
        ((50, 35, 15), 0.1, 85),
        ((50, 44, 6), 0.1, 94),
        # No start leaves between half and twice the fraction.
        ((100,), 0.1, 90),
        ((98, 2), 0.1, 90),
        ((10, 90), 0.1, 90),
    ],
)
def test_a_split_is_near_a_fraction_and_at_a_document_if_it_can(
    lengths: tuple[int, ...], fraction: float, expected: int
) -> None:
    store = in_memory(*lengths)
    train, held_out = store.split(fraction)
    assert len(train) == expected
    assert np.array_equal(np.concatenate([train.tokens, held_out.tokens]), store.tokens)
    at_document = expected in store.documents
    assert (train.closed, held_out.closed) == (at_document, True)
    assert train.documents.tolist() == [s for s in store.documents if s < expected]
    later = [int(s) - expected for s in store.documents if s >= expected]
    assert held_out.documents.tolist() == (later if at_document else [0, *later])
    assert int(train.lengths.sum()) == len(train)
    assert len({store.identity, train.identity, held_out.identity}) == 3


def test_a_split_keeps_the_mask_and_is_the_same_every_time(tmp_path: Path) -> None:
    lines = [{"prompt": "ask", "completion": "yes" * n} for n in range(1, 20)]
    store = build_store(write_lines(tmp_path / "a.jsonl", *lines), BYTES, tmp_path / "store")
    first, second = store.split(0.2), TokenStore.open(tmp_path / "store").split(0.2)
    for one, other in zip(first, second, strict=True):
        assert one.identity == other.identity
        assert np.array_equal(one.tokens, other.tokens)
        assert one.mask is not None and np.array_equal(one.mask, other.mask)
    assert texts(first[0]) + texts(first[1]) == texts(store)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5])
def test_a_split_needs_a_fraction(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"expected more than 0, less than 1"):
        in_memory(50, 50).split(fraction)


def test_a_split_needs_two_tokens_on_each_side() -> None:
    with pytest.raises(ValueError, match=r"a corpus of 10 tokens has no 0\.1 to hold out"):
        in_memory(10).split(0.1)
