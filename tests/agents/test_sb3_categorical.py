"""The lean categorical is SB3's."""

from __future__ import annotations

import pytest
import torch
from stable_baselines3.common.distributions import CategoricalDistribution

from doxastic.agents.sb3.categorical import LeanCategorical

LOGITS = torch.tensor([[0.3, -1.0, 2.0], [5.0, 5.0, -40.0], [0.0, -float("inf"), 0.0]])


@pytest.fixture
def pair() -> tuple[LeanCategorical, CategoricalDistribution]:
    theirs = CategoricalDistribution(3)
    theirs.distribution = torch.distributions.Categorical(logits=LOGITS, validate_args=False)
    return LeanCategorical(LOGITS), theirs


def test_probabilities_entropies_and_modes_are_those_of_sb3(pair):
    ours, theirs = pair
    actions = torch.tensor([2, 0, 2])
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.log_prob(actions.float()), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode()[:1], theirs.mode()[:1])
    torch.testing.assert_close(ours.distribution.probs, theirs.distribution.probs)


def test_samples_use_the_random_numbers_of_sb3(pair):
    draws = []
    for distribution in pair:
        torch.manual_seed(3)
        draws.append([distribution.get_actions() for _ in range(20)])
    assert torch.equal(torch.stack(draws[0]), torch.stack(draws[1]))


def test_other_logits_make_another_distribution():
    ours = LeanCategorical(LOGITS)
    actions = ours.actions_from_params(torch.tensor([[0.0, 50.0, 0.0]]), deterministic=True)
    assert actions.tolist() == [1]
    assert ours.log_prob_from_params(torch.tensor([[0.0, 50.0, 0.0]]))[1].item() == pytest.approx(0)
