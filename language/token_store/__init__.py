"""A corpus as token ids on the disk, mapped into memory, with the boundaries of its documents."""

from doxastic.language.token_store.build import build_store
from doxastic.language.token_store.sources import SUFFIXES
from doxastic.language.token_store.store import TokenStore, check_vocabulary

__all__ = ["SUFFIXES", "TokenStore", "build_store", "check_vocabulary"]
