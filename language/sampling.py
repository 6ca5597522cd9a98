"""Choosing the next token: penalties, filters, and a draw from a random stream of the row's own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from doxastic.language.sampling_config import SamplingConfig

# Uniform numbers drawn at once for a row; a draw a token would cost more than the sampling.
_BLOCK = 64
# The largest uniform number: times any total it stays below the total after rounding.
_BELOW_ONE = 1.0 - 2.0**-52
# At this temperature a logit 1e-17 below the highest has probability 0 already; divided by less,
# logits would overflow float32 to infinity, and their differences be NaN.
_COLDEST = 1e-20
# Vocabularies up to this size are sorted at once; of larger ones, so many of the most probable
# tokens are looked at before all are sorted.
_SORTED, _CANDIDATES = 1024, 256


def choose(logits: Tensor, config: SamplingConfig, uniform: Tensor | None) -> Tensor:
    """Return a token for each row, `[B]` int64: where `uniform` falls in the filtered distribution.

    Args:
        logits: `[B, V]`, any floating dtype, penalties applied.
        config: Temperature and filters; the rest is not read.
        uniform: `[B, 1]` float64 in [0, 1); None for the most probable token.
    """
    if uniform is None:
        return logits.argmax(-1)
    logits = logits.float()
    if config.temperature != 1:
        logits = logits / max(config.temperature, _COLDEST)
    if config.top_k or config.top_p < 1:
        ids, cumulative, total = _most_probable(logits, config)
        place = torch.searchsorted(cumulative, uniform * total, right=True)
        return ids.gather(1, place).squeeze(1)
    if config.min_p > 0:
        least = logits.amax(-1, keepdim=True) + math.log(config.min_p)
        logits = logits.masked_fill(logits < least, -math.inf)
    # In float64: 65,536 probabilities summed in float32 would lose the rare ones.
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(1)


def _most_probable(logits: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids in falling order of probability, its running sum, and its sum over those kept.

    What is kept is a beginning of that order, `[B, K]`; the last sum is `[B, 1]`.
    """
    vocab = logits.shape[1]
    if config.top_k or vocab <= _SORTED:
        # In falling order too; all of them takes as long as sorting.
        values, ids = logits.topk(min(config.top_k or vocab, vocab))
        probability = values.softmax(-1, dtype=torch.float64)
    else:
        ids, probability = _nucleus(logits, config)
    cumulative = probability.cumsum(-1)
    if config.top_p == 1 and config.min_p == 0:
        return ids, cumulative, cumulative[:, -1:]
    kept = cumulative - probability < config.top_p
    if config.min_p > 0:
        kept &= probability >= config.min_p * probability[:, :1]
    return ids, cumulative, cumulative.gather(1, kept.sum(-1, keepdim=True) - 1)


def _nucleus(logits: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Return ids and probabilities in falling order, at least all that top-p and min-p keep.

    A few of the most probable mostly are enough; to sort a large vocabulary takes longer than to
    make its logits.
    """
    total = logits.logsumexp(-1, keepdim=True)
    values, ids = logits.topk(_CANDIDATES)
    probability = (values - total).double().exp()
    is_enough = probability.sum(-1) >= config.top_p
    is_enough |= probability[:, -1] < config.min_p * probability[:, 0]
    if not is_enough.all():
        values, ids = logits.sort(descending=True)
        probability = (values - total).double().exp()
    return ids, probability


class Sampler:
    """Chooses the tokens of a batch, a call for each position.

    A row's tokens depend on its logits, its prompt, the seed and the number of its random stream,
    and on nothing else in the batch.

    Args:
        config: How to choose.
        prompts: The token ids of each row's prompt, for the repetition penalty.
        vocab_size: Number of token ids V.
        streams: Numbers of the rows' random streams; None for 0, 1, 2, ...
        device: Where the logits are.
    """

    def __init__(
        self,
        config: SamplingConfig,
        prompts: Sequence[np.ndarray],
        vocab_size: int,
        streams: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._config = config
        numbers = range(len(prompts)) if streams is None else streams
        if len(numbers) != len(prompts):
            raise ValueError(
                f"streams has {len(numbers)} numbers; expected one for each of the "
                f"{len(prompts)} prompts."
            )
        self._streams = _UniformStreams(config.seed, numbers, device)
        penalises = (
            config.repetition_penalty != 1 or config.presence_penalty or config.frequency_penalty
        )
        self._penalties = _Penalties(config, prompts, vocab_size, device) if penalises else None

    def draw(self, logits: Tensor) -> Tensor:
        """Return the next token of each row, `[B]` int64, from the logits `[B, V]`."""
        if self._penalties:
            logits = self._penalties.apply(logits)
        uniform = self._streams.draw() if self._config.temperature else None
        tokens = choose(logits, self._config, uniform)
        if self._penalties:
            self._penalties.add(tokens)
        return tokens

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch alone, in this order."""
        self._streams.keep(rows)
        if self._penalties:
            self._penalties.keep(rows)


class _UniformStreams:
    """Uniform numbers in [0, 1), `[B, 1]` float64 a call, each row from a generator of its own."""

    def __init__(self, seed: int, numbers: Sequence[int], device: torch.device | str) -> None:
        self._generators = [np.random.default_rng((seed, number)) for number in numbers]
        self._device = device
        self._columns: list[Tensor] = []

    def draw(self) -> Tensor:
        if not self._columns:
            rows = [generator.random(_BLOCK) for generator in self._generators]
            block = torch.from_numpy(np.minimum(rows, _BELOW_ONE)).to(self._device)
            self._columns = list(reversed(block.split(1, dim=1)))
        return self._columns.pop()

    def keep(self, rows: Tensor) -> None:
        self._generators = [self._generators[row] for row in rows.tolist()]
        self._columns = [column[rows] for column in self._columns]


class _Penalties:
    """What the rows have said, and what it costs to say it again."""

    def __init__(
        self,
        config: SamplingConfig,
        prompts: Sequence[np.ndarray],
        vocab_size: int,
        device: torch.device | str,
    ) -> None:
        self._config = config
        shape = (len(prompts), vocab_size)
        self._read = torch.zeros(shape, dtype=torch.bool, device=device)
        for row, prompt in zip(self._read, prompts, strict=True):
            row[torch.from_numpy(np.unique(prompt).astype(np.int64)).to(device)] = True
        self._written = torch.zeros(shape, device=device)
        self._counts = torch.zeros(shape, device=device)

    def apply(self, logits: Tensor) -> Tensor:
        config, logits = self._config, logits.float()
        penalty = config.repetition_penalty
        if penalty != 1:
            punished = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(self._read, punished, logits)
        if config.presence_penalty:
            logits = logits.sub(self._written, alpha=config.presence_penalty)
        if config.frequency_penalty:
            logits = logits.sub(self._counts, alpha=config.frequency_penalty)
        return logits

    def add(self, tokens: Tensor) -> None:
        column = tokens[:, None]
        if self._config.repetition_penalty != 1:
            self._read.scatter_(1, column, True)
        if self._config.presence_penalty:
            self._written.scatter_(1, column, 1.0)
        if self._config.frequency_penalty:
            self._counts *= self._config.penalty_decay
            self._counts.scatter_(1, column, 1.0, reduce="add")

    def keep(self, rows: Tensor) -> None:
        self._read, self._written = self._read[rows], self._written[rows]
        self._counts = self._counts[rows]
