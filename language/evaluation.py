"""How well a model predicts text, every token with its whole context: nats a token, bits a byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from doxastic.language.lanes import Lane, grouped
from doxastic.language.model import LanguageModel
from doxastic.language.token_store import TokenStore, check_vocabulary
from doxastic.language.tokenizers.base import Tokenizer
from doxastic.memory.state import CoreState

# Logits made at once; a window's times a large vocabulary would take gigabytes.
_LOGITS = 1 << 22


@dataclass(frozen=True)
class DocumentScores:
    """What each document's tokens took, `[D]` each."""

    nats: np.ndarray
    """Sum of the negative log-likelihoods, float64."""

    tokens: np.ndarray
    """Tokens that were predicted, int64."""

    correct: np.ndarray
    """Those that were the most probable, int64."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a text was predicted."""

    nats: float
    """Negative log-likelihood of all of it."""

    tokens: int
    """Tokens that were predicted."""

    correct: int
    """Those that were the most probable."""

    bytes: int
    """Bytes that these tokens stand for."""

    documents: int
    """Documents they lie in."""

    def to_dict(self) -> dict[str, float]:
        """Return the measures by name.

        `perplexity = exp(nats_per_token)` compares models of one tokenizer,
        `bits_per_byte = nats / (bytes ln 2)` any two.
        """
        return {
            "nats_per_token": self.nats / self.tokens,
            "perplexity": math.exp(min(self.nats / self.tokens, 700.0)),
            "bits_per_byte": self.nats / self.bytes / math.log(2) if self.bytes else math.nan,
            "bytes_per_token": self.bytes / self.tokens,
            "accuracy": self.correct / self.tokens,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "documents": self.documents,
        }


def evaluate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    store: TokenStore,
    *,
    state: CoreState | None = None,
    batch_size: int = 8,
    window: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Return how well the model predicts the documents of a store.

    Every document starts from the initial state and is read to its end, however long: no token
    loses any of its context. Neither what opens a document nor its end is predicted, nor a token
    that the store's mask leaves out. The score depends on batch size and window by rounding alone.

    Args:
        model: The model.
        tokenizer: The tokenizer that made the store.
        store: The text.
        state: A tuned initial state, one row, where every document starts; None for zeros.
        batch_size: Documents read side by side.
        window: Tokens of each read in one call.
        progress: Called with the tokens read and their whole number.

    Raises:
        ValueError: No token is to be predicted, or the store was made for another model.
    """
    check_vocabulary(store, model.config.vocab_size)
    parts = list(pairwise([*store.documents.tolist(), len(store)]))
    documents = [store.tokens[begin:end] for begin, end in parts]
    masks = None if store.mask is None else [store.mask[begin:end] for begin, end in parts]
    scores = score_documents(
        model, documents, masks,
        state=state, batch_size=batch_size, window=window, progress=progress,
    )  # fmt: skip
    tokens = int(scores.tokens.sum())
    if not tokens:
        raise ValueError(
            f"the {len(documents)} documents hold no token to predict; expected at least one that "
            "is not empty, or not masked."
        )
    return Score(
        nats=math.fsum(scores.nats),
        tokens=tokens,
        correct=int(scores.correct.sum()),
        bytes=_count_bytes(tokenizer, store),
        documents=len(documents),
    )


@torch.no_grad()
def score_documents(
    model: LanguageModel,
    documents: Sequence[np.ndarray],
    masks: Sequence[np.ndarray] | None = None,
    *,
    state: CoreState | None = None,
    batch_size: int = 8,
    window: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> DocumentScores:
    """Return what each document's tokens took, all but its first, which opens it.

    The documents lie one behind the other in a few lanes of about equal length, reset where one
    begins; a lane that has ended leaves the batch. A reset clears to zeros, so from another state
    each document is a lane of its own.

    Args:
        model: The model.
        documents: Token ids of each, at least one.
        masks: Which of those count, as long as the documents; None for all.
        state: Where each starts, one row; None for zeros.
        batch_size: Lanes.
        window: Tokens of each read in one call.
        progress: Called with the tokens read and their whole number.
    """
    for name, value in (("batch_size", batch_size), ("window", window)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected 1 or more.")
    _check_documents(documents)
    count, total, read = len(documents), sum(map(len, documents)), 0
    scores = DocumentScores(np.zeros(count), np.zeros(count, np.int64), np.zeros(count, np.int64))
    for group in grouped(documents, batch_size, state is None):
        lanes = [Lane(documents, masks, chosen) for chosen in group]
        lanes.sort(key=lambda lane: -len(lane.tokens))
        running = model.initial_state(len(lanes))
        running = running if state is None else state.index([0] * len(lanes))
        for begin in range(0, len(lanes[0].tokens), window):
            lanes = [lane for lane in lanes if len(lane.tokens) > begin]
            running = running.index(slice(len(lanes)))
            running = _read(model, lanes, begin, window, state is None, running, scores)
            read += sum(min(len(lane.tokens) - begin, window) for lane in lanes)
            if progress:
                progress(read, total)
    return scores


def _read(
    model: LanguageModel, lanes: Sequence[Lane], begin: int, window: int, resets: bool,
    state: CoreState, scores: DocumentScores,
) -> CoreState:  # fmt: skip
    """Return the state after a window of the lanes, and add what its targets took."""
    device = model.emb.weight.device
    parts = zip(*(lane.window(begin, window) for lane in lanes), strict=True)
    inputs, targets, reset, owner = (torch.from_numpy(np.stack(rows)) for rows in parts)
    features, state = model.features(inputs.to(device), state, reset.to(device) if resets else None)
    counts = owner >= 0
    likelihood, greedy = score_tokens(model, features[counts], targets[counts].to(device))
    owners = owner[counts].numpy()
    np.add.at(scores.nats, owners, -likelihood.double().cpu().numpy())
    np.add.at(scores.tokens, owners, 1)
    np.add.at(scores.correct, owners, greedy.cpu().numpy())
    return state


def score_tokens(model: LanguageModel, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the targets' log-likelihoods, `[N]` float32, and whether they are the most probable.

    The logits are made a part at a time.

    Args:
        model: The model.
        features: What its head reads, `[N, C]`.
        targets: Token ids `[N]`, int64.
    """
    rows = max(1, _LOGITS // model.config.vocab_size)
    log_likelihood = torch.empty(len(targets), device=targets.device)
    is_greedy = torch.empty(len(targets), dtype=torch.bool, device=targets.device)
    for begin in range(0, len(targets), rows):
        part = slice(begin, begin + rows)
        logits, wanted = model.head(features[part]).float(), targets[part]
        log_likelihood[part] = -F.cross_entropy(logits, wanted, reduction="none")
        is_greedy[part] = logits.gather(1, wanted[:, None])[:, 0] >= logits.amax(-1)
    return log_likelihood, is_greedy


def _check_documents(documents: Sequence[np.ndarray]) -> None:
    empty = [index for index, document in enumerate(documents) if not len(document)]
    if empty or not len(documents):
        found = f"document {empty[0]} is empty" if empty else "there are no documents"
        raise ValueError(f"{found}; expected at least one, each opened by the end-of-document id.")


def _count_bytes(tokenizer: Tokenizer, store: TokenStore) -> int:
    """Return how many bytes the tokens that count stand for."""
    counted = np.ones(len(store), bool) if store.mask is None else np.array(store.mask)
    counted[store.documents] = False
    ids, times = np.unique(store.tokens[counted], return_counts=True)
    lengths = np.array([len(tokenizer.token_bytes(token)) for token in ids.tolist()])
    return int(lengths @ times)
