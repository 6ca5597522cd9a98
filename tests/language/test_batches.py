"""Batches: every token once an epoch, no leak, an exact position at any world size."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tolerances import SAME, STACKED, assert_close
from torch import Tensor

from doxastic.language.batches import (
    Batch,
    BatchSource,
    DocumentRows,
    PackedDocuments,
    RandomWindows,
    Streams,
)
from doxastic.language.config import LanguageConfig
from doxastic.language.model import LanguageModel
from doxastic.language.token_store import TokenStore

END = 0
SOURCES = (RandomWindows, Streams, PackedDocuments, DocumentRows)
CARRYING = (Streams, PackedDocuments)


def make_store(lengths: list[int], *, masked: bool = False) -> TokenStore:
    """Return documents whose tokens are all different: the corpus counts from 1."""
    ends = np.cumsum(lengths)
    documents = [np.arange(end - n, end) + 1 for n, end in zip(lengths, ends, strict=True)]
    masks = [document % 3 > 0 for document in documents] if masked else None
    return TokenStore.from_documents(
        documents, vocab_size=int(ends[-1]) + 1, end_of_document=END, masks=masks
    )


def varied(count: int = 23, longest: int = 30, *, masked: bool = False) -> TokenStore:
    lengths = np.random.default_rng(7).integers(1, longest, count)
    return make_store(lengths.tolist(), masked=masked)


def following(store: TokenStore) -> dict[int, int]:
    """Return what follows each token of a corpus whose tokens are all different."""
    tokens = store.tokens.tolist()
    return dict(zip(tokens, [*tokens[1:], END], strict=True))


def equal(one: Batch, other: Batch) -> bool:
    tensors = zip(one[:4], other[:4], strict=True)
    return all(torch.equal(a, b) for a, b in tensors) and one.carried == other.carried


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", SOURCES)
def test_every_target_is_the_next_token_of_its_document(
    kind: type[BatchSource], masked: bool
) -> None:
    store = varied(masked=masked)
    after, source = following(store), kind(store, 4, 16)
    for _ in range(40):
        batch = source.next_batch()
        assert [t.dtype for t in batch[:4]] == [torch.int64, torch.int64, torch.bool, torch.bool]
        assert all(t.is_contiguous() for t in batch[:4])
        for tokens, targets, reset, mask in zip(*(t.tolist() for t in batch[:4]), strict=True):
            width = max(i for i, t in enumerate(tokens) if t != END) + 1
            real = width if kind is DocumentRows else len(tokens)
            for t in range(real):
                # What opens a document is followed by its first token, the others by the next one.
                expected = after[tokens[t]] if tokens[t] != END else None
                assert expected in (None, targets[t])
                assert t + 1 == real or tokens[t + 1] in (targets[t], END)
                assert reset[t] == (tokens[t] == END and (t > 0 or kind in CARRYING))
                assert mask[t] == (not masked or targets[t] == END or targets[t] % 3 > 0)
            assert not any(mask[real:])


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("world", [2, 3, 6])
def test_the_global_batch_does_not_depend_on_the_world_size(
    kind: type[BatchSource], world: int
) -> None:
    store = varied(masked=True)
    whole = kind(store, 6, 16, seed=3)
    ranks = [kind(store, 6, 16, seed=3, rank=rank, world=world) for rank in range(world)]
    for _ in range(30):
        batch = whole.next_batch()
        parts = [source.next_batch() for source in ranks]
        for name in ("tokens", "targets", "reset", "mask"):
            for rank, part in enumerate(parts):
                assert torch.equal(getattr(part, name), getattr(batch, name)[rank::world])
    assert all(source.state_dict() == whole.state_dict() for source in ranks)
    assert all(source.epoch == whole.epoch > 0 for source in ranks)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("batches", [0, 1, 5, 29])
def test_a_position_brings_the_same_batches_back(kind: type[BatchSource], batches: int) -> None:
    store = varied()
    source = kind(store, 4, 16, seed=5)
    for _ in range(batches):
        source.next_batch()
    state = json.loads(json.dumps(source.state_dict()))
    expected = [source.next_batch() for _ in range(40)]
    again = kind(store, 4, 16, seed=5)
    for _ in range(7):
        again.next_batch()
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert all(equal(again.next_batch(), batch) for batch in expected)
    other = kind(store, 4, 16, seed=5, rank=1, world=2)
    other.load_state_dict(state)
    assert all(torch.equal(other.next_batch().tokens, batch.tokens[1::2]) for batch in expected)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"store": make_store([9] * 30)}, "store = "),
        ({"batch_size": 8}, "batch_size = 4; here it is 8"),
        ({"block": 8}, "block = 16; here it is 8"),
        ({"seed": 1}, "seed = 0; here it is 1"),
    ],
)
def test_a_position_of_something_else_is_refused(
    kind: type[BatchSource], change: dict[str, object], named: str
) -> None:
    settings: dict[str, object] = {"store": varied(), "batch_size": 4, "block": 16, "seed": 0}
    state = kind(**settings).state_dict()
    with pytest.raises(ValueError, match=named):
        kind(**settings | change).load_state_dict(state)
    other = Streams if kind is RandomWindows else RandomWindows
    with pytest.raises(ValueError, match=f"source = '{kind.__name__}'; here it is"):
        other(**settings).load_state_dict(state)


@pytest.mark.parametrize("kind", [RandomWindows, PackedDocuments, DocumentRows])
def test_a_seed_decides_the_order(kind: type[BatchSource]) -> None:
    store = varied()
    first, same, other = (kind(store, 4, 16, seed=seed) for seed in (1, 1, 2))
    batches = [source.next_batch() for source in (first, same, other)]
    assert equal(batches[0], batches[1])
    assert not torch.equal(batches[0].tokens, batches[2].tokens)


@pytest.mark.parametrize("kind", SOURCES)
def test_wrong_sizes_are_refused(kind: type[BatchSource]) -> None:
    store = varied()
    for sizes in ((0, 16), (4, 0), (4, 16, -1), (4, 16, 0, 2, 2), (4, 16, 0, 0, 0)):
        with pytest.raises(ValueError, match="expected sizes from 1, a seed from 0"):
            kind(store, *sizes)
    with pytest.raises(ValueError, match=r"batch_size is 4 for 3 processes; .*: 6 for instance"):
        kind(store, 4, 16, rank=1, world=3)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("masked", [False, True])
def test_a_document_that_was_cut_has_no_end_to_learn(kind: type[BatchSource], masked: bool) -> None:
    store = make_store([100], masked=masked)
    train, held_out = store.split(0.3)
    for part, ends in ((train, False), (held_out, True)):
        last = int(part.tokens[-1])
        source = kind(part, 2, 200 if kind is DocumentRows else 25)
        batches = [source.next_batch() for _ in range(20)]
        places = [(batch, batch.tokens == last) for batch in batches]
        assert not any(batch.targets[there].any() for batch, there in places)
        counted = [bool(batch.mask[there].all()) for batch, there in places if there.any()]
        # A random window leaves the last token out, as there is no other after it.
        assert set(counted) == (set() if kind is RandomWindows else {ends})


def test_random_windows_cover_the_corpus_evenly() -> None:
    store = make_store([199])
    source = RandomWindows(store, 50, 20)
    counts: Counter[int] = Counter()
    for _ in range(200):
        batch = source.next_batch()
        counts.update(batch.tokens[:, 0].tolist())
        assert torch.equal(batch.targets[:, :-1], batch.tokens[:, 1:])
        assert not batch.carried
    # Every offset that leaves a target for each token; 56 draws each, deviation 7.5.
    assert sorted(counts) == list(range(180))
    assert 25 < min(counts.values()) <= max(counts.values()) < 90
    assert source.epoch == 200 * 50 * 20 // 200


def test_random_windows_need_a_longer_corpus() -> None:
    RandomWindows(make_store([16]), 2, 16).next_batch()
    with pytest.raises(ValueError, match="the corpus has 16 tokens; a window of block = 16"):
        RandomWindows(make_store([15]), 2, 16)


@pytest.mark.parametrize(("batch_size", "block"), [(1, 7), (3, 8), (4, 50), (2, 1000)])
def test_streams_read_on_for_ever(batch_size: int, block: int) -> None:
    store = varied()
    corpus, count = store.tokens.tolist(), len(store)
    source = Streams(store, batch_size, block)
    batches = [source.next_batch() for _ in range(3 * count // (batch_size * block) + 2)]
    assert all(batch.carried for batch in batches)
    rows = torch.cat([batch.tokens for batch in batches], dim=1)
    resets = torch.cat([batch.reset for batch in batches], dim=1)
    for row in range(batch_size):
        start = row * count // batch_size
        expected = [corpus[(start + t) % count] for t in range(rows.shape[1])]
        assert rows[row].tolist() == expected
        assert resets[row].tolist() == [token == END for token in expected]
    assert source.epoch == len(batches) * batch_size * block // count >= 3


@pytest.mark.parametrize(("batch_size", "block"), [(1, 7), (3, 8), (4, 50), (2, 1000)])
def test_packed_rows_read_every_document_whole_and_once_an_epoch(
    batch_size: int, block: int
) -> None:
    store = varied()
    source = PackedDocuments(store, batch_size, block)
    batches = []
    while source.epoch < 4:
        batches.append(source.next_batch())
    assert all(batch.carried for batch in batches)
    rows = torch.cat([batch.tokens for batch in batches], dim=1)
    counts: Counter[int] = Counter()
    for row in rows.tolist():
        assert row[0] == END
        starts = [t for t, token in enumerate(row) if token == END]
        for start, end in itertools.pairwise(starts):
            place = int(np.searchsorted(store.tokens[store.documents + 1], row[start + 1]))
            assert len(row[start:end]) == store.lengths[place], "a document was cut"
        counts.update(row[start + 1] for start in starts[:-1])
    assert len(counts) == len(store.documents)
    # A row may still be in a document of the last epoch, or have read one of the next.
    assert source.epoch - 1 <= min(counts.values()) <= max(counts.values()) <= source.epoch + 1
    total = source.epoch * len(store.documents) + source.state_dict()["taken"]
    assert sum(counts.values()) == total - batch_size


def test_packed_epochs_have_orders_of_their_own() -> None:
    store = varied()
    source = PackedDocuments(store, 1, len(store))
    first, second = source.next_batch().tokens, source.next_batch().tokens
    assert not torch.equal(first, second)
    assert sorted(first[0].tolist()) == sorted(second[0].tolist()) == sorted(store.tokens.tolist())


@pytest.mark.parametrize(("batch_size", "block"), [(1, 31), (4, 31), (4, 12), (50, 31)])
def test_document_rows_hold_every_document_once_an_epoch(batch_size: int, block: int) -> None:
    store = varied()
    source = DocumentRows(store, batch_size, block)
    counts: Counter[int] = Counter()
    drawn = 0
    while drawn < 12 * len(store.documents):
        batch = source.next_batch()
        assert not batch.carried and not batch.reset.any()
        assert batch.tokens.shape[0] == batch_size
        lengths = batch.mask.sum(1)
        assert batch.tokens.shape[1] == lengths.max() <= block
        for tokens, length in zip(batch.tokens, lengths, strict=True):
            document = int(np.flatnonzero(store.tokens[store.documents + 1] == int(tokens[1]))[0])
            start = store.documents[document]
            assert length == min(store.lengths[document], block)
            expected = torch.from_numpy(store.tokens[start : start + length].astype(np.int64))
            assert torch.equal(tokens[:length], expected)
            assert not tokens[length:].any()
            counts[document] += 1
        drawn += batch_size
    assert set(counts) == set(range(len(store.documents)))
    assert max(counts.values()) - min(counts.values()) <= 2
    assert source.epoch == drawn // len(store.documents)
    assert source.cut_documents == int((store.lengths > block).sum())
    assert source.cut_tokens == int((store.lengths - block).clip(min=0).sum())


def prompted(prompts: list[int], completion: int = 3) -> TokenStore:
    """Return documents of which only so many last tokens, and their ends, count."""
    documents = [np.arange(prompt + completion) + 1 for prompt in prompts]
    masks = [np.arange(prompt + completion) >= prompt for prompt in prompts]
    return TokenStore.from_documents(documents, vocab_size=99, end_of_document=END, masks=masks)


def test_document_rows_without_a_target_that_counts_are_refused() -> None:
    store = prompted([20, 12, 30])
    # The twelve tokens behind the one that opens a document are a prompt; the next one counts.
    assert DocumentRows(store, 3, 13).next_batch().mask.sum() == 1
    with pytest.raises(
        ValueError, match=r"no target counts in the first block = 12 .* \(--data.block\): with 34 "
    ):
        DocumentRows(store, 3, 12)
    assert DocumentRows(prompted([20, 1]), 2, 5).next_batch().mask.sum() == 4


def test_document_rows_of_one_token_each_have_targets() -> None:
    assert DocumentRows(make_store([9, 5]), 2, 1).next_batch().mask.all()


def test_document_rows_of_nothing_but_an_open_end_are_refused() -> None:
    store = replace(make_store([1]), tokens=np.array([END]), closed=False)
    with pytest.raises(ValueError, match="no target counts"):
        DocumentRows(store, 1, 4)


def test_document_rows_put_documents_of_similar_length_together() -> None:
    lengths = np.random.default_rng(0).lognormal(4, 1, 3000).astype(int) + 1
    source = DocumentRows(make_store(lengths.tolist()), 16, 1000)
    masks = [source.next_batch().mask for _ in range(180)]
    padding = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    assert padding < 0.2
    widths = [mask.shape[1] for mask in masks]
    assert widths[:60] != sorted(widths[:60])


def test_a_position_has_no_cost_of_reading_up_to_it() -> None:
    source = RandomWindows(varied(), 4, 16)
    source.load_state_dict(source.state_dict() | {"batches": 10**12})
    assert source.next_batch().tokens.shape == (4, 16)


def alone(
    model: LanguageModel, store: TokenStore, loss: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> tuple[dict[int, Tensor], Tensor]:
    """Return the logits after each token of a corpus, and the summed loss, document by document.

    The logits after the token that opens a document have the document's first token, negated.
    """
    logits, total = {}, torch.zeros(())
    ends = [*store.documents[1:], len(store)]
    for start, end in zip(store.documents, ends, strict=True):
        document = store.tokens[start:end].astype(np.int64)
        found, _ = model(torch.from_numpy(document)[None])
        targets = torch.from_numpy(np.append(document[1:], END))
        counts = torch.ones(len(document), dtype=torch.bool)
        if store.mask is not None:
            counts = torch.from_numpy(np.append(store.mask[start + 1 : end], True))
        total = total + loss(found[0], targets, counts)
        keys = [-int(document[1]), *document[1:].tolist()]
        logits |= dict(zip(keys, found[0].detach(), strict=True))
    return logits, total


def summed_loss(logits: Tensor, targets: Tensor, counts: Tensor) -> Tensor:
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return (loss * counts).sum()


@pytest.fixture
def model() -> LanguageModel:
    model = LanguageModel(LanguageConfig(vocab_size=160, width=32, layers=2, head_size=16))
    # The initial weights hardly mix; these do.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(("kind", "block"), [(PackedDocuments, 10**6), (DocumentRows, 64)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_trains_like_each_document_alone(
    model: LanguageModel, kind: type[BatchSource], block: int, masked: bool
) -> None:
    store = make_store([5, 1, 17, 40, 2, 33, 8, 9], masked=masked)
    logits, expected = alone(model, store, summed_loss)
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    batch_size = 8 if kind is DocumentRows else 1
    source = kind(store, batch_size, min(block, len(store)))
    batch = source.next_batch()
    found, _ = model(batch.tokens, None, batch.reset)
    total = summed_loss(found.flatten(0, 1), batch.targets.flatten(), batch.mask.flatten())
    total.backward()
    assert_close("loss", total, expected, SAME[torch.float32])
    assert_logits(batch, found, logits)
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert_close(name, parameter.grad, gradient, STACKED[torch.float32])


@pytest.mark.parametrize("kind", CARRYING)
@pytest.mark.parametrize(("batch_size", "block"), [(1, 7), (3, 16)])
@torch.no_grad()
def test_carried_windows_read_like_each_document_alone(
    model: LanguageModel, kind: type[BatchSource], batch_size: int, block: int
) -> None:
    store = make_store([5, 1, 17, 40, 2, 33, 8, 9])
    logits, _ = alone(model, store, summed_loss)
    source, state = kind(store, batch_size, block), None
    for number in range(2 * len(store) // (batch_size * block)):
        batch = source.next_batch()
        found, state = model(batch.tokens, state if batch.carried else None, batch.reset)
        # Streams start within documents; after some batches every row has met a new one.
        if kind is PackedDocuments or number * block > 41:
            assert_logits(batch, found, logits)


def assert_logits(batch: Batch, found: Tensor, logits: dict[int, Tensor]) -> None:
    """Compare with the logits of each document alone."""
    for tokens, targets, row in zip(
        batch.tokens.tolist(), batch.targets.tolist(), found, strict=True
    ):
        for token, target, logit in zip(tokens, targets, row, strict=True):
            if token or target:
                expected = logits[token or -target]
                assert_close(
                    f"logits after {token}", logit.detach(), expected, STACKED[torch.float32]
                )
