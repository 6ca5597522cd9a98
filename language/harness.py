"""The language model as EleutherAI's lm-eval harness wants it: for its hundreds of tasks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from doxastic.language.evaluation import score_documents, score_tokens
from doxastic.language.generation import generate
from doxastic.language.model import LanguageModel
from doxastic.language.prefill import prefill
from doxastic.language.prompts import check_vocabulary
from doxastic.language.sampling import SamplingConfig
from doxastic.language.tokenizers.base import Tokenizer
from doxastic.memory.state import CoreState

# What the harness's own models generate where a task names no length.
_MAX_TOKENS = 256

Item = TypeVar("Item")


class Request(Protocol):
    """What is read of lm_eval's `Instance`."""

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments of the request, by its kind."""


class HarnessAdapter:
    """Answers the three kinds of requests of the lm-eval harness.

    Texts are read as documents, from the zero state and behind the end-of-document id, and never
    cut. A context that several continuations share is read once.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        batch_size: Rows read or written side by side.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, batch_size: int = 16) -> None:
        check_vocabulary(model, tokenizer)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more.")
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size

    @torch.no_grad()
    def loglikelihood(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return each continuation's log-likelihood, and whether it is the greedy one.

        Args:
            requests: Their arguments are (context, continuation).
            disable_tqdm: Nothing is shown in either case.
        """
        pairs = [self._encode_pair(*request.args) for request in requests]
        sharing: dict[bytes, list[int]] = {}
        for number, (context, _) in enumerate(pairs):
            sharing.setdefault(context.tobytes(), []).append(number)
        groups = sorted(sharing.values(), key=lambda group: -len(pairs[group[0]][0]))
        results: dict[int, tuple[float, bool]] = {}
        for chosen in _batches(groups, self._batch_size):
            features, state = prefill(self._model, [pairs[group[0]][0] for group in chosen])
            rows = [(number, row) for row, group in enumerate(chosen) for number in group]
            rows.sort(key=lambda item: -len(pairs[item[0]][1]))
            for part in _batches(rows, self._batch_size):
                numbers, places = [number for number, _ in part], [row for _, row in part]
                continuations = [pairs[number][1] for number in numbers]
                scores = self._score(continuations, features[places], state.index(places))
                results.update(zip(numbers, scores, strict=True))
        return [results[number] for number in range(len(pairs))]

    def loglikelihood_rolling(
        self, requests: Sequence[Request], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of each whole text, however long.

        Args:
            requests: Their arguments are (text,).
            disable_tqdm: Nothing is shown in either case.
        """
        documents = [self._opened(request.args[0]) for request in requests]
        if not documents:
            return []
        scores = score_documents(self._model, documents, batch_size=self._batch_size)
        return (-scores.nats).tolist()

    def generate_until(self, requests: Sequence[Request], disable_tqdm: bool = False) -> list[str]:
        """Return a continuation of each context, up to one of its stop strings.

        Args:
            requests: Their arguments are (context, settings): `until`, `max_gen_toks`, and, where
                `do_sample` is true, `temperature`, `top_k`, `top_p`, `min_p`.
            disable_tqdm: Nothing is shown in either case.
        """
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        texts: dict[int, str] = {}
        for settings, numbers in alike.items():
            sampling = sampling_from(json.loads(settings))
            numbers.sort(key=lambda number: -len(requests[number].args[0]))
            for chosen in _batches(numbers, self._batch_size):
                prompts = [requests[number].args[0] for number in chosen]
                # A request's random stream does not depend on the batches.
                written = generate(self._model, self._tokenizer, prompts, sampling, streams=chosen)
                texts.update((n, g.text) for n, g in zip(chosen, written, strict=True))
        return [texts[number] for number in range(len(requests))]

    def _score(
        self, continuations: Sequence[np.ndarray], features: Tensor, state: CoreState
    ) -> Iterator[tuple[float, bool]]:
        """Yield the scores of continuations, longest first, of what features and states follow."""
        lengths = [len(continuation) for continuation in continuations]
        tokens = np.zeros((len(lengths), lengths[0]), np.int64)
        for row, continuation in enumerate(continuations):
            tokens[row, : lengths[row]] = continuation
        inputs = torch.from_numpy(tokens).to(features.device)
        features = features[:, None]
        if lengths[0] > 1:
            after, _ = self._model.features(inputs[:, :-1], state)
            features = torch.cat((features, after), dim=1)
        counts = torch.arange(lengths[0]) < torch.tensor(lengths)[:, None]
        counts = counts.to(features.device)
        likelihoods, greedy = score_tokens(self._model, features[counts], inputs[counts])
        for own, is_greedy in zip(likelihoods.split(lengths), greedy.split(lengths), strict=True):
            yield own.double().sum().item(), bool(is_greedy.all())

    def _encode_pair(self, context: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of the opened context and of the continuation.

        As in the harness's own models, white space at the context's end counts to the
        continuation, and both are cut into tokens together.
        """
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        whole, opened = self._opened(bare + continuation), self._opened(bare)
        ids = whole[len(opened) :]
        if not len(ids):
            raise ValueError(
                f"the continuation {continuation!r} adds no token to its context; expected at "
                "least one."
            )
        return whole[: len(opened)], ids

    def _opened(self, text: str) -> np.ndarray:
        ids = self._tokenizer.encode(text)
        return np.concatenate(([self._tokenizer.end_of_document], ids)).astype(np.int64)


def harness_model(model: LanguageModel, tokenizer: Tokenizer, batch_size: int = 16) -> Any:
    """Return what `lm_eval.simple_evaluate(model=...)` takes.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        batch_size: Rows read or written side by side.

    Raises:
        ImportError: The harness is not installed.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError as error:
        raise ImportError(
            "tasks of the lm-eval harness need the package lm-eval: pip install 'doxastic[lm-eval]'"
        ) from error

    class HarnessModel(HarnessAdapter, LM):
        """The adapter as one of the harness's models, by which it checks its argument."""

        def __init__(self) -> None:
            LM.__init__(self)
            HarnessAdapter.__init__(self, model, tokenizer, batch_size)

    return HarnessModel()


def sampling_from(settings: Mapping[str, Any]) -> SamplingConfig:
    """Return how to sample, from a task's `generation_kwargs`; greedily unless `do_sample`."""
    until = settings.get("until") or []
    stop = tuple([until] if isinstance(until, str) else until)
    length = settings.get("max_gen_toks", settings.get("max_new_tokens", _MAX_TOKENS))
    filters: dict[str, Any] = {"temperature": 0.0}
    if settings.get("do_sample"):
        names = ("temperature", "top_k", "top_p", "min_p")
        filters = {name: settings[name] for name in names if name in settings}
    return SamplingConfig(max_new_tokens=int(length), stop=stop, **filters)


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
