"""A memory in the place of sb3-contrib's LSTM: its attributes, its pairs of states."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from doxastic.agents.sb3.segments import Segments
from doxastic.memory.base import Memory


class RecurrentMemory(nn.Module):
    """Any memory, seen by `RecurrentPPO` as an LSTM of one layer.

    The algorithm carries pairs of states `[1, B, H]`, starts them at zero, and stores both. The
    flat state `[B, S]` and a count of the steps since the training began are cut in halves: in a
    pair of its whole width half of what is stored would be zeros.

    Attributes:
        input_size: Width `C` of the inputs.
        feature_size: Width `F` of the features.
        num_layers: 1.
        hidden_size: Half the width of state and count, `H = (S + 1) / 2` rounded up.
    """

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory
        self.input_size, self.feature_size = memory.input_size, memory.feature_size
        self.num_layers = 1
        self.hidden_size = math.ceil((memory.state_size + 1) / 2)

    def forward(
        self, x: Tensor, states: tuple[Tensor, ...], episode_starts: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the features `[B * T, F]` and the pair of states after the last step.

        The whole batch runs in one call of the memory.

        Args:
            x: Inputs of B sequences one after the other, `[B * T, C]`.
            states: The pair before the first step, each `[1, B, H]`.
            episode_starts: `[B * T]`, 1.0 where an episode starts: the state is cleared before
                this step is consumed.

        Raises:
            ValueError: If the states are those of another memory.
        """
        joined = self.joined(states)
        batch, size = len(joined), self.memory.state_size
        x = x.reshape(batch, -1, self.input_size)
        starts = (episode_starts > 0.5).reshape(batch, -1)
        features, state = self.memory(x, joined[:, :size], starts)
        count = joined[:, size:] + x.shape[1]
        first, second = torch.cat((state, count), 1).unsqueeze(0).split(self.hidden_size, 2)
        return features.flatten(0, 1), (first, second)

    def sequences(
        self, x: Tensor, states: tuple[Tensor, ...] | Segments, episode_starts: Tensor
    ) -> Tensor:
        """Return the features `[M, F]` of a minibatch.

        Args:
            x: Inputs `[M, C]`.
            states: Where pieces start; or the pair that sequences of one length start from.
            episode_starts: `[M]`, 1.0 where an episode starts.
        """
        if not isinstance(states, Segments):
            return self(x, states, episode_starts)[0]
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

    def joined(self, states: tuple[Tensor, ...]) -> Tensor:
        """Return state and count of a pair, `[B, 2 H]`."""
        first, second = states
        if first.ndim != 3 or first.shape[::2] != (1, self.hidden_size):
            raise ValueError(
                f"the memory's states have shape {list(first.shape)}; expected [1, B, H] with H = "
                f"{self.hidden_size}. Pass what this policy returned, or None to start anew."
            )
        return torch.cat((first[0], second[0]), 1)
