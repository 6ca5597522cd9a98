"""A memory in the place of sb3-contrib's LSTM: its attributes, its pairs of states."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from doxastic.agents.sb3.kept import KeptStates, Pair
from doxastic.agents.sb3.segments import Segments
from doxastic.memory.base import Memory


class RecurrentMemory(nn.Module):
    """Any memory, seen by `RecurrentPPO` as an LSTM of one layer.

    States come as pairs of tensors `[1, B, H]`, zeros at first: the flat state `[B, S]` cut in
    halves, as `predict` gives and takes them; or handles, pairs `[1, B, 1]`, of states that are
    kept here. The algorithm makes its first pair after `hidden_size` and so carries handles:
    it stores every pair of every step.

    Attributes:
        input_size: Width `C` of the inputs.
        feature_size: Width `F` of the features.
        num_layers: 1.
        hidden_size: Width of a handle, 1.
        half_size: Half the width of the state, `H = S / 2` rounded up, but never that of a handle.
        kept: The states that handles stand for.
    """

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory
        self.input_size, self.feature_size = memory.input_size, memory.feature_size
        self.num_layers = self.hidden_size = 1
        self.half_size = max(2, math.ceil(memory.state_size / 2))
        self.kept = KeptStates()

    def forward(self, x: Tensor, states: Pair, episode_starts: Tensor) -> tuple[Tensor, Pair]:
        """Return the features `[B * T, F]` and the states after the last step, in halves.

        The whole batch runs in one call of the memory.

        Args:
            x: Inputs of B sequences one after the other, `[B * T, C]`.
            states: The pair before the first step.
            episode_starts: `[B * T]`, 1.0 where an episode starts: the state is cleared before
                this step is consumed.

        Raises:
            ValueError: If the states are those of another memory, or are not kept.
        """
        features, state = self._run(x, self.read(states), episode_starts)
        return features, self._halves(state)

    def step(self, x: Tensor, states: Pair, episode_starts: Tensor) -> tuple[Tensor, Pair]:
        """Return the features `[B, F]` of a rollout's step and the states after it.

        The states are returned as they came: where `states` are handles, the new ones are kept.
        """
        features, state = self._run(x, self.read(states), episode_starts)
        return features, self.kept.keep(state, states) if is_handle(states) else self._halves(state)

    def sequences(self, x: Tensor, states: Pair | Segments, episode_starts: Tensor) -> Tensor:
        """Return the features `[M, F]` of a minibatch.

        Args:
            x: Inputs `[M, C]`.
            states: Where pieces start; or the pair that sequences of one length start from.
            episode_starts: `[M]`, 1.0 where an episode starts.
        """
        if not isinstance(states, Segments):
            return self._run(x, self.read(states), episode_starts)[0]
        starts, place = episode_starts > 0.5, states.position
        batch, size = len(states.state), self.memory.state_size
        padded = batch * states.longest
        if padded > len(x):
            x = x.new_zeros(padded, self.input_size).index_copy(0, place, x)
            starts = starts.new_zeros(padded).index_copy(0, place, starts)
        features, _ = self.memory(
            x.view(batch, states.longest, -1), states.state[:, :size], starts.view(batch, -1)
        )
        features = features.flatten(0, 1)
        return features.index_select(0, place) if padded > len(place) else features

    def end_rollout(self, states: Pair | Segments) -> None:
        """Forget the kept states when the next rollout begins, see `KeptStates`.

        Args:
            states: Where a minibatch of this rollout starts.
        """
        has_handles = not isinstance(states, Segments) and is_handle(states)
        self.kept.end_rollout(states[0] if has_handles else None)

    def read(self, states: Pair) -> Tensor:
        """Return the flat state `[B, S]` of a pair."""
        first, second = states
        if first.ndim != 3 or first.shape[0] != 1 or first.shape[2] not in (1, self.half_size):
            raise ValueError(
                f"the memory's states have shape {list(first.shape)}; expected [1, B, H] with H = "
                f"{self.half_size}. Pass what this policy returned, or None to start anew."
            )
        if is_handle(states):
            return self.kept.find(states, self.memory.initial_state)
        return torch.cat((first[0], second[0]), 1)[:, : self.memory.state_size]

    def _run(self, x: Tensor, state: Tensor, episode_starts: Tensor) -> tuple[Tensor, Tensor]:
        batch = len(state)
        x = x.reshape(batch, -1, self.input_size)
        starts = (episode_starts > 0.5).reshape(batch, -1)
        features, state = self.memory(x, state, starts)
        return features.flatten(0, 1), state

    def _halves(self, state: Tensor) -> Pair:
        missing = 2 * self.half_size - self.memory.state_size
        state = F.pad(state, (0, missing)) if missing else state
        return state.unsqueeze(0).split(self.half_size, 2)


def is_handle(states: Pair) -> bool:
    """Whether a pair of states are handles of states that a memory keeps."""
    return states[0].shape[2] == 1
