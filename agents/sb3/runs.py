"""The networks of a trained run in the places where an SB3 policy has its own."""

from __future__ import annotations

import importlib
from copy import deepcopy
from pathlib import Path
from typing import Any, Self

from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn

from doxastic.agents.action_heads import ActionHead
from doxastic.agents.agent import Agent
from doxastic.agents.policy import ActorCritic


def load_agent(run: str | Path | Agent) -> Agent:
    """Return the best agent of a run folder, or a copy of an agent."""
    if isinstance(run, Agent):
        return Agent(deepcopy(run.policy), deepcopy(run.normalizer))
    # Run folders are the business of the package above this one, which is looked up by name
    # when one is asked for: nothing in this folder may depend on it.
    agent: Agent = importlib.import_module("doxastic.training").load(run)
    return agent


class RunBody(nn.Module):
    """A run's shared body, where SB3 has one network for the policy and one for the value."""

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.body = policy.policy_body
        self.latent_dim_pi = self.latent_dim_vf = policy.feature_size

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return what both heads read, `[B, F]`, twice."""
        latent = self.body(features)
        return latent, latent

    def forward_actor(self, features: Tensor) -> Tensor:
        """Return what the policy head reads, `[B, F]`."""
        latent: Tensor = self.body(features)
        return latent

    def forward_critic(self, features: Tensor) -> Tensor:
        """Return what the value head reads, `[B, F]`."""
        return self.forward_actor(features)


class RunValue(nn.Module):
    """A run's value head with the scale of its returns."""

    scale: Tensor
    shift: Tensor

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.head = policy.value_head
        self.register_buffer("scale", policy.value_scale.clone())
        self.register_buffer("shift", policy.value_shift.clone())

    def forward(self, latent: Tensor) -> Tensor:
        """Return values `[B, 1]` in units of the return."""
        value: Tensor = self.head(latent) * self.scale + self.shift
        return value


class HeadDistribution(Distribution):
    """The actions of one of doxastic's heads as a distribution of SB3.

    Args:
        head: The head.
        latent: What it reads, `[B, F]`.
    """

    def __init__(self, head: ActionHead, latent: Tensor) -> None:
        super().__init__()
        self.head, self.parameters = head, head(latent)
        self.distribution: Any = head.distribution(self.parameters)

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Return the head."""
        return self.head

    def proba_distribution(self, *args: Any, **kwargs: Any) -> Self:
        """Return this distribution: its parameters are known."""
        return self

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-probabilities `[B]` of actions."""
        log_prob: Tensor = self.distribution.log_prob(x)
        return log_prob

    def entropy(self) -> Tensor:
        """Return the entropies `[B]`."""
        entropy: Tensor = self.distribution.entropy()
        return entropy

    def sample(self) -> Tensor:
        """Return random actions."""
        return self.head.sample(self.parameters)[0]

    def mode(self) -> Tensor:
        """Return the most probable actions."""
        return self.head.sample(self.parameters, deterministic=True)[0]

    def actions_from_params(self, latent: Tensor, deterministic: bool = False) -> Tensor:
        """Return actions for what the head reads."""
        return HeadDistribution(self.head, latent).get_actions(deterministic)

    def log_prob_from_params(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Return random actions and their log-probabilities."""
        return self.head.sample(self.head(latent))
