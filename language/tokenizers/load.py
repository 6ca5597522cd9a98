"""A tokenizer from the one word or path that a configuration, a store or a model names."""

from __future__ import annotations

from pathlib import Path

from doxastic.language.tokenizers.base import Tokenizer
from doxastic.language.tokenizers.bytes import ByteTokenizer
from doxastic.language.tokenizers.hugging_face import HuggingFaceTokenizer
from doxastic.language.tokenizers.world import WorldTokenizer


def load_tokenizer(spec: str | Path) -> Tokenizer:
    """Return the tokenizer that a spec names.

    Args:
        spec: `"bytes"`; `"world"`, which needs the package pyrwkv-tokenizer; `"world:<file>"`
            with a vocabulary in the format of `rwkv_vocab_v20230424.txt`; or the path of a
            `tokenizer.json` of Hugging Face, or of a folder that holds one.

    Raises:
        ValueError: If the spec names nothing, or its file is not what it should be.
        ImportError: If the package that reads it is not installed.
    """
    text = str(spec)
    if text == "bytes":
        return ByteTokenizer()
    if text == "world":
        return WorldTokenizer()
    if text.startswith("world:"):
        return WorldTokenizer(text.removeprefix("world:"))
    path = Path(spec).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    if path.suffix == ".json" and path.is_file():
        return HuggingFaceTokenizer(path)
    hint = f" For a vocabulary of RWKV write world:{text}." if path.is_file() else ""
    raise ValueError(
        f"tokenizer is {text!r}; expected 'bytes', 'world', 'world:<vocabulary file>' or the path "
        f"of a tokenizer.json that exists.{hint}"
    )
