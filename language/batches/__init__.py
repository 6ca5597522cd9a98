"""Batches of tokens from a store, in four orders, each with an exact position."""

from doxastic.language.batches.packed import PackedDocuments
from doxastic.language.batches.rows import DocumentRows
from doxastic.language.batches.source import Batch, BatchSource
from doxastic.language.batches.windows import RandomWindows, Streams

__all__ = ["Batch", "BatchSource", "DocumentRows", "PackedDocuments", "RandomWindows", "Streams"]
