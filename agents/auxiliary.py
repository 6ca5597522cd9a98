"""Auxiliary likelihoods: what the belief is asked to explain in training, beside the rewards.

Both add `coefficient` times a mean negative log-likelihood to PPO's loss. The gradient goes into
the memory: it is what makes a variance the variance of something. Acting needs none of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional as F

from doxastic.agents.collector import environment_name, own_task
from doxastic.agents.config import AuxiliaryConfig
from doxastic.agents.hidden import HiddenScale
from doxastic.agents.normalization import RunningMeanStd
from doxastic.agents.policy import ActorCritic
from doxastic.envs.gymnasium import POMDPVectorEnv
from doxastic.envs.wrappers import VectorPreviousAction
from doxastic.memory.base import Memory
from doxastic.memory.belief import BeliefMemory
from doxastic.memory.readouts import Belief

# Of targets scaled to variance 1: what is known exactly must not be worth an infinite likelihood.
MINIMUM_VARIANCE = 1e-3
# Log variances beyond these lie outside what scaled targets can need.
_LOG_VARIANCE = (-8.0, 4.0)


class Auxiliary(nn.Module, ABC):
    """A likelihood of something the rollout tells, under what the memory's features show.

    Attributes:
        reads: The entry of the rollout that it needs.
        coefficient: Its weight in the loss.
    """

    reads: ClassVar[Literal["hidden", "next_observation"]]

    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.coefficient = coefficient

    @abstractmethod
    def targets(self, rollout: TensorDict) -> dict[str, Tensor]:
        """Return what `loss` needs of a rollout, `[B, T, ...]` each; updates the statistics."""

    @abstractmethod
    def loss(self, memory_features: Tensor, minibatch: TensorDict) -> Tensor:
        """Return the mean negative log-likelihood of the targets, up to a constant; a scalar.

        Args:
            memory_features: `[B, T, F]`, with their graph.
            minibatch: Holds `targets` of the same steps, and `action`.
        """


def build_auxiliary(
    config: AuxiliaryConfig, policy: ActorCritic, env: VectorEnv, seed: int
) -> Auxiliary | None:
    """Return the auxiliary likelihood beside the policy, or None for none.

    The global generator is left alone: without one, and with one, the weights of the policy and
    all that is drawn stay what they are.

    Raises:
        ValueError: If the environment does not tell what is to be predicted.
    """
    kind = config.kind
    if kind == "auto":
        kind = "privileged" if isinstance(env.unwrapped, POMDPVectorEnv) else "none"
    if kind == "none":
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        auxiliary: Auxiliary
        if kind == "privileged":
            names = own_task(env).pomdp.hidden_names
            auxiliary = PrivilegedLikelihood(policy.memory, names, config.coefficient)
        else:
            auxiliary = NextObservationLikelihood(
                policy.memory, observed_space(env), env.single_action_space, config.coefficient
            )
    return auxiliary.to(policy.value_shift.device)


class PrivilegedLikelihood(Auxiliary):
    """A Gaussian likelihood of the task's true hidden state under the belief.

    With mean m and variance v of the belief's channels, the hidden state, scaled to mean 0 and
    variance 1, is taken for a linear map of what is believed in, plus a rest of constant variance:

        z ~ N(W m + b, (W o W) v + softplus(c) + 1e-3)

    The mean goes through the map and so does its uncertainty: there is no other way to say that a
    step is less certain than the next than by the belief's variance. The scale is `HiddenScale`.

    Args:
        memory: Whose belief is read.
        names: Of the hidden state's entries.
        coefficient: Weight in the loss.

    Source:
        Reconstruction; the published abstract names privileged belief targets.
    """

    reads = "hidden"

    def __init__(self, memory: Memory, names: tuple[str, ...], coefficient: float) -> None:
        super().__init__(coefficient)
        self.belief = _BeliefReader(memory)
        self.mean = nn.Linear(self.belief.size, len(names))
        self.rest = nn.Parameter(torch.zeros(len(names)))
        self.scale = HiddenScale(names)

    def targets(self, rollout: TensorDict) -> dict[str, Tensor]:
        """Return the scaled hidden states, `[B, T, D]`."""
        self.scale.update(rollout["hidden"])
        return {"auxiliary_target": self.scale(rollout["hidden"])}

    def predict(self, memory_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the scaled hidden state, `[..., D]` each."""
        mean, variance = self.belief(memory_features)
        spread = F.linear(variance, self.mean.weight.square(), F.softplus(self.rest))
        return self.mean(mean), spread + MINIMUM_VARIANCE

    def loss(self, memory_features: Tensor, minibatch: TensorDict) -> Tensor:
        """Return the mean negative log-likelihood of the hidden states."""
        mean, variance = self.predict(memory_features)
        return _gaussian(mean, variance, minibatch["auxiliary_target"]).mean()


