"""PPO's loss and the advantages against hand-computed ones."""

from __future__ import annotations

import gymnasium as gym
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from doxastic.agents.encoders import EncoderConfig
from doxastic.agents.losses import DiscreteLoss, TorchRLLoss, build_loss, estimate_advantages
from doxastic.agents.policy import ActorCritic, PolicyConfig
from doxastic.memory.baselines import GRUMemory


def make_policy(action_space: gym.Space | None = None) -> ActorCritic:
    return ActorCritic(
        gym.spaces.Box(-1, 1, (4,)),
        gym.spaces.Discrete(2) if action_space is None else action_space,
        EncoderConfig(width=16),
        GRUMemory(16, 16),
        PolicyConfig(hidden_size=16),
    )


def test_advantages_equal_hand_computed_ones_across_ends() -> None:
    # Truncated after step 1 (bootstrap 4), terminated after step 2 (nothing follows).
    rollout = TensorDict(
        {
            "reward": torch.tensor([[1.0, 2.0, 3.0, 4.0]]),
            "value": torch.tensor([[0.5, 1.0, 1.5, 2.0]]),
            "next_value": torch.tensor([[1.0, 4.0, 100.0, 3.0]]),
            "terminated": torch.tensor([[False, False, True, False]]),
            "done": torch.tensor([[False, True, True, False]]),
        },
        batch_size=[1],
    )
    advantage, target = estimate_advantages(rollout, discount=0.5, gae_lambda=0.5)
    # Step 3: 4 + .5*3 - 2; step 2: 3 - 1.5; step 1: 2 + .5*4 - 1;
    # step 0: (1 + .5*1 - .5) + .25 * step 1.
    assert advantage.tolist() == [[1.75, 3.0, 1.5, 3.5]]
    assert target.tolist() == [[2.25, 4.0, 3.0, 5.5]]


def loss_case(policy: ActorCritic) -> tuple[Tensor, TensorDict]:
    """Return features and a minibatch with ratios and values in and out of the interval."""
    features = torch.randn(3, 5, 16, requires_grad=True)
    head = policy.action_head
    distribution = head.distribution(head(features))
    action = distribution.sample()
    old = distribution.log_prob(action).detach() + 0.3 * torch.randn(3, 5)
    advantage, target = torch.randn(3, 5, 1), torch.randn(3, 5, 1)
    entries = {"action": action, "action_log_prob": old, "advantage": advantage}
    old_value = policy.value_head(features).detach() + 0.3 * torch.randn(3, 5, 1)
    entries |= {"value_target": target, "state_value": old_value}
    return features, TensorDict(entries, batch_size=[3, 5])


def test_the_loss_equals_hand_computed_ppo() -> None:
    policy = make_policy()
    features, minibatch = loss_case(policy)
    distribution = policy.action_head.distribution(policy.action_head(features))
    entries = (minibatch[key].squeeze(-1) for key in ("advantage", "value_target"))
    advantage, target = entries
    log_ratio = distribution.log_prob(minibatch["action"]) - minibatch["action_log_prob"]
    ratio = log_ratio.exp()
    surrogate = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    error = (policy.value_head(features).squeeze(-1) - target).square()
    outside = (ratio < 0.8) | (ratio > 1.2)
    assert 0 < outside.float().mean() < 1
    settings = {"clip": 0.2, "value_coefficient": 0.5}
    for loss in (
        DiscreteLoss(policy, **settings),
        TorchRLLoss(policy, **settings, clip_value=False),
    ):
        out = loss(features, minibatch, 0.01)
        torch.testing.assert_close(out.policy, -surrogate.mean())
        torch.testing.assert_close(out.value, 0.5 * error.mean())
        torch.testing.assert_close(out.entropy, distribution.entropy().mean())
        torch.testing.assert_close(out.divergence, (ratio - 1 - log_ratio).mean())
        torch.testing.assert_close(out.clip_fraction, outside.float().mean())
        torch.testing.assert_close(out.total, out.policy + out.value - 0.01 * out.entropy)


@pytest.mark.parametrize("entropy_coefficient", [0.0, 0.3])
def test_the_written_out_gradient_equals_torchrls(entropy_coefficient: float) -> None:
    policy = make_policy()
    with torch.no_grad():
        policy.action_head.linear.weight.mul_(100)
    features, minibatch = loss_case(policy)
    settings = {"clip": 0.2, "value_coefficient": 0.5}
    wanted = [features, *policy.action_head.parameters(), *policy.value_head.parameters()]
    ours, theirs = (
        torch.autograd.grad(2.0 * loss(features, minibatch, entropy_coefficient).total, wanted)
        for loss in (
            DiscreteLoss(policy, **settings),
            TorchRLLoss(policy, **settings, clip_value=False),
        )
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_a_clipped_value_loss_equals_a_hand_computed_one() -> None:
    policy = make_policy()
    features, minibatch = loss_case(policy)
    value = policy.value_head(features)
    old, target = minibatch["state_value"], minibatch["value_target"]
    near = old + (value - old).clamp(-0.2, 0.2)
    error = torch.maximum((value - target).square(), (near - target).square())
    # Both kinds of steps: those where clipping changes the loss, and those where it does not.
    assert 0 < (error > (value - target).square()).float().mean() < 1
    loss = build_loss(policy, clip=0.2, value_coefficient=0.5, clip_value=True)
    torch.testing.assert_close(loss(features, minibatch, 0.01).value, 0.5 * error.mean())


@pytest.mark.parametrize("space", [gym.spaces.Discrete(2), gym.spaces.Box(-1, 1, (2,))], ids=str)
def test_values_that_are_not_to_be_clipped_go_as_far_as_they_like(space: gym.Space) -> None:
    policy = make_policy(space)
    features, minibatch = loss_case(policy)
    error = (policy.value_head(features) - minibatch["value_target"]).square()
    loss = build_loss(policy, clip=0.2, value_coefficient=0.5, clip_value=False)
    torch.testing.assert_close(loss(features, minibatch, 0.01).value, 0.5 * error.mean())
