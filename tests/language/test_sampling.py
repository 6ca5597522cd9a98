"""Choosing tokens: every filter against numbers worked out by hand, every row on its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from doxastic.language.sampling import Sampler, SamplingConfig, choose

PROBABILITIES = (0.05, 0.4, 0.1, 0.25, 0.2)
LOGITS = torch.tensor([PROBABILITIES]).log()


def frequencies(logits: Tensor, config: SamplingConfig, draws: int = 4000) -> list[float]:
    """Return how often each token is chosen by `draws` evenly spaced uniform numbers."""
    uniform = (torch.arange(draws, dtype=torch.float64) + 0.5)[:, None] / draws
    chosen = choose(logits.expand(draws, -1), config, uniform)
    return (torch.bincount(chosen, minlength=logits.shape[1]) / draws).tolist()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, PROBABILITIES),
        # Squared, then over their sum, 0.275.
        ({"temperature": 0.5}, (0.0025, 0.16, 0.01, 0.0625, 0.04)),
        ({"top_k": 2}, (0, 0.4, 0, 0.25, 0)),
        ({"top_k": 99}, PROBABILITIES),
        # 0.4 + 0.25 reach 0.6; 0.4 alone does not.
        ({"top_p": 0.6}, (0, 0.4, 0, 0.25, 0)),
        ({"top_p": 1e-9}, (0, 1, 0, 0, 0)),
        # At least 0.2 of 0.4.
        ({"min_p": 0.3}, (0, 0.4, 0, 0.25, 0.2)),
        ({"min_p": 1.0}, (0, 1, 0, 0, 0)),
        # Of the two that top-k leaves, 0.615 and 0.385, the first reaches 0.61; 0.4 does not.
        ({"top_k": 2, "top_p": 0.61}, (0, 1, 0, 0, 0)),
        # Squared, 0.16 / 0.275 = 0.58 reaches 0.5: the temperature comes before top-p.
        ({"temperature": 0.5, "top_p": 0.5}, (0, 1, 0, 0, 0)),
        # Squared, 0.0625 / 0.16 = 0.39 is below 0.5: the temperature comes before min-p.
        ({"temperature": 0.5, "min_p": 0.5}, (0, 1, 0, 0, 0)),
        ({"top_p": 0.9, "min_p": 0.55}, (0, 0.4, 0, 0.25, 0)),
    ],
)
def test_a_filter_leaves_what_it_should_in_proportion(config, expected) -> None:
    found = frequencies(LOGITS, SamplingConfig(**config))
    total = sum(expected)
    assert found == pytest.approx([value / total for value in expected], abs=5e-4)


def reference(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Return the distribution as Hugging Face's warpers make it, one masking logits after another.

    top-p removes, from the least probable on, what together stays within 1 - top_p.
    """
    logits = logits.double() / config.temperature
    if config.top_k:
        least = logits.topk(config.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if config.top_p < 1:
        values, order = logits.sort()
        removed = values.softmax(-1).cumsum(-1) <= 1 - config.top_p
        removed[:, -1] = False
        logits = logits.masked_fill(removed.scatter(1, order, removed), -math.inf)
    if config.min_p:
        probability = logits.softmax(-1)
        least = config.min_p * probability.amax(-1, keepdim=True)
        logits = logits.masked_fill(probability < least, -math.inf)
    return logits.softmax(-1)


@pytest.mark.parametrize("vocab", [30, 1500])
@pytest.mark.parametrize("seed", range(4))
def test_filters_together_equal_those_of_hugging_face(vocab, seed) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(1, vocab, generator=random)
    top_k, top_p, min_p = [(0, 0.97, 0.0), (20, 0.8, 0.0), (0, 0.999, 0.01), (25, 0.95, 0.05)][seed]
    config = SamplingConfig(temperature=1.3, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = reference(logits, config)[0]
    found = torch.tensor(frequencies(logits, config, 2000))
    # A share is off by less than one draw.
    assert (found - expected).abs().max() < 1 / 2000
    assert not found[expected == 0].any()


def test_a_flat_distribution_over_a_large_vocabulary_is_sorted_whole() -> None:
    # The 256 most probable hold a tenth; top-p of one half needs more of them.
    logits = torch.linspace(0, 1e-3, 2560)[None]
    found = torch.tensor(frequencies(logits, SamplingConfig(top_p=0.5), 2560))
    assert not found[:1270].any()
    assert (found[1290:] > 0).all()


def test_no_uniform_number_chooses_a_token_of_probability_zero() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]]).expand(2, -1)
    uniform = torch.tensor([[0.0], [1 - 2**-52]], dtype=torch.float64)
    for config in (SamplingConfig(), SamplingConfig(top_k=5), SamplingConfig(top_p=0.999)):
        assert set(choose(logits, config, uniform).tolist()) <= {1, 3}


