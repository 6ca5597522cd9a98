"""TorchRL's losses and advantages, fitted to whole segments of memory."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value.functional import generalized_advantage_estimate

from doxastic.agents.policy import ActorCritic


def build_loss(
    policy: ActorCritic, *, clip: float, value_coefficient: float, clip_value: bool
) -> ClipPPOLoss:
    """Return TorchRL's loss of the two heads; it reads `features` and shares the weights.

    The entropy's weight is the buffer `entropy_coeff`, filled before every update. The squared
    error of the value is not halved: its weight means what it means in Stable-Baselines3.
    """
    loss = ClipPPOLoss(
        _PolicyHead(policy),
        _ValueHead(policy),
        clip_epsilon=clip,
        critic_coeff=value_coefficient,
        loss_critic_type="l2",
        clip_value=clip_value,
        log_explained_variance=False,
        # The heads keep their own parameters: nothing has to be swapped in at every call.
        functional=False,
    )
    loss.set_keys(sample_log_prob="action_log_prob")
    return loss


class _PolicyHead(nn.Module):
    """The policy head as ClipPPOLoss uses one: `get_dist` of the features.

    A ProbabilisticTensorDictSequential gives the same distribution and costs .2 ms more in
    every minibatch: it copies the TensorDict and writes the parameters into it.
    """

    in_keys = ("features",)

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.head = policy.action_head

    def get_dist(self, tensordict: TensorDict) -> torch.distributions.Distribution:
        return self.head.distribution(self.head(tensordict.get("features")))


class _ValueHead(nn.Module):
    """The value head as ClipPPOLoss uses one: `features` to `state_value`, in its own units."""

    in_keys = ("features",)

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.head = policy.value_head

    def forward(self, tensordict: TensorDict) -> TensorDict:
        return tensordict.set("state_value", self.head(tensordict.get("features")))


def estimate_advantages(
    rollout: TensorDict, discount: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Return generalised advantage estimates and value targets, both `[B, T]`.

    With `delta_t = reward_t + discount * next_value_t * not terminated_t - value_t` the
    advantage is `A_t = delta_t + discount * lambda * not done_t * A_{t+1}`, and the target is
    `A_t + value_t` (Schulman et al., arXiv 1506.02438). TorchRL's loop over time serves it: its
    vectorised variant is .2 to .8 ms quicker on long episodes of few environments and up to
    10 ms slower on short episodes of many.

    Args:
        rollout: A segment with `value`, `next_value`, `reward`, `done` and `terminated`.
        discount: Discount of future rewards per step.
        gae_lambda: Decay of the estimate.
    """
    names = ("value", "next_value", "reward", "done", "terminated")
    # Environments as TorchRL's feature dimension, [T, B]: every step is one contiguous row.
    columns = [rollout[name].T.contiguous() for name in names]
    advantage, target = generalized_advantage_estimate(discount, gae_lambda, *columns)
    return advantage.T, target.T
