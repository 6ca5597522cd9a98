"""Running statistics of observations and returns."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from doxastic.agents.normalization import (
    OBSERVATION_CLIP,
    ObservationNormalizer,
    RunningMeanStd,
    value_statistics,
)


def test_batches_merge_to_the_statistics_of_all_samples() -> None:
    samples = torch.randn(1000, 3, dtype=torch.float64) * 5 + 1e4
    statistics = RunningMeanStd((3,))
    for batch in samples.split([1, 99, 400, 500]):
        statistics.update(batch)
    torch.testing.assert_close(statistics.mean, samples.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(statistics.variance, samples.var(0, correction=0), rtol=1e-8, atol=0)
    assert statistics.count == 1000


def test_leading_dimensions_count_samples() -> None:
    samples = torch.randn(4, 5, 3)
    deep, flat = RunningMeanStd((3,)), RunningMeanStd((3,))
    deep.update(samples)
    flat.update(samples.reshape(20, 3))
    assert torch.equal(deep.mean, flat.mean) and deep.count == 20


def test_unseen_statistics_are_the_identity() -> None:
    x = torch.randn(7, 2)
    assert torch.equal(RunningMeanStd((2,))(x), x)


def test_normalised_samples_have_mean_zero_and_deviation_one() -> None:
    samples = torch.randn(500) * 3 + 7
    statistics = RunningMeanStd()
    statistics.update(samples)
    scaled = statistics(samples)
    assert scaled.dtype == torch.float32
    assert scaled.mean().abs() < 1e-5 and abs(scaled.std(correction=0) - 1) < 1e-5


def test_only_update_changes_the_statistics() -> None:
    statistics = RunningMeanStd((2,))
    statistics.update(torch.randn(10, 2))
    before = {key: value.clone() for key, value in statistics.state_dict().items()}
    statistics(torch.randn(10, 2))
    assert all(torch.equal(value, before[key]) for key, value in statistics.state_dict().items())


def test_a_constant_is_centred_and_not_blown_up() -> None:
    statistics = value_statistics()
    statistics.update(torch.full((50,), 3.0))
    assert statistics(torch.tensor(3.0)) == 0
    assert statistics(torch.tensor(3.5)) <= 50.1


def test_float64_statistics_survive_a_state_dict() -> None:
    statistics, copy = RunningMeanStd((2,)), RunningMeanStd((2,))
    statistics.update(torch.randn(10, 2))
    copy.load_state_dict(statistics.state_dict())
    assert copy.mean.dtype == torch.float64
    assert torch.equal(copy.mean, statistics.mean) and torch.equal(copy.std, statistics.std)


SPACE = gym.spaces.Dict(
    {
        "position": gym.spaces.Box(-np.inf, np.inf, (2,)),
        "image": gym.spaces.Box(0, 255, (4, 4, 3), np.uint8),
        "kind": gym.spaces.Discrete(3),
    }
)


def test_only_float_vectors_are_scaled() -> None:
    normalizer = ObservationNormalizer(SPACE)
    observation = {
        "position": torch.randn(6, 2) * 9 + 4,
        "image": torch.randint(0, 255, (6, 4, 4, 3), dtype=torch.uint8),
        "kind": torch.randint(0, 3, (6,)),
    }
    normalizer.update(observation)
    scaled = normalizer(observation)
    assert scaled["position"].mean(0).abs().max() < 1e-5
    assert torch.equal(scaled["image"], observation["image"])
    assert torch.equal(scaled["kind"], observation["kind"])


def test_scaled_observations_are_clipped_and_the_input_is_kept() -> None:
    normalizer = ObservationNormalizer(SPACE["position"])
    normalizer.update(torch.randn(100, 2))
    far = torch.tensor([[1e6, -1e6]])
    assert normalizer(far).tolist() == [[OBSERVATION_CLIP, -OBSERVATION_CLIP]]
    assert far.tolist() == [[1e6, -1e6]]


def test_statistics_are_shared_by_all_environments() -> None:
    normalizer = ObservationNormalizer(SPACE["position"])
    quiet, noisy = torch.randn(4, 50, 2) * 0.1, torch.randn(4, 50, 2) * 10
    normalizer.update(torch.cat([quiet, noisy]))
    ratio = normalizer(noisy / 10).std() / normalizer(quiet * 1.0).std()
    assert normalizer(noisy).std() > 50 * normalizer(quiet).std()
    assert ratio == pytest.approx(10, rel=0.3)
