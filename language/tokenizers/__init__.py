"""Text to token ids and back, exactly: bytes, RWKV's World vocabulary, Hugging Face files."""

from doxastic.language.tokenizers.base import StreamDecoder, Tokenizer
from doxastic.language.tokenizers.bytes import ByteTokenizer
from doxastic.language.tokenizers.hugging_face import HuggingFaceTokenizer
from doxastic.language.tokenizers.load import load_tokenizer
from doxastic.language.tokenizers.world import WorldTokenizer

__all__ = [
    "ByteTokenizer",
    "HuggingFaceTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "WorldTokenizer",
    "load_tokenizer",
]
