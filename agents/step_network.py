"""One step of an agent as a pure function of tensors, for exporters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from gymnasium import spaces
from torch import Tensor, nn

from doxastic.agents.action_heads import ActionHead, Parameters
from doxastic.agents.agent import Agent
from doxastic.agents.encoders import Observation, observation_dtype
from doxastic.memory.belief import BeliefMemory


class Port(NamedTuple):
    """An input or an output of the step."""

    name: str
    """Its name in the exported file."""

    shape: tuple[int, ...]
    """Its shape without the leading batch dimension."""

    dtype: torch.dtype
    """Its dtype."""


class StepNetwork(nn.Module):
    """An agent's step, `(observation, state, episode_start)` to what a control loop needs.

    Inputs, in the order of `inputs`:

    - `observation`, `[B, *shape]`, as the environment gives it; for a Dict space one input for each
      item, `observation.<key>`. Its scaling is inside.
    - `state`, `[B, S]`: zeros, then `next_state` of the step before.
    - `episode_start`, `[B]` bool: true clears the state first.

    Outputs, in the order of `outputs`:

    - `action`: the most probable action, in the units, the shape and the bounds of the space.
    - the parameters of the distribution of actions by their names in `action_heads`.
    - `value`, `[B]`: the expected return.
    - `belief_mean`, `belief_variance`, `[B, M]`, where the memory has an explicit belief.
    - `next_state`, `[B, S]`.

    Args:
        agent: The agent; it shares its parameters.

    Attributes:
        inputs: The inputs.
        outputs: The outputs.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.policy, self.normalizer = agent.policy, agent.normalizer
        size = self.policy.memory.state_size
        self.inputs = [
            *_leaves(agent.observation_space),
            Port("state", (size,), torch.float32),
            Port("episode_start", (), torch.bool),
        ]
        with torch.no_grad():
            self.outputs = [
                Port(name, tuple(out.shape[1:]), out.dtype)
                for name, out in self._step(*self.example(2)).items()
            ]

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        """Return inputs of the right shapes and dtypes, observations drawn from the space."""
        space = self.policy.observation_space
        rows = [_flat(space, space.sample()) for _ in range(batch_size)]
        observations = [torch.stack(leaf) for leaf in zip(*rows, strict=True)]
        return (
            *observations,
            self.policy.initial_state(batch_size),
            torch.zeros(batch_size, dtype=torch.bool),
        )

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for the inputs, each with a leading batch dimension."""
        return tuple(self._step(*tensors).values())

    def _step(self, *tensors: Tensor) -> dict[str, Tensor]:
        *leaves, state, episode_start = tensors
        policy = self.policy
        observation = _nested(policy.observation_space, iter(leaves))
        if self.normalizer is not None:
            observation = self.normalizer(observation)
        x = policy.encoder(observation).unsqueeze(1)
        remembered, next_state = policy.memory(x, state, episode_start.unsqueeze(1))
        features = policy.policy_body(remembered.squeeze(1))
        parameters = policy.action_head(features)
        return {
            "action": _action(policy.action_head, parameters),
            **parameters,
            "value": policy.values(features),
            **_belief(policy.memory, remembered.squeeze(1)),
            "next_state": next_state,
        }


def _leaves(space: gym.Space[Any], name: str = "observation") -> list[Port]:
    if isinstance(space, spaces.Dict):
        parts = (_leaves(part, f"{name}.{key}") for key, part in space.spaces.items())
        return [leaf for part in parts for leaf in part]
    return [Port(name, tuple(space.shape or ()), observation_dtype(space))]


def _flat(space: gym.Space[Any], observation: Any) -> list[Tensor]:
    """Return the parts of an observation in the order of `_leaves`."""
    if isinstance(space, spaces.Dict):
        parts = (_flat(part, observation[key]) for key, part in space.spaces.items())
        return [leaf for part in parts for leaf in part]
    return [torch.as_tensor(observation).to(observation_dtype(space))]


def _nested(space: gym.Space[Any], leaves: Iterator[Tensor]) -> Observation:
    """Return the observation that the encoder takes from its parts in the order of `_leaves`."""
    if isinstance(space, spaces.Dict):
        return {key: _nested(part, leaves) for key, part in space.spaces.items()}
    return next(leaves)


def _belief(memory: nn.Module, features: Tensor) -> dict[str, Tensor]:
    """Return mean and variance `[B, M]`, read back from a memory's features `[B, F]`."""
    if not isinstance(memory, BeliefMemory) or memory.readout is None:
        return {}
    belief = memory.belief_in(features)
    return {"belief_mean": belief.mean, "belief_variance": belief.variance}


def _action(head: ActionHead, parameters: Parameters) -> Tensor:
    """Return the most probable actions `[B, *space.shape]`; `ActionHead.to_env` for tensors."""
    action, _ = head.sample(parameters, deterministic=True)
    space = head.space
    action = action.reshape(-1, *(space.shape or ()))
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return action + torch.as_tensor(space.start)
    if isinstance(space, spaces.Box):
        low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
        return action.clamp(low.to(action.dtype), high.to(action.dtype))
    return action
