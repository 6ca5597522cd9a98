"""Scores: every token counts once, with its whole context, whatever lies beside it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from language_cases import random_model, small_config
from torch.nn import functional as F

from doxastic.language.evaluation import evaluate, score_documents, score_tokens
from doxastic.language.token_store import TokenStore
from doxastic.language.tokenizers import ByteTokenizer
from doxastic.memory.state import CoreState

BYTES = ByteTokenizer()
TEXTS = [b"a", b"the second one is longer", b"", "né".encode() * 30, b"fifth"]


@pytest.fixture(scope="module")
def model():
    return random_model(small_config(vocab_size=257, layers=2))


@pytest.fixture
def documents():
    return [np.array([256, *text]) for text in TEXTS]


def one_by_one(model, document: np.ndarray, state: CoreState | None = None) -> tuple[float, int]:
    """Return the nats of a document, read at once, and how many tokens were the most probable."""
    ids = torch.from_numpy(document)
    logits = model(ids[None], state)[0][0, :-1].detach()
    nats = F.cross_entropy(logits.double(), ids[1:], reduction="sum").item()
    return nats, int((logits.argmax(-1) == ids[1:]).sum())


@pytest.mark.parametrize(("batch_size", "window"), [(1, 1000), (2, 7), (3, 16), (99, 1)])
def test_documents_side_by_side_score_as_each_does_alone(
    model, documents, batch_size, window
) -> None:
    scores = score_documents(model, documents, batch_size=batch_size, window=window)
    alone = [one_by_one(model, document) for document in documents]
    assert scores.nats == pytest.approx([nats for nats, _ in alone], rel=1e-5)
    assert scores.correct.tolist() == [correct for _, correct in alone]
    assert scores.tokens.tolist() == [len(text) for text in TEXTS]


@pytest.mark.parametrize(("batch_size", "window"), [(2, 7), (99, 1000)])
def test_documents_start_from_the_state_that_is_given(model, documents, batch_size, window) -> None:
    random = torch.Generator().manual_seed(0)
    start = CoreState(model.layout, torch.randn(1, model.layout.size, generator=random))
    scores = score_documents(model, documents, state=start, batch_size=batch_size, window=window)
    alone = [one_by_one(model, document, start)[0] for document in documents]
    assert scores.nats == pytest.approx(alone, rel=1e-5)
    assert scores.nats[1] != pytest.approx(one_by_one(model, documents[1])[0], rel=1e-3)


def store_of(texts, masks=None) -> TokenStore:
    return TokenStore.from_documents(
        [list(text) for text in texts], vocab_size=257, end_of_document=256, masks=masks
    )


def test_the_measures_follow_from_nats_tokens_and_bytes(model) -> None:
    texts = [b"one text", b"another"]
    result = evaluate(model, BYTES, store_of(texts)).to_dict()
    nats = sum(one_by_one(model, np.array([256, *text]))[0] for text in texts)
    assert result["nats_per_token"] == pytest.approx(nats / 15, rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(nats / 15 / math.log(2), rel=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(nats / 15), rel=1e-6)
    assert result["bytes_per_token"] == 1
    assert (result["tokens"], result["bytes"], result["documents"]) == (15, 15, 2)


def test_bytes_are_those_the_tokens_stand_for() -> None:
    class Pairs(ByteTokenizer):
        """Every id below 256 stands for two bytes."""

        def token_bytes(self, token_id):
            return super().token_bytes(token_id) * 2

    model = random_model(small_config(vocab_size=257, layers=2))
    plain = evaluate(model, BYTES, store_of([b"abc"])).to_dict()
    pairs = evaluate(model, Pairs(), store_of([b"abc"])).to_dict()
    assert (pairs["bytes"], pairs["bytes_per_token"]) == (6, 2)
    assert pairs["bits_per_byte"] == pytest.approx(plain["bits_per_byte"] / 2)


def test_masked_tokens_are_read_and_do_not_count(model) -> None:
    masks = [[False] * 4 + [True] * 3, [True] * 2]
    result = evaluate(model, BYTES, store_of([b"2+2=4.\n", b"ab"], masks))
    ids = torch.tensor([[256, *b"2+2=4.\n"]])
    nats = F.cross_entropy(model(ids)[0][0, 4:-1].detach().double(), ids[0, 5:], reduction="sum")
    expected = nats.item() + one_by_one(model, np.array([256, *b"ab"]))[0]
    assert (result.tokens, result.bytes) == (5, 5)
    assert result.nats == pytest.approx(expected, rel=1e-5)


def test_a_store_that_was_cut_scores_what_it_holds(model) -> None:
    store = store_of([b"a long enough document to be cut in two"])
    train, held_out = store.split(0.5)
    total = evaluate(model, BYTES, train).tokens + evaluate(model, BYTES, held_out).tokens
    assert total == len(store) - len(train.documents) - len(held_out.documents)


def test_progress_ends_at_the_number_of_tokens(model, documents) -> None:
    seen: list[tuple[int, int]] = []
    score_documents(model, documents, batch_size=2, window=9, progress=lambda *at: seen.append(at))
    total = sum(map(len, documents))
    assert seen[-1] == (total, total)
    assert [read for read, _ in seen] == sorted(read for read, _ in seen)


def test_the_same_call_gives_the_same_score(model) -> None:
    store = store_of([text for text in TEXTS if text])
    assert evaluate(model, BYTES, store) == evaluate(model, BYTES, store)


def test_parts_of_the_logits_score_as_the_whole(model, monkeypatch) -> None:
    features, targets = torch.randn(50, 64), torch.arange(50)
    whole = score_tokens(model, features, targets)
    monkeypatch.setattr("doxastic.language.evaluation._LOGITS", 257 * 7)
    parts = score_tokens(model, features, targets)
    assert torch.allclose(whole[0], parts[0], atol=1e-5)
    assert torch.equal(whole[1], parts[1])


def test_what_cannot_be_scored_is_refused(model) -> None:
    with pytest.raises(ValueError, match="no token to predict"):
        evaluate(model, BYTES, store_of([b"abc"], [[False] * 3]))
    with pytest.raises(ValueError, match="there are no documents"):
        score_documents(model, [])
    with pytest.raises(ValueError, match="document 1 is empty"):
        score_documents(model, [np.array([256]), np.array([], np.int64)])
    with pytest.raises(ValueError, match="window is 0; expected 1 or more"):
        score_documents(model, [np.array([256])], window=0)
    with pytest.raises(ValueError, match="the corpus holds the token 256"):
        evaluate(random_model(small_config()), BYTES, store_of([b"abc"]))