def test_temperature_zero_takes_the_most_probable_token() -> None:
    sampler = Sampler(SamplingConfig(temperature=0), [np.array([1])] * 2, 5)
    assert sampler.draw(torch.stack((LOGITS[0], -LOGITS[0]))).tolist() == [1, 0]


@pytest.mark.parametrize("config", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}])
@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-46, 5e-324])
def test_the_smallest_temperature_takes_the_most_probable_tokens(temperature, config) -> None:
    logits = torch.tensor([[3.0, 7.0, -5.0, 7.0]])
    found = frequencies(logits, SamplingConfig(temperature=temperature, **config))
    assert found == pytest.approx([0, 0.5, 0, 0.5])


def penalised(config: SamplingConfig, prompt: list[int], written: list[int], logits: Tensor):
    """Return the logits that the sampler would choose from, after tokens were written."""
    sampler = Sampler(config, [np.array(prompt, np.int64)], logits.shape[1])
    for token in written:
        forced = torch.full_like(logits, -1e9)
        forced[0, token] = 1e9
        assert sampler.draw(forced).tolist() == [token]
    return sampler._penalties.apply(logits)[0].tolist()


def test_repetition_shrinks_positive_and_grows_negative_logits_of_prompt_and_continuation() -> None:
    config = SamplingConfig(temperature=0, repetition_penalty=2.0)
    found = penalised(config, [0, 1], [2], torch.tensor([[3.0, -1.0, 4.0, 5.0]]))
    assert found == [1.5, -2.0, 2.0, 5.0]


def test_presence_counts_once_and_frequency_every_time_but_not_in_the_prompt() -> None:
    config = SamplingConfig(temperature=0, presence_penalty=0.5, frequency_penalty=0.25)
    found = penalised(config, [0, 3], [1, 1, 2, 1], torch.zeros(1, 4))
    assert found == [0.0, -1.25, -0.75, 0.0]


def test_counts_fade_and_presence_does_not() -> None:
    config = SamplingConfig(
        temperature=0, presence_penalty=1.0, frequency_penalty=1.0, penalty_decay=0.5
    )
    # Token 1 was written two steps before the last: 1 fades to 0.5, then 0.25.
    assert penalised(config, [], [1, 2, 2], torch.zeros(1, 3)) == [0.0, -1.25, -2.5]


def test_penalties_come_before_the_temperature() -> None:
    config = SamplingConfig(temperature=0.5, presence_penalty=math.log(2))
    sampler = Sampler(config, [np.array([0])] * 4000, 2)
    first = torch.tensor([[50.0, 0.0]]).expand(4000, -1)
    assert not sampler.draw(first).any()
    # log 2 less, doubled by the temperature: odds of 1 to 4.
    share = sampler.draw(torch.zeros(4000, 2)).double().mean().item()
    assert share == pytest.approx(0.8, abs=0.03)


CONFIGS = [
    {},
    {"temperature": 0.7, "top_k": 5},
    {"top_p": 0.8, "frequency_penalty": 0.3, "penalty_decay": 0.9},
    {"min_p": 0.1, "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_row_draws_the_same_alone_as_among_others_that_leave(config) -> None:
    steps, rows, vocab = 150, 4, 12
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(steps, rows, vocab, generator=random)
    prompts = [np.arange(row + 1) for row in range(rows)]
    sampler, drawn, left = Sampler(SamplingConfig(**config), prompts, vocab), [], [0, 1, 2, 3]
    for step in range(steps):
        drawn.append(dict(zip(left, sampler.draw(logits[step, left]).tolist(), strict=True)))
        if step in (40, 100):
            sampler.keep(torch.tensor([0, 2] if step == 40 else [1]))
            left = [0, 2] if step == 40 else [2]
    alone = Sampler(SamplingConfig(**config), [prompts[2]], vocab, streams=[2])
    expected = [alone.draw(logits[step, 2:3]).item() for step in range(steps)]
    assert [row[2] for row in drawn] == expected


def test_seeds_and_streams_differ() -> None:
    logits = torch.zeros(3, 1000)
    draws = [
        tuple(Sampler(SamplingConfig(seed=seed), [np.array([0])] * 3, 1000).draw(logits).tolist())
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0]) | set(draws[2])) == 6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf),
        ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1), ("min_p", 1.5),
        ("repetition_penalty", 0.0), ("presence_penalty", math.nan),
        ("frequency_penalty", math.inf), ("penalty_decay", 1.1), ("max_new_tokens", 0),
        ("stop", ("",)), ("stop", "\n"), ("seed", -1),
    ],
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_refused_by_name(name, value) -> None:
    with pytest.raises(ValueError, match=f"^{name} is .*; expected "):
        SamplingConfig(**{name: value})


def test_a_stream_for_each_prompt_is_needed() -> None:
    with pytest.raises(ValueError, match="streams has 1 numbers; expected one for each of the 2"):
        Sampler(SamplingConfig(), [np.array([0])] * 2, 5, streams=[1])
