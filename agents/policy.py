"""The actor-critic: encoder, memory, a shared body, a policy head and a value head."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn
from torch.nn import functional as F

from doxastic.agents.action_heads import build_action_head
from doxastic.agents.config import EncoderConfig, PolicyConfig
from doxastic.agents.encoders import Observation, build_encoder
from doxastic.agents.normalization import rescale_outputs
from doxastic.memory.base import Memory


class ActorCritic(nn.Module):
    """An agent's networks: `observation -> encoder -> memory -> body -> policy and value`.

    The body's output is called the features: policy and value are one linear layer each on them,
    so a loss that is given the features never runs the memory, nor the body, twice.

    The value head works in normalised units: `value = head * value_scale + value_shift`. The two
    buffers are 1 and 0 unless `normalize_value_head` sets them.

    Args:
        observation_space: Observations of one environment.
        action_space: Actions of one environment.
        encoder_config: How observations become the memory's inputs.
        memory: Any memory whose input width is the encoder's width.
        policy_config: Size of the body.

    Attributes:
        feature_size: Width `F` of the features.
    """

    value_scale: Tensor
    value_shift: Tensor

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        encoder_config: EncoderConfig,
        memory: Memory,
        policy_config: PolicyConfig,
    ) -> None:
        super().__init__()
        self.observation_space = observation_space
        self.action_space = action_space
        self.encoder = build_encoder(observation_space, encoder_config)
        if memory.input_size != self.encoder.output_size:
            raise ValueError(
                f"the memory takes inputs of width {memory.input_size}; expected the encoder's "
                f"width, {self.encoder.output_size}. Build it with input_size=encoder.width."
            )
        self.memory = memory
        self.feature_size = policy_config.hidden_size
        self.policy_body = _Body(memory.feature_size, policy_config)
        self.action_head = build_action_head(action_space, self.feature_size)
        self.value_head = nn.Linear(self.feature_size, 1)
        nn.init.orthogonal_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.register_buffer("value_scale", torch.ones(1))
        self.register_buffer("value_shift", torch.zeros(1))

    def initial_state(self, batch_size: int) -> Tensor:
        """Return the memory's state before anything was seen, `[B, S]`."""
        return self.memory.initial_state(batch_size)

    def features(
        self, observation: Observation, state: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what the heads read, `[B, T, F]`, and the state after the last step, `[B, S]`.

        Args:
            observation: Observations `[B, T, ...]`, or a dict of them.
            state: The memory's state before the first step, `[B, S]`.
            reset: `[B, T]` bool; true at `t` clears the state before step `t` is consumed.
        """
        memory_features, state = self.memory_features(observation, state, reset)
        return self.policy_body(memory_features), state

    def memory_features(
        self, observation: Observation, state: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what the body reads, the memory's features, and the state; see `features`."""
        memory_features, state = self.memory(self.encoder(observation), state, reset)
        return memory_features, state

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        state: Tensor,
        reset: Tensor,
        *,
        deterministic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return action `[B, ...]`, log-probability `[B]`, value `[B]` and state `[B, S]`.

        Args:
            observation: Observations of one step, `[B, ...]`, or a dict of them.
            state: The memory's state before this step, `[B, S]`.
            reset: `[B]` bool; true starts a new episode with this observation.
            deterministic: Whether to take the most probable action.
            generator: Source of the noise; by default torch's global one.
        """
        features, state = self._step(observation, state, reset)
        action, log_prob = self.action_head.sample(
            self.action_head(features), generator, deterministic
        )
        return action, log_prob, self._value(features), state

    @torch.no_grad()
    def value(self, observation: Observation, state: Tensor, reset: Tensor) -> Tensor:
        """Return the values `[B]` of observations `[B, ...]`, e.g. to bootstrap from them.

        The state that would follow is dropped: the caller's state stays what it was.
        """
        features, _ = self._step(observation, state, reset)
        return self._value(features)

    def values(self, features: Tensor) -> Tensor:
        """Return the values `[...]`, in units of the return, of features `[..., F]`."""
        return self._value(features)

    @property
    def actor_network(self) -> ProbabilisticTensorDictSequential:
        """The policy head for TorchRL's losses: reads `features`, writes `action`, `log_prob`.

        It shares this module's parameters.
        """
        head = self.action_head
        distribution = ProbabilisticTensorDictModule(
            in_keys=list(head.in_keys),
            out_keys=["action"],
            distribution_class=head.distribution_class,
            distribution_kwargs=head.distribution_kwargs,
            return_log_prob=True,
            log_prob_key="log_prob",
        )
        parameters = TensorDictModule(head, in_keys=["features"], out_keys=list(head.in_keys))
        return ProbabilisticTensorDictSequential(parameters, distribution)

    @property
    def critic_network(self) -> TensorDictModule:
        """The value head for TorchRL's losses: `features` to `state_value`, normalised units.

        It shares this module's parameters.
        """
        return TensorDictModule(self.value_head, in_keys=["features"], out_keys=["state_value"])

    @torch.no_grad()
    def normalize_value_head(self, mean: Tensor | float, std: Tensor | float) -> None:
        """Set the units of the value head; the values themselves stay what they were.

        Args:
            mean: Return that the head gives as 0.
            std: Difference in return that the head gives as 1; above 0.
        """
        mean, std = (
            torch.as_tensor(x, dtype=torch.float32, device=self.value_shift.device).reshape(1)
            for x in (mean, std)
        )
        rescale_outputs(self.value_head, (self.value_shift, self.value_scale), (mean, std))
        self.value_shift.copy_(mean)
        self.value_scale.copy_(std)

    def _step(
        self, observation: Observation, state: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return features `[B, F]` and the next state `[B, S]`."""
        x = self.encoder(observation).unsqueeze(1)
        memory_features, state = self.memory(x, state, reset.unsqueeze(1))
        return self.policy_body(memory_features.squeeze(1)), state

    def _value(self, features: Tensor) -> Tensor:
        head = F.linear(features, self.value_head.weight, self.value_head.bias)
        return torch.addcmul(self.value_shift, head, self.value_scale).squeeze(-1)


class _Body(nn.Module):
    """Linear layers, each followed by tanh."""

    def __init__(self, input_size: int, config: PolicyConfig) -> None:
        super().__init__()
        sizes = [input_size] + [config.hidden_size] * config.hidden_layers
        layers = [nn.Linear(size, config.hidden_size) for size in sizes[:-1]]
        for layer in layers:
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x
