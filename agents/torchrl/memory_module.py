"""Any memory as a TorchRL module: works in TorchRL's collectors, GAE and losses."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.modules.tensordict_module.rnn import recurrent_mode

from doxastic.agents.torchrl.observations import ObservationEncoder
from doxastic.agents.torchrl.restarts import IS_INIT, run_with_restarts
from doxastic.memory.base import Memory


class MemoryModule(TensorDictModuleBase):
    """A memory that reads its inputs and its state from a TensorDict.

    It follows TorchRL's conventions for recurrent modules. In step mode, the one of rollouts, the
    TensorDict is a batch of single steps: the state is cleared where `is_init` is set, and the
    next one is written under `("next", state_key)`. In recurrent mode, the one of losses and
    value estimators, the last batch dimension is time: every sequence starts from the stored
    state of its first step, and starts again from the stored state of every later step where
    `is_init` is set. TorchRL stores zeros there in rollouts, so that this is a reset, but
    not in the "next" observations that `GAE(shifted=False)` evaluates, nor where slices of a
    replay buffer begin; see `mark_next_restarts`.

    Segments made by `to_segments` hold the state once, before their first step: `[N, S]` beside
    inputs `[N, T, C]`. They start from it and from nothing at every later `is_init`; no next
    state is written, which the next reader would take for the one before the segment.

    The environment needs `InitTracker()` and the transform of `make_tensordict_primer()`;
    TorchRL's `Collector(..., auto_register_policy_transforms=True)` adds both. Use
    `GAE(..., deactivate_vmap=True)`, and the same for losses that have it.

        module = MemoryModule(GRUMemory(64, 64), in_key="encoded", out_key="features")

    Args:
        memory: Any memory.
        in_key: Entry of the inputs, `[..., C]`; or, for an encoder that takes a dict, the entry
            of each of its items by name.
        out_key: Entry of the features, `[..., F]`.
        state_key: Entry of the state, `[..., S]`.
        encoder: What turns the entry, or the dict of entries, into `[..., C]`; by default the
            entry is the input.
        default_recurrent_mode: The mode outside of TorchRL's `set_recurrent_mode`.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        in_key: NestedKey | Mapping[str, NestedKey],
        out_key: NestedKey,
        state_key: NestedKey = "memory_state",
        encoder: nn.Module | None = None,
        default_recurrent_mode: bool = False,
    ) -> None:
        super().__init__()
        self.memory = memory
        self.encoder = encoder
        self.state_key = state_key
        self.default_recurrent_mode = default_recurrent_mode
        self.next_state_key = ("next", *((state_key,) if isinstance(state_key, str) else state_key))
        self._names = list(in_key) if isinstance(in_key, Mapping) else None
        inputs = list(in_key.values()) if isinstance(in_key, Mapping) else [in_key]
        self.in_keys = [*inputs, state_key, IS_INIT]
        self.out_keys = [out_key, self.next_state_key]

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        *,
        out_key: NestedKey = "features",
        observation_key: NestedKey = "observation",
        state_key: NestedKey = "memory_state",
        which: str = "best",
        device: str = "cpu",
    ) -> MemoryModule:
        """Return the trained memory of a run; it reads observations as the environment gives them.

        The scale of the observations and the run's encoder come before the memory.

        Args:
            run: A run folder.
            out_key: Entry of the features, `[..., F]`.
            observation_key: Entry of the observations; those of a Dict space are found by name.
            state_key: Entry of the state, `[..., S]`.
            which: `best`, `last` or the name of a checkpoint, `step-<n>`.
            device: Where the network runs.

        Raises:
            ValueError: If an item of a Dict space has the name of another entry.
        """
        # Run folders are read one floor up: imported when asked for, for nothing else here is.
        agent = importlib.import_module("doxastic.training").load(run, which, device)
        encoder = ObservationEncoder(agent)
        return cls(
            agent.policy.memory,
            in_key=encoder.entries(observation_key, (out_key, state_key, IS_INIT)),
            out_key=out_key,
            state_key=state_key,
            encoder=encoder,
        )

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
            ValueError: If the entries do not fit each other or the mode.
        """
        x, state, is_init = self._entries(tensordict)
        lead = x.shape[:-1]
        run = self._sequence if self.recurrent_mode else self._steps
        stored = tensordict.get(self.next_state_key, None)
        features, following = run(x, state, is_init, stored)
        tensordict.set(self.out_keys[0], features.reshape(*lead, features.shape[-1]))
        if following is not None:
            tensordict.set(self.next_state_key, following.reshape(*lead, following.shape[-1]))
        return tensordict

    def _steps(
        self, x: Tensor, state: Tensor, is_init: Tensor, _: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return features `[B, 1, F]` and next states `[B, S]` of single steps."""
        lead = x.shape[:-1]
        self._check(state, is_init, lead, lead)
        rows, size = math.prod(lead), self.memory.state_size
        return self.memory(
            x.reshape(rows, 1, -1), state.reshape(rows, size), is_init.reshape(rows, 1)
        )

    def _sequence(
        self, x: Tensor, state: Tensor, is_init: Tensor, stored: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return features `[B, T, F]`, and next states `[B, T, S]` if every step has a state.

        Args:
            x: Inputs `[..., T, C]`.
            state: `[..., T, S]`, or `[..., S]` for segments.
            is_init: `[..., T, 1]`.
            stored: The next states of the rollout, `[..., T, S]`.
        """
        lead = x.shape[:-1]
        _check_sequence(x, lead)
        is_segment = state.ndim == len(lead)
        self._check(state, is_init, lead, lead[:-1] if is_segment else lead)
        rows, time, size = math.prod(lead[:-1]), lead[-1], self.memory.state_size
        x, later = x.reshape(rows, time, -1), is_init.reshape(rows, time).clone()
        # A sequence may begin anywhere: its first stored state counts, restart or not.
        later[:, 0] = False
        if is_segment:
            return self.memory(x, state.reshape(rows, size), later)[0], None
        state = state.reshape(rows, time, size)
        following = torch.zeros_like(state) if stored is None else stored.reshape_as(state).clone()
        return run_with_restarts(self.memory, x, state, later, following)

    def _entries(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor, Tensor]:
        """Return the memory's inputs `[..., C]`, the state `[..., S]` and `is_init` `[..., 1]`."""
        entries = [tensordict.get(key, None) for key in self.in_keys]
        for key, entry in zip(self.in_keys, entries, strict=True):
            if entry is None:
                raise KeyError(f"the TensorDict has no entry {key!r}. {self._remedy(key)}")
        *inputs, state, is_init = entries
        x: Any = inputs[0]
        if self._names is not None:
            x = dict(zip(self._names, inputs, strict=True))
        return x if self.encoder is None else self.encoder(x), state, is_init

    def _remedy(self, key: NestedKey) -> str:
        if key == self.state_key:
            return (
                "Append module.make_tensordict_primer() to the environment, or pass "
                "auto_register_policy_transforms=True to the collector: without it the memory "
                "would start from nothing at every step. Segments have no next states: estimate "
                "values before to_segments."
            )
        if key == IS_INIT:
            return (
                "Append torchrl.envs.InitTracker() to the environment: without it the memory "
                "would run on from one episode into the next."
            )
        return "Put the module that writes it before this one, or name the entry that there is."

    def _check(
        self, state: Tensor, is_init: Tensor, lead: torch.Size, state_lead: torch.Size
    ) -> None:
        if is_init.shape not in (lead, (*lead, 1)) or is_init.dtype != torch.bool:
            raise ValueError(
                f"entry {IS_INIT!r} is {list(is_init.shape)} {is_init.dtype}; expected "
                f"{[*lead, 1]} torch.bool beside inputs {[*lead, 'C']}. Categories must be "
                "numbers, not one-hot vectors: GymWrapper(env, categorical_action_encoding=True)."
            )
        if state.shape != (*state_lead, self.memory.state_size):
            raise ValueError(
                f"entry {self.state_key!r} has shape {list(state.shape)}; expected "
                f"{[*state_lead, self.memory.state_size]}, a state beside inputs {[*lead, 'C']}. "
                "Add it by this module's own make_tensordict_primer(); give every memory of "
                "another size its own state_key."
            )


def _check_sequence(x: Tensor, lead: torch.Size) -> None:
    if not lead:
        raise ValueError(
            "the TensorDict has no batch dimension; expected [..., T] in recurrent mode. "
            "Use set_recurrent_mode(False) for single steps."
        )
    if not torch.compiler.is_compiling() and torch._C._functorch.is_batchedtensor(x):
        raise RuntimeError(
            "a memory cannot run inside vmap in recurrent mode. Pass deactivate_vmap=True to the "
            "value estimator (GAE) and to the loss (SACLoss)."
        )
