"""Continuing texts: many prompts at once, each with its own state, streamed as they are written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from doxastic.language.continuation import Continuation, Reason
from doxastic.language.model import LanguageModel
from doxastic.language.prefill import prefill
from doxastic.language.prompt_cache import PromptCache
from doxastic.language.prompts import Prompt, absent_ids, check_vocabulary, encode_prompts
from doxastic.language.sampling import Sampler, SamplingConfig
from doxastic.language.tokenizers.base import Tokenizer
from doxastic.memory.state import CoreState


@dataclass(frozen=True, eq=False)
class Generation:
    """A finished continuation of one prompt."""

    text: str
    """The continuation, without the stop string."""

    tokens: list[int]
    """What was chosen, those of the stop string included, without the end-of-document id."""

    reason: Reason
    """Why it ended: the model ended the document, a stop string came, or the length was reached."""

    prompt_tokens: int
    """Tokens read before the first one was chosen."""

    state: CoreState
    """The state after prompt and `tokens`, one row: `generate(state=...)` goes on from it."""


class Piece(NamedTuple):
    """Some more text of one row."""

    row: int
    """Which prompt it continues."""

    text: str
    """What to append."""

    generation: Generation | None
    """With the last piece of a row, all of it; None before."""


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig | None = None,
    *,
    state: CoreState | None = None,
    opens: bool | None = None,
    cache: PromptCache | None = None,
    streams: Sequence[int] | None = None,
) -> list[Generation]:
    """Return a continuation of each prompt; see `stream` for the arguments."""
    pieces = stream(
        model, tokenizer, prompts, sampling,
        state=state, opens=opens, cache=cache, streams=streams,
    )  # fmt: skip
    finished = {piece.row: piece.generation for piece in pieces if piece.generation}
    return [finished[row] for row in range(len(prompts))]


def stream(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig | None = None,
    *,
    state: CoreState | None = None,
    opens: bool | None = None,
    cache: PromptCache | None = None,
    streams: Sequence[int] | None = None,
) -> Iterator[Piece]:
    """Yield the continuations of the prompts while they are written, whole characters only.

    Prompts of any lengths are read together; a row that has ended leaves the batch. A row's text
    does not depend on the others. The state does not grow with the length, nor does the time of a
    token.

    Args:
        model: The model.
        tokenizer: The tokenizer it was trained with.
        prompts: Texts or token ids.
        sampling: How tokens are chosen, and when a row ends.
        state: Where the prompts start, one row for all or a row for each: a state to go on from,
            or a tuned initial state (with `opens=True`). None for zeros.
        opens: Whether a prompt is the beginning of a document, read after the end-of-document id;
            by default only without a `state`.
        cache: Where states of earlier prompts are found and those of these are kept; not together
            with `state`.
        streams: Numbers of the rows' random streams: row i alone with `streams=[i]` gives the
            text it has in the batch. None for 0, 1, 2, ...

    Raises:
        ValueError: A prompt has no token to predict from, an id is out of range, the tokenizer,
            the state or the cache is another model's, or logits are not finite.
    """
    sampling = SamplingConfig() if sampling is None else sampling
    sequences = encode_prompts(tokenizer, prompts, opens=state is None if opens is None else opens)
    check_vocabulary(model, tokenizer)
    if state is not None and state.batch_size == 1:
        state = state.index([0] * len(sequences))
    if cache is None:
        features, state = prefill(model, sequences, state)
    else:
        _check_cache(cache, model, state)
        features, state = cache.prefill(sequences)
    return decode(model, tokenizer, features, state, sampling, sequences, streams)


def decode(
    model: LanguageModel,
    tokenizer: Tokenizer,
    features: Tensor,
    state: CoreState,
    sampling: SamplingConfig,
    sequences: Sequence[np.ndarray],
    streams: Sequence[int] | None = None,
) -> Iterator[Piece]:
    """Yield the continuations of what was read already.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        features: What the head reads after each prompt, `[B, C]`, from `prefill`.
        state: The states after the prompts; they stay as they are.
        sampling: How tokens are chosen, and when a row ends.
        sequences: The prompts' ids, for the repetition penalty.
        streams: As in `stream`.
    """
    vocab, device = tokenizer.vocab_size, features.device
    end = tokenizer.end_of_document
    said = [sequence[(sequence != end) & (sequence < vocab)] for sequence in sequences]
    sampler = Sampler(sampling, said, vocab, streams, device)
    rows = [
        Continuation(number, len(sequence), tokenizer, sampling)
        for number, sequence in enumerate(sequences)
    ]
    absent = absent_ids(tokenizer).to(device)
    is_smaller, has_absent = vocab < model.config.vocab_size, len(absent) > 0
    with torch.no_grad():
        logits = model.head(features)
    # From here on nothing has a gradient: no_grad around the loop would reach into the caller's
    # code at every piece, or cost as much as the sampling.
    while True:
        logits = logits[:, :vocab] if is_smaller else logits
        if has_absent:
            logits = logits.index_fill(1, absent, -math.inf)
        # The largest is not finite if any is NaN or +inf; -inf is a token that never comes.
        if not all(map(math.isfinite, logits.amax(-1).tolist())):
            raise ValueError(
                "the model's logits are not finite; its weights or the state it started from "
                "hold NaN or infinity, or overflow in half precision."
            )
        tokens = sampler.draw(logits)
        ended: dict[int, str] = {}
        for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            text = row.push(token)
            if row.reason:
                ended[place] = text
            elif text:
                yield Piece(row.number, text, None)
        if ended:
            yield from _last_pieces(model, rows, ended, tokens, state)
            left = [place for place in range(len(rows)) if place not in ended]
            if not left:
                return
            rows, kept = [rows[place] for place in left], torch.tensor(left, device=device)
            tokens, state = tokens[kept], state.index(kept)
            sampler.keep(kept)
        logits, state = model.step(tokens, state)


def _check_cache(cache: PromptCache, model: LanguageModel, state: CoreState | None) -> None:
    if cache.model is not model:
        raise ValueError("the prompt cache is another model's; make one with PromptCache(model).")
    if state is not None:
        raise ValueError(
            "cache and state are both given; a cache holds prompts that start from zero. Give one."
        )


def _last_pieces(
    model: LanguageModel,
    rows: Sequence[Continuation],
    ended: Mapping[int, str],
    tokens: Tensor,
    state: CoreState,
) -> Iterator[Piece]:
    """Yield the last piece of each row that has ended; its last token is read first.

    Args:
        model: The model.
        rows: All rows of the batch.
        ended: Place of a row that has ended -> the rest of its text.
        tokens: The last token of each row, `[B]`.
        state: The states before those.
    """
    before = state.index(list(ended))
    _, after = model.step(tokens[list(ended)], before)
    for index, (place, text) in enumerate(ended.items()):
        row = rows[place]
        assert row.reason is not None  # It has ended.
        last = before if row.reason == "end_of_document" else after
        generation = Generation(
            "".join(row.pieces), row.tokens, row.reason, row.prompt_tokens, last.index([index])
        )
        yield Piece(row.number, text, generation)
