"""Tokenizers: every text comes back, in pieces too, and what is no vocabulary is refused."""

from __future__ import annotations

import builtins
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doxastic.language.tokenizers import (
    StreamDecoder,
    Tokenizer,
    WorldTokenizer,
    load_tokenizer,
)
from doxastic.language.tokenizers.world_vocabulary import GreedyEncoder

TRICKY = (
    "",
    "plain text",
    "  leading, trailing and    inner spaces  \n\n\n",
    "naïve café, Zürich, Ελληνικά, русский, 日本語テキスト, 한국어",
    "emoji 👩‍👩‍👧‍👦 🏳️‍🌈 and a lone \U0001f600",
    "tabs\tand\r\nline ends\r\x0b\x0c\x00\x7f\u2028\u00a0",
    "def f(x):\n    return {'a': [1, 2, 3]}  # code\n",
    "e\u0301 combining, \ufeff a mark, \U0010ffff the last",
)
# Broken UTF-8: a lone continuation, a cut character, an overlong form, a surrogate, no lead byte.
BROKEN = (b"a\x80b", b"\xe2\x82", b"\xc0\xaf", b"\xed\xa0\x80", b"\xff\xfe\xfd", b"\xf0\x9f\x98 x")


def write_vocabulary(path: Path, tokens: dict[int, str | bytes]) -> Path:
    def size(token: str | bytes) -> int:
        return len(token.encode() if isinstance(token, str) else token)

    lines = [f"{token_id} {token!r} {size(token)}" for token_id, token in tokens.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def small_vocabulary(path: Path) -> Path:
    """Write a vocabulary with every byte, tokens within each other, and parts of characters."""
    longer = [b"ab", b"abc", b"abcdefgh", b"bcd", b"\xf0\x9f", b"\x98\x80 ", " 日".encode()]
    tokens = [bytes([byte]) for byte in range(256)] + longer
    return write_vocabulary(path, dict(enumerate(tokens, 1)))


def small_byte_level_bpe(
    path: Path,
    *,
    prefix_space: bool = False,
    use_regex: bool = True,
    split: str = "",
    absent: str = "",
) -> Path:
    """Train a byte-level tokenizer on a few words and write it, with an end of document."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    level = tokenizers.pre_tokenizers.ByteLevel
    parts = [level(add_prefix_space=prefix_space, use_regex=use_regex)]
    if split:
        pattern = tokenizers.Regex(split)
        parts.insert(0, tokenizers.pre_tokenizers.Split(pattern, "isolated"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(parts)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|user|>"],
        initial_alphabet=sorted(set(level.alphabet()) - set(absent)),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, 日本語 the end\n"] * 50, trainer)
    tokenizer.save(str(path))
    return path


@pytest.fixture(params=["bytes", "world", "world file", "hugging face"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    match request.param:
        case "world":
            return official()
        case "world file":
            return load_tokenizer(f"world:{small_vocabulary(tmp_path / 'vocabulary.txt')}")
        case "hugging face":
            return load_tokenizer(small_byte_level_bpe(tmp_path / "tokenizer.json"))
    return load_tokenizer("bytes")


@functools.cache
def official() -> WorldTokenizer:
    """Return the World tokenizer, loaded once for all tests."""
    pytest.importorskip("pyrwkv_tokenizer")
    return WorldTokenizer()


def random_texts(count: int, length: int) -> Iterator[str]:
    random = np.random.default_rng(0)
    alphabet = "abcdefgh \n\t.,0123é日本語😀\u0301"
    for _ in range(count):
        yield "".join(random.choice(list(alphabet), length))


@pytest.mark.parametrize("text", TRICKY)
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()
    assert np.array_equal(tokenizer.encode(text.encode()), ids)


def test_random_texts_come_back(tokenizer: Tokenizer) -> None:
    for text in random_texts(50, 60):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("data", BROKEN)
@pytest.mark.parametrize("name", ["bytes", "world"])
def test_bytes_and_world_express_any_bytes(name: str, data: bytes) -> None:
    tokenizer = official() if name == "world" else load_tokenizer(name)
    ids = tokenizer.encode(data)
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode(ids) == data.decode("utf-8", "replace")


def test_every_id_but_the_end_has_bytes(tokenizer: Tokenizer) -> None:
    lengths = [len(tokenizer.token_bytes(index)) for index in range(tokenizer.vocab_size)]
    assert [index for index, length in enumerate(lengths) if not length] == [
        tokenizer.end_of_document
    ]


@pytest.mark.parametrize("outside", [-1, 1 << 20])
def test_an_id_out_of_range_is_refused(tokenizer: Tokenizer, outside: int) -> None:
    with pytest.raises(ValueError, match=f"has no token {outside}; its ids run from 0 to"):
        tokenizer.decode([outside])
    with pytest.raises(ValueError, match="has no token"):
        StreamDecoder(tokenizer).push(tokenizer.vocab_size)


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"character 3 of the text is .*surrogate"):
        tokenizer.encode("abc\ud83d")


def test_a_spec_makes_the_same_tokenizer_again(tokenizer: Tokenizer) -> None:
    again = load_tokenizer(tokenizer.spec)
    assert (again.fingerprint, again.spec) == (tokenizer.fingerprint, tokenizer.spec)
    assert again.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_pieces_encode_like_the_whole(tokenizer: Tokenizer, piece: int) -> None:
    for text in (*TRICKY, *random_texts(5, 400)):
        data = text.encode()
        pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
        found = np.concatenate([np.zeros(0, int), *tokenizer.encode_stream(pieces)])
        assert np.array_equal(found, tokenizer.encode(text))


def test_world_pieces_are_not_kept_back() -> None:
    text = "The longest token has 128 bytes, 日本語. " * 200
    pieces = [text.encode()[start : start + 500] for start in range(0, len(text.encode()), 500)]
    parts = list(official().encode_stream(iter(pieces)))
    assert len(parts) > 10
    assert np.array_equal(np.concatenate(parts), official().encode(text))


def test_streamed_text_equals_decoding_at_once(tokenizer: Tokenizer) -> None:
    for text in (*TRICKY, *random_texts(10, 40)):
        decoder = StreamDecoder(tokenizer)
        ids = tokenizer.encode(text)
        pieces = [decoder.push(token_id) for token_id in ids]
        assert "".join(pieces) + decoder.finish() == text
        assert not any("\ufffd" in piece for piece in pieces)


def test_random_ids_stream_like_they_decode(tokenizer: Tokenizer) -> None:
    random = np.random.default_rng(1)
    decoder = StreamDecoder(tokenizer)
    for _ in range(50):
        ids = random.integers(0, tokenizer.vocab_size, 30)
        streamed = "".join(decoder.push(token_id) for token_id in ids) + decoder.finish()
        assert streamed == tokenizer.decode(ids)


def test_a_character_appears_with_its_last_byte() -> None:
    decoder = StreamDecoder(load_tokenizer("bytes"))
    assert [decoder.push(byte) for byte in "a😀b".encode()] == ["a", "", "", "", "😀", "b"]
    assert [decoder.push(byte) for byte in b"\xe2\x82"] == ["", ""]
    assert decoder.finish() == "\ufffd"
    assert decoder.push(ord("c")) == "c"
    assert decoder.finish() == ""


def test_bytes_are_their_own_ids() -> None:
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert (tokenizer.vocab_size, tokenizer.end_of_document) == (257, 256)


def test_the_world_vocabulary_is_the_official_one() -> None:
    tokenizer = official()
    assert (tokenizer.vocab_size, tokenizer.end_of_document) == (65530, 0)
    assert tokenizer.encoder == "rust"
    # The ids that the `rwkv` package 0.8.32 gives.
    assert tokenizer.encode("héllo\x00").tolist() == [7736, 8104, 1]
    assert tokenizer.token_bytes(65529) == b" " * 128


def test_greedy_search_in_python_equals_the_rust_encoder() -> None:
    tokenizer = official()
    greedy = GreedyEncoder(tokenizer._table)
    every = [tokenizer.token_bytes(index) for index in range(1, 65530, 7)]
    words = b"".join(every).decode("utf-8", "ignore")
    random = np.random.default_rng(2)
    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x110000)]
    mixed = "".join(chr(random.integers(*ranges[random.integers(4)])) for _ in range(20000))
    for text in (*TRICKY, words, mixed):
        assert greedy(text.encode()) == tokenizer.encode(text).tolist()


def test_greedy_search_takes_the_longest_token_and_no_longer(tmp_path: Path) -> None:
    tokenizer = WorldTokenizer(small_vocabulary(tmp_path / "vocabulary.txt"))
    assert tokenizer.encoder == "python"
    parts = [tokenizer.token_bytes(index) for index in tokenizer.encode("abcdabcdefghabcdefg")]
    assert parts == [b"abc", b"d", b"abcdefgh", b"abc", b"d", b"e", b"f", b"g"]


def test_a_vocabulary_file_may_leave_ids_out(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "v.txt", {1: "a", 5: "b"})
    tokenizer = WorldTokenizer(path)
    assert tokenizer.vocab_size == 6
    assert tokenizer.encode("ab").tolist() == [1, 5]
    with pytest.raises(ValueError, match="has no token 3"):
        tokenizer.decode([3])
    with pytest.raises(ValueError, match="no token of the vocabulary fits at byte 1 of the text"):
        tokenizer.encode("axb")


def test_the_official_table_in_another_file_is_the_same_tokenizer(tmp_path: Path) -> None:
    tokenizer = official()
    tokens = {index: tokenizer.token_bytes(index) for index in range(1, 65530)}
    again = WorldTokenizer(write_vocabulary(tmp_path / "v.txt", tokens))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encoder == "rust"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("1 'a' 1\nhello world\n", "line 2: .*expected '<id from 1> <literal> <length>'"),
        ("1 'a' 1\n2 'é' 1\n", "line 2: 'é' has 2 bytes, not 1"),
        ("1 'a' 1\n1 'b' 1\n", "line 2: id 1 stood there before"),
        ("1 'a' 1\n2 'a' 1\n", "the same token two ids"),
        ("0 'a' 1\n", "line 1: id 0 is outside"),
        ("1 '' 0\n", "line 1: '' is no string with characters"),
        ("1 __import__('os') 1\n", "line 1: malformed node"),
        ("1 ['a'] 1\n", "line 1: .*no string"),
        ('{"version": "1.0"}', "line 1: "),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "v.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_tokenizer(f"world:{path}")


def test_a_vocabulary_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the vocabulary .*absent\.txt"):
        load_tokenizer(f"world:{tmp_path / 'absent.txt'}")
    (tmp_path / "v.bin").write_bytes(b"\xff\xfe1")
    with pytest.raises(ValueError, match=r"cannot read the vocabulary .*v\.bin"):
        load_tokenizer(f"world:{tmp_path / 'v.bin'}")


def block_import(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    real = builtins.__import__

    def fake(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == absent:
            raise ModuleNotFoundError(f"No module named {absent!r}", name=absent)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", fake)


def test_without_the_extra_world_needs_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_import(monkeypatch, "pyrwkv_tokenizer")
    with pytest.raises(ImportError, match=r"pip install 'doxastic\[world\]'"):
        load_tokenizer("world")
    tokenizer = load_tokenizer(f"world:{small_vocabulary(tmp_path / 'v.txt')}")
    assert tokenizer.decode(tokenizer.encode("日本 abcd")) == "日本 abcd"


def test_without_the_extra_a_hugging_face_file_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}", encoding="utf-8")
    block_import(monkeypatch, "tokenizers")
    with pytest.raises(ImportError, match=r"pip install 'doxastic\[hf\]'"):
        load_tokenizer(path)


@pytest.mark.parametrize("spec", ["", "word", "absent.json", "world65k"])
def test_an_unknown_spec_lists_what_there_is(spec: str) -> None:
    with pytest.raises(ValueError, match="expected 'bytes', 'world', 'world:<vocabulary file>'"):
        load_tokenizer(spec)


def test_a_bare_vocabulary_path_is_told_its_prefix(tmp_path: Path) -> None:
    path = small_vocabulary(tmp_path / "v.txt")
    with pytest.raises(ValueError, match=f"write world:{path}"):
        load_tokenizer(path)


def test_a_hugging_face_file_gives_the_ids_of_its_library(tmp_path: Path) -> None:
    path = small_byte_level_bpe(tmp_path / "tokenizer.json")
    library = pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))
    tokenizer = load_tokenizer(tmp_path)
    for text in TRICKY:
        assert tokenizer.encode(text).tolist() == library.encode(text).ids
    assert tokenizer.vocab_size == library.get_vocab_size()
    assert tokenizer.encode("<|user|>the").tolist()[0] == library.token_to_id("<|user|>")
    assert tokenizer.decode(tokenizer.encode("<|user|>the")) == "<|user|>the"
    with pytest.raises(ValueError, match="byte 1 of the text is not UTF-8"):
        tokenizer.encode(b"a\xff")


def test_a_truncation_in_the_file_is_not_obeyed(tmp_path: Path) -> None:
    path = small_byte_level_bpe(tmp_path / "tokenizer.json")
    library = pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))
    library.enable_truncation(3)
    library.enable_padding(length=50)
    library.save(str(path))
    tokenizer = load_tokenizer(path)
    assert tokenizer.decode(tokenizer.encode("a long text, all of it")) == "a long text, all of it"
    assert len(tokenizer.encode("a")) == 1


@pytest.mark.parametrize("prefix_space", [False, True])
@pytest.mark.parametrize("joint", [" ", "\n"])
def test_a_long_text_is_parted_where_its_tokens_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix_space: bool, joint: str
) -> None:
    path = small_byte_level_bpe(tmp_path / "tokenizer.json", prefix_space=prefix_space)
    tokenizer = load_tokenizer(path)
    monkeypatch.setattr("doxastic.language.tokenizers.hugging_face.PART", 300)
    text = joint.join(["the", "cat,", "日本語", "sat..", "\n\n", "on", "  ", "it's"] * 100)
    data = text.encode()
    pieces = [data[start : start + 97] for start in range(0, len(data), 97)]
    parts = list(tokenizer.encode_stream(pieces))
    assert np.array_equal(np.concatenate(parts), tokenizer.encode(text))
    assert (len(parts) > 5) == (joint == " " or not prefix_space)


@pytest.mark.parametrize(
    ("split", "parted"),
    [
        ("", False),
        (r"\p{N}{1,3}", False),
        (r"\d+| ?\p{L}+|\s+(?!\S)|\s+", True),
    ],
)
def test_a_long_text_is_whole_where_its_tokens_span_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, parted: bool
) -> None:
    path = small_byte_level_bpe(tmp_path / "tokenizer.json", use_regex=False, split=split)
    tokenizer = load_tokenizer(path)
    monkeypatch.setattr("doxastic.language.tokenizers.hugging_face.PART", 300)
    text = "the cat sat on the mat, 日本語 the end\n" * 40
    data = text.encode()
    pieces = [data[start : start + 97] for start in range(0, len(data), 97)]
    parts = list(tokenizer.encode_stream(pieces))
    assert np.array_equal(np.concatenate(parts), tokenizer.encode(text))
    assert (len(parts) > 1) == parted


@pytest.mark.parametrize(("absent", "byte"), [("Z1", "0x31"), ("łÃ", "0xa0"), ("Ā", "0x00")])
def test_a_vocabulary_that_would_lose_bytes_is_refused(
    tmp_path: Path, absent: str, byte: str
) -> None:
    path = small_byte_level_bpe(tmp_path / "tokenizer.json", absent=absent)
    with pytest.raises(ValueError, match=f"has no token for {len(absent)} bytes, {byte} the first"):
        load_tokenizer(path)


def test_bytes_that_no_text_has_need_no_token(tmp_path: Path) -> None:
    never = "".join(chr(byte) for byte in (0xC0, 0xC1, *range(0xF5, 0x100)))
    tokenizer = load_tokenizer(small_byte_level_bpe(tmp_path / "tokenizer.json", absent=never))
    text = "".join(map(chr, (*range(0x900), *range(0xFFF0, 0x10010), 0x10FFFF)))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_end_of_document_is_what_the_configuration_says(tmp_path: Path) -> None:
    path = small_byte_level_bpe(tmp_path / "tokenizer.json")
    library = pytest.importorskip("tokenizers").Tokenizer.from_file(str(path))
    before = load_tokenizer(path)
    assert before.end_of_document == library.token_to_id("<|endoftext|>")
    for value in ("<|user|>", {"content": "<|user|>"}):
        config = json.dumps({"eos_token": value})
        (tmp_path / "tokenizer_config.json").write_text(config, encoding="utf-8")
        other = load_tokenizer(path)
        assert other.end_of_document == library.token_to_id("<|user|>")
        assert other.fingerprint != before.fingerprint


def test_a_file_that_is_no_byte_level_tokenizer_is_refused(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    path.write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer\.json"):
        load_tokenizer(path)
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    library.save(str(path))
    with pytest.raises(ValueError, match=r"decodes with nothing; expected \['ByteLevel'\]"):
        load_tokenizer(path)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.save(str(path))
    with pytest.raises(ValueError, match=r"has no token for \d+ bytes, 0x00 the first"):
        load_tokenizer(path)
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "日": 1}, unk_token="a"))
    library.decoder = tokenizers.decoders.ByteLevel()
    library.save(str(path))
    with pytest.raises(ValueError, match="no token that ends a document"):
        load_tokenizer(path)
    library.add_special_tokens(["</s>"])
    library.save(str(path))
    with pytest.raises(ValueError, match="token 1, '日', has the character '日'"):
        load_tokenizer(path)