class NextObservationLikelihood(Auxiliary):
    """A likelihood of the next observation, given the belief and the action.

    A layer of 64 and tanh reads mean and log deviation of the belief's channels and the action:
    from it, for vectors, mean and variance of a Gaussian of every entry, scaled to mean 0 and
    variance 1; for symbols, the logits of each. The previous action and the start of an episode,
    which observations may carry, are not predicted. What follows a step is counted within the
    episode only: the true final observation of a truncated one too, nothing after a termination.

    Args:
        memory: Whose belief is read.
        space: Space of what is predicted: a Box of one dimension, Discrete or MultiDiscrete.
        action_space: Space of one action.
        coefficient: Weight in the loss.

    Source:
        Reconstruction: an uncertainty learns what it is of from what it is to predict.
    """

    reads = "next_observation"
    width = 64

    def __init__(
        self, memory: Memory, space: gym.Space[Any], action_space: gym.Space[Any],
        coefficient: float,
    ) -> None:  # fmt: skip
        super().__init__(coefficient)
        self.belief = _BeliefReader(memory)
        self._action = _Numbers(action_space)
        self._symbols = _counts(space)
        size = sum(self._symbols) if self._symbols else 2 * math.prod(space.shape or ())
        self._start = [int(start) for start in np.reshape(getattr(space, "start", 0), -1)]
        self.hidden = nn.Linear(2 * self.belief.size + self._action.size, self.width)
        self.output = nn.Linear(self.width, size)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.statistics = None if self._symbols else RunningMeanStd((size // 2,))

    def targets(self, rollout: TensorDict) -> dict[str, Tensor]:
        """Return the next observations, `[B, T, D]`, and the weight of each, `[B, T]`.

        The weights are 0 after a termination, else equal, and 1 in the mean.
        """
        within = ~rollout["terminated"]
        weight = within / within.float().mean().clamp_min(1e-6)
        seen = rollout["next_observation"]
        if not isinstance(seen, Tensor):
            seen = seen["observation"]
        if self.statistics is None:
            return {"auxiliary_target": self._symbols_of(seen), "auxiliary_weight": weight}
        vectors = seen[..., : self.statistics.shape[0]]
        if within.any():
            self.statistics.update(vectors[within])
        return {"auxiliary_target": self.statistics(vectors), "auxiliary_weight": weight}

    def loss(self, memory_features: Tensor, minibatch: TensorDict) -> Tensor:
        """Return the weighted mean negative log-likelihood of the observations."""
        mean, variance = self.belief(memory_features)
        read = [mean, 0.5 * variance.log(), self._action(minibatch["action"])]
        out = self.output(self.hidden(torch.cat(read, dim=-1)).tanh())
        target = minibatch["auxiliary_target"]
        if self.statistics is None:
            losses = self._categorical(out, target)
        else:
            centre, raw = out.chunk(2, dim=-1)
            losses = _gaussian(centre, F.softplus(raw) + MINIMUM_VARIANCE, target).mean(-1)
        return (losses * minibatch["auxiliary_weight"]).mean()

    def _symbols_of(self, seen: Tensor) -> Tensor:
        """Return symbols from 0, `[B, T, K]`, also where they are the one-hot start of a vector."""
        if not seen.is_floating_point():
            return seen.reshape(*seen.shape[:2], -1) - torch.tensor(self._start, device=seen.device)
        parts = seen[..., : sum(self._symbols)].split(self._symbols, dim=-1)
        return torch.stack([part.argmax(-1) for part in parts], dim=-1)

    def _categorical(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of the symbols, `[B, T]`."""
        parts = logits.split(self._symbols, dim=-1)
        losses = [
            F.cross_entropy(part.flatten(0, 1), symbol.flatten(), reduction="none")
            for part, symbol in zip(parts, target.unbind(-1), strict=True)
        ]
        return torch.stack(losses).mean(0).view(target.shape[:2])


def observed_space(env: VectorEnv) -> gym.Space[Any]:
    """Return the space of what the environment itself shows, without the previous action.

    Raises:
        ValueError: If it is none that `NextObservationLikelihood` can predict.
    """
    space = env.single_observation_space
    if isinstance(env, VectorPreviousAction):
        space = env.env.single_observation_space
    elif isinstance(env, POMDPVectorEnv):
        space = env.pomdp.observation_space
    is_vector = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
    if not is_vector and not isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        raise ValueError(
            f"{environment_name(env)} shows {space}; auxiliary.kind next_observation predicts "
            "vectors and symbols: a Box of one dimension, Discrete or MultiDiscrete. Choose none."
        )
    return space


class _BeliefReader(nn.Module):
    """Mean and variance, `[..., M]` each, from a memory's features `[..., F]`.

    The belief's own where the memory has one; else linear, as in the readout `learned`.
    """

    def __init__(self, memory: Memory, size: int = 16) -> None:
        super().__init__()
        # The method, not the memory: its parameters are the policy's.
        self._belief_in: Callable[[Tensor], Belief] | None = None
        if isinstance(memory, BeliefMemory) and memory.readout is not None:
            self._belief_in, self.size = memory.belief_in, memory.readout.size
            return
        self.size = size
        self.projection = nn.Linear(memory.feature_size, 2 * size)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        if self._belief_in is not None:
            belief = self._belief_in(features)
            return belief.mean, belief.variance
        mean, log_variance = self.projection(features).chunk(2, dim=-1)
        return mean, log_variance.clamp(*_LOG_VARIANCE).exp()


class _Numbers:
    """Writes actions `[B, T, ...]` as vectors `[B, T, size]`: one-hot from 0, or their values."""

    def __init__(self, space: gym.Space[Any]) -> None:
        self._counts = _counts(space)
        self.size = sum(self._counts) or math.prod(space.shape or ())

    def __call__(self, action: Tensor) -> Tensor:
        if not self._counts:
            return action.flatten(2).float()
        symbols = action.reshape(*action.shape[:2], len(self._counts))
        one_hot = [
            F.one_hot(symbol, count)
            for symbol, count in zip(symbols.unbind(-1), self._counts, strict=True)
        ]
        return torch.cat(one_hot, dim=-1).float()


def _counts(space: gym.Space[Any]) -> list[int]:
    """Return how many values each symbol of a space has; none for numbers."""
    if isinstance(space, gym.spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, gym.spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.reshape(-1)]
    return []


def _gaussian(mean: Tensor, variance: Tensor, target: Tensor) -> Tensor:
    """Return negative log-densities without their constant, of the arguments' shape."""
    return 0.5 * (variance.log() + (target - mean).square() / variance)
