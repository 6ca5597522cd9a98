"""Token ids of a corpus, mapped from a folder or held in memory, with document boundaries."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from doxastic.language.token_store.files import (
    map_array,
    read_description,
    read_documents,
    token_dtype,
)
from doxastic.language.tokenizers import Tokenizer

# What the description of a store in a folder and a store in memory have in common.
KEPT = ("vocab_size", "largest_id", "end_of_document", "tokenizer", "identity")


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Documents one after the other, each `[end_of_document, token, ..., token]`.

    The token that ends documents opens them, so the target of a document's last token is the
    first token of the next one, and generation begins like training: with an empty state and that
    token.
    """

    tokens: np.ndarray
    """Every token id, `[N]` uint16 or uint32; a `np.memmap` where it comes from a folder."""

    documents: np.ndarray
    """Where each document starts, int64 `[D]`, ascending from 0."""

    mask: np.ndarray | None
    """Per token, `[N]` bool: whether it counts as a target; None where all do."""

    vocab_size: int
    """Of the tokenizer: every id is below it."""

    largest_id: int
    """The largest id there is in the corpus."""

    end_of_document: int
    """The id that opens and ends documents."""

    tokenizer: str
    """What `load_tokenizer` takes."""

    identity: str
    """A digest of the content: what the position in a corpus refers to."""

    closed: bool = True
    """Whether the last document ends where the tokens do; `split` may cut one in two."""

    def __len__(self) -> int:
        """Return the number of tokens `N`."""
        return len(self.tokens)

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each document, int64 `[D]`."""
        return np.diff(np.asarray(self.documents), append=len(self))

    @classmethod
    def open(cls, folder: str | Path, tokenizer: Tokenizer | None = None) -> TokenStore:
        """Return the store in a folder; nothing is read but its description and boundaries.

        Args:
            folder: What `build_store` wrote.
            tokenizer: If given, the store must have been made with it.

        Raises:
            ValueError: If the folder holds no store, one of another version or tokenizer, or a
                file of it was cut short or changed.
        """
        folder = Path(folder)
        about = read_description(folder)
        if tokenizer is not None and about["fingerprint"] != tokenizer.fingerprint:
            raise ValueError(
                f"{folder} was made with the tokenizer {about['tokenizer']!r}, whose vocabulary "
                f"differs from that of {tokenizer.spec!r}; build the store again."
            )
        count = about["tokens"]
        return cls(
            tokens=map_array(folder / "tokens.bin", token_dtype(about["vocab_size"]), count),
            documents=read_documents(folder / "documents.npy", about["documents"], count),
            mask=map_array(folder / "mask.bin", np.dtype(bool), count) if about["masked"] else None,
            **{key: about[key] for key in KEPT},
        )

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Sequence[int] | np.ndarray],
        *,
        vocab_size: int,
        end_of_document: int,
        masks: Sequence[Sequence[bool] | np.ndarray] | None = None,
        tokenizer: str = "",
    ) -> TokenStore:
        """Return a store in memory, for synthetic tasks and tests.

        Args:
            documents: Token ids of each document, without the one that opens it.
            vocab_size: One more than the largest id allowed.
            end_of_document: The id put before every document.
            masks: Per document and token, whether it counts as a target; its end always does.
            tokenizer: What `load_tokenizer` takes, if the ids stand for text.

        Raises:
            ValueError: If there are no documents, an id is out of range or masks do not fit.
        """
        opened = [np.concatenate([[end_of_document], np.asarray(d, int)]) for d in documents]
        if not opened:
            raise ValueError("there are no documents; expected at least one.")
        tokens = np.concatenate(opened)
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            raise ValueError(
                f"token ids run from {tokens.min()} to {tokens.max()}; expected ids from 0 to "
                f"vocab_size - 1 = {vocab_size - 1}."
            )
        starts = np.cumsum([0, *map(len, opened[:-1])])
        mask = None
        if masks is not None:
            if [len(m) for m in masks] != [len(d) for d in documents]:
                raise ValueError("masks differ from documents in length; expected one per token.")
            mask = np.concatenate([np.concatenate([[True], np.asarray(m, bool)]) for m in masks])
        content = tokens.tobytes() + starts.tobytes() + (b"" if mask is None else mask.tobytes())
        return cls(
            tokens=tokens.astype(token_dtype(vocab_size)),
            documents=starts,
            mask=mask,
            vocab_size=vocab_size,
            largest_id=int(tokens.max()),
            end_of_document=end_of_document,
            tokenizer=tokenizer,
            identity=hashlib.sha256(content).hexdigest(),
        )

    def split(self, fraction: float) -> tuple[TokenStore, TokenStore]:
        """Return a front part to train on and the rest, which holds `fraction` of the tokens.

        They meet where a document starts, the nearest one; or, if no start leaves between half
        and twice `fraction` for the rest, within a document. Nothing is drawn at random: the
        held-out part is the end of the corpus, in the order of its files.

        Raises:
            ValueError: If the fraction is not between 0 and 1, or a part would have less than two
                tokens.
        """
        if not 0.0 < fraction < 1.0:
            raise ValueError(
                f"the held-out fraction is {fraction}; expected more than 0, less than 1."
            )
        cut = self._cut(fraction)
        if min(cut, len(self) - cut) < 2:
            raise ValueError(
                f"a corpus of {len(self)} tokens has no {fraction} to hold out; expected two "
                "tokens at least in each part."
            )
        first = int(np.searchsorted(self.documents, cut))
        whole = first < len(self.documents) and self.documents[first] == cut
        starts = self.documents[first:] - cut
        return (
            self._part(slice(0, cut), self.documents[:first], closed=whole),
            self._part(slice(cut, len(self)), starts if whole else np.r_[0, starts], self.closed),
        )

    def _cut(self, fraction: float) -> int:
        ideal = int((1.0 - fraction) * len(self))
        after = int(np.searchsorted(self.documents, ideal))
        starts = self.documents[max(after - 1, 0) : after + 1]
        nearest = int(starts[np.abs(starts - ideal).argmin()])
        share = (len(self) - nearest) / (fraction * len(self))
        return nearest if 0.5 <= share <= 2.0 and nearest else ideal

    def _part(self, tokens: slice, documents: np.ndarray, closed: bool) -> TokenStore:
        return replace(
            self,
            tokens=self.tokens[tokens],
            documents=documents,
            mask=None if self.mask is None else self.mask[tokens],
            identity=f"{self.identity}[{tokens.start}:{tokens.stop}]",
            closed=closed,
        )


def check_vocabulary(store: TokenStore, vocab_size: int) -> None:
    """Check that a model with so many embeddings can read the store.

    Raises:
        ValueError: If a token id of the store is out of range.
    """
    if store.largest_id >= vocab_size:
        raise ValueError(
            f"the corpus holds the token {store.largest_id}, made with the tokenizer "
            f"{store.tokenizer!r}; the model's vocabulary has the ids 0 to {vocab_size - 1}. Build "
            "the store with the model's own tokenizer."
        )
