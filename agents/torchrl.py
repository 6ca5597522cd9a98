"""Any memory as a TorchRL module: works in TorchRL's collectors, GAE and losses."""

from __future__ import annotations

import math
from typing import Any

import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.modules.tensordict_module.rnn import recurrent_mode

from doxastic.agents.policy import ActorCritic
from doxastic.memory.base import Memory

IS_INIT = "is_init"


class MemoryModule(TensorDictModuleBase):
    """A memory that reads its inputs and its state from a TensorDict.

    It follows TorchRL's conventions for recurrent modules. In step mode, the one of rollouts, the
    TensorDict is a batch of single steps: the state is cleared where `is_init` is set, and the
    next one is written under `("next", state_key)`. In recurrent mode, the one of losses and
    value estimators, the last batch dimension is time: every sequence starts from the stored
    state of its first step, and starts again from the stored state of every later step where
    `is_init` is set. TorchRL stores zeros there in rollouts, so that this is a reset, but
    not in the "next" observations that `GAE(shifted=False)` evaluates.

    The environment needs `InitTracker()` and the transform of `make_tensordict_primer()`;
    TorchRL's `Collector(..., auto_register_policy_transforms=True)` adds both. Use
    `GAE(..., deactivate_vmap=True)`.

        module = MemoryModule(GRUMemory(64, 64), in_key="encoded", out_key="features")

    Args:
        memory: Any memory.
        in_key: Entry of the inputs, `[..., C]`.
        out_key: Entry of the features, `[..., F]`.
        state_key: Entry of the state, `[..., S]`.
        default_recurrent_mode: The mode outside of TorchRL's `set_recurrent_mode`.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        in_key: NestedKey,
        out_key: NestedKey,
        state_key: NestedKey = "memory_state",
        default_recurrent_mode: bool = False,
    ) -> None:
        super().__init__()
        self.memory = memory
        self.state_key = state_key
        self.default_recurrent_mode = default_recurrent_mode
        self.next_state_key = ("next", *((state_key,) if isinstance(state_key, str) else state_key))
        self.in_keys = [in_key, state_key, IS_INIT]
        self.out_keys = [out_key, self.next_state_key]

    @property
    def recurrent_mode(self) -> bool:
        """Whether the last batch dimension is time."""
        mode = recurrent_mode()
        return self.default_recurrent_mode if mode is None else bool(mode)

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """Return the transform that adds the state to an environment, zeros at every reset."""
        spec = Unbounded(shape=(self.memory.state_size,), dtype=torch.float32)
        return TensorDictPrimer({self.state_key: spec}, expand_specs=True)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the features and the next state into `tensordict` and return it.

        In recurrent mode a memory gives the state after the last step only. The earlier entries of
        `("next", state_key)` keep what the rollout stored, or are zeros if there is nothing.

        Raises:
            KeyError: If an entry is missing; the message names the transform that adds it.
        """
        x, state, is_init = self._entries(tensordict)
        batch = tensordict.batch_size
        time = batch[-1] if self.recurrent_mode and batch else 1
        if self.recurrent_mode and not batch:
            raise ValueError(
                "the TensorDict has no batch dimension; expected [..., T] in recurrent mode. "
                "Use set_recurrent_mode(False) for single steps."
            )
        rows = math.prod(batch) // time
        x, state = x.reshape(rows, time, -1), state.reshape(rows, time, self.memory.state_size)
        is_init = is_init.reshape(rows, time)
        if self.recurrent_mode:
            stored = tensordict.get(self.next_state_key, None)
            next_state = torch.zeros_like(state) if stored is None else stored.reshape_as(state)
            features, next_state = self._sequence(x, state, is_init, next_state.clone())
        else:
            features, next_state = self.memory(x, state[:, 0], is_init)
        tensordict.set(self.out_keys[0], features.reshape(*batch, self.memory.feature_size))
        tensordict.set(self.next_state_key, next_state.reshape(*batch, self.memory.state_size))
        return tensordict

    def _entries(self, tensordict: TensorDictBase) -> list[Tensor]:
        remedies = [
            "Put the module that writes it before this one.",
            "Append module.make_tensordict_primer() to the environment: without it "
            "the memory would start from nothing at every step.",
            "Append torchrl.envs.InitTracker() to the environment: without it the memory would "
            "run on from one episode into the next.",
        ]
        entries = [tensordict.get(key, None) for key in self.in_keys]
        for key, entry, remedy in zip(self.in_keys, entries, remedies, strict=True):
            if entry is None:
                raise KeyError(f"the TensorDict has no entry {key!r}. {remedy}")
        return entries

    def _sequence(
        self, x: Tensor, state: Tensor, is_init: Tensor, next_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return features `[B, T, F]` and `next_state` `[B, T, S]` with known states filled in."""
        later = is_init.clone()
        later[:, 0] = False
        if state[later].any():
            return self._pieces(x, state, later, next_state)
        # Zeros stored at every restart: the memory's own reset does it in one call.
        features, last = self.memory(x, state[:, 0], later)
        next_state[:, -1] = last
        return features, next_state

    def _pieces(
        self, x: Tensor, state: Tensor, later: Tensor, next_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the memory over every piece between restarts, all of one length at once."""
        rows, time = later.shape
        starts = later.clone()
        starts[:, 0] = True
        first = starts.flatten().nonzero().squeeze(1)
        lengths = first.diff(append=first.new_tensor([rows * time]))
        x, state, next_state = x.flatten(0, 1), state.flatten(0, 1), next_state.flatten(0, 1)
        features, order = [], []
        for length in lengths.unique().tolist():
            begin = first[lengths == length]
            steps = begin.unsqueeze(1) + torch.arange(length, device=x.device)
            no_reset = torch.zeros_like(steps, dtype=torch.bool)
            piece, last = self.memory(x[steps], state[begin], no_reset)
            features.append(piece.flatten(0, 1))
            order.append(steps.flatten())
            next_state[begin + length - 1] = last
        joined = torch.cat(features)[torch.cat(order).argsort()]
        return joined.unflatten(0, (rows, time)), next_state.unflatten(0, (rows, time))


class _EncoderModule(TensorDictModuleBase):
    """The encoder on observations as TorchRL's Gymnasium wrapper stores them."""

    def __init__(self, policy: ActorCritic, observation_key: NestedKey) -> None:
        super().__init__()
        self.encoder = policy.encoder
        space = policy.observation_space
        # The wrapper puts the entries of a Dict space at the root.
        self.names = list(space.spaces) if isinstance(space, spaces.Dict) else None
        self.in_keys = self.names or [observation_key]
        self.out_keys = ["encoded"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation: Any = tensordict.get(self.in_keys[0])
        if self.names is not None:
            observation = {name: tensordict.get(name) for name in self.names}
        return tensordict.set("encoded", self.encoder(observation))


class _Values(nn.Module):
    """The value head in units of the return."""

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, features: Tensor) -> Tensor:
        return self.policy.values(features).unsqueeze(-1)


def policy_module(
    policy: ActorCritic, observation_key: NestedKey = "observation"
) -> ProbabilisticTensorDictSequential:
    """Return the whole policy for TorchRL's collectors: observations to `action`, `log_prob`.

    It shares the parameters of `policy`. Discrete actions are categories: wrap environments with
    `GymWrapper(env, categorical_action_encoding=True)`.

    Args:
        policy: The networks.
        observation_key: Entry of the observations; those of a Dict space are found by name.
    """
    return ProbabilisticTensorDictSequential(
        *_feature_modules(policy, observation_key), *policy.actor_network
    )


def value_module(
    policy: ActorCritic, observation_key: NestedKey = "observation"
) -> TensorDictSequential:
    """Return the whole critic for TorchRL's value estimators: observations to `state_value`.

    It shares the parameters and the state of `policy`; values are in units of the return.
    """
    values = TensorDictModule(_Values(policy), in_keys=["features"], out_keys=["state_value"])
    return TensorDictSequential(*_feature_modules(policy, observation_key), values)


def _feature_modules(
    policy: ActorCritic, observation_key: NestedKey
) -> tuple[TensorDictModuleBase, ...]:
    return (
        _EncoderModule(policy, observation_key),
        MemoryModule(policy.memory, in_key="encoded", out_key="memory_features"),
        TensorDictModule(policy.policy_body, in_keys=["memory_features"], out_keys=["features"]),
    )
