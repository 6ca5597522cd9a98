import math

import numpy as np
import pytest
import torch
from torch.distributions import Beta, kl_divergence

from doxastic.agents.distributions import (
    BoundedBeta,
    Categorical,
    DiagonalNormal,
    MultiBernoulli,
    MultiCategorical,
)

LOW, HIGH = torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 0.5])


def bounded_beta(a=(3.0, 1.5), b=(2.0, 4.0)):
    return BoundedBeta(torch.tensor([a, b]).T, LOW, HIGH)


def test_beta_log_density_agrees_with_the_transformed_density():
    distribution = bounded_beta()
    action = torch.tensor([[-1.0, 0.2], [1.9, 0.01]])
    width = HIGH - LOW
    unit = (action - LOW) / width
    expected = Beta(torch.tensor([3.0, 1.5]), torch.tensor([2.0, 4.0])).log_prob(unit)
    torch.testing.assert_close(distribution.log_prob(action), (expected - width.log()).sum(-1))


def test_beta_density_integrates_to_one():
    distribution = BoundedBeta(torch.tensor([[1.2, 3.0]]), LOW[:1], HIGH[:1])
    grid = torch.linspace(-2, 2, 20001).unsqueeze(-1)
    assert distribution.log_prob(grid).exp().mean() * 4 == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("concentration", [1.00001, 1.7, 50.0])
def test_beta_log_density_and_gradient_are_finite_at_the_bounds(concentration):
    pairs = torch.full((2, 2), concentration, requires_grad=True)
    distribution = BoundedBeta(pairs, LOW, HIGH)
    log_prob = distribution.log_prob(torch.stack((LOW, HIGH)))
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert pairs.grad.isfinite().all()


def test_beta_samples_stay_within_the_bounds_and_have_the_mean():
    torch.manual_seed(0)
    distribution = bounded_beta()
    sample = distribution.sample((20000,))
    assert (sample > LOW).all() and (sample < HIGH).all()
    torch.testing.assert_close(sample.mean(0), distribution.mean, atol=0.02, rtol=0)


def test_beta_mode_is_the_densest_action():
    distribution = BoundedBeta(torch.tensor([[3.0, 2.0]]), LOW[:1], HIGH[:1])
    grid = torch.linspace(-2, 2, 4001).unsqueeze(-1)
    densest = grid[distribution.log_prob(grid).argmax()]
    torch.testing.assert_close(distribution.mode, densest, atol=2e-3, rtol=0)
    torch.testing.assert_close(distribution.deterministic_sample, distribution.mode)


@pytest.mark.parametrize(
    "distribution",
    [
        Categorical(torch.tensor([0.3, -1.0, 2.0])),
        MultiCategorical(torch.tensor([[0.3, -1.0, 2.0], [0.0, 1.0, -1e9]])),
        MultiBernoulli(torch.tensor([0.3, -1.0, 2.0])),
        DiagonalNormal(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0])),
        bounded_beta(),
    ],
    ids=lambda distribution: type(distribution).__name__,
)
def test_analytic_entropy_is_the_mean_negative_log_probability(distribution):
    torch.manual_seed(0)
    log_prob = distribution.log_prob(distribution.sample((50000,)))
    assert -log_prob.mean() == pytest.approx(distribution.entropy().item(), abs=0.02)


def test_a_category_that_does_not_exist_leaves_entropy_and_gradients_alone():
    present = torch.tensor([[0.3, -1.0]], requires_grad=True)
    absent = torch.cat((present, torch.full((1, 1), -1e9)), -1)
    entropy = MultiCategorical(absent).entropy()
    torch.testing.assert_close(entropy, MultiCategorical(present).entropy())
    entropy.sum().backward()
    assert present.grad.isfinite().all()


def test_bits_are_counted_by_hand():
    distribution = MultiBernoulli(torch.tensor([0.0, math.log(3)]))
    bits = torch.tensor([1, 1], dtype=torch.int8)
    assert distribution.log_prob(bits).exp() == pytest.approx(0.5 * 0.75)
    assert distribution.sample().dtype == torch.int8
    assert distribution.deterministic_sample.tolist() == [0, 1]


def test_normal_divergence_is_available_to_losses():
    one = DiagonalNormal(torch.zeros(2), torch.ones(2))
    two = DiagonalNormal(torch.ones(2), torch.ones(2))
    np.testing.assert_allclose(kl_divergence(one, two), 1.0)
