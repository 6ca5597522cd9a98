"""A critic that sees the hidden state: for training only, where the task tells it.

Also called asymmetric. What an agent cannot see makes most of the returns' variance: the noise it
happened to meet, the side the truth is on. A critic that knows it explains that variance away,
and the advantages are left with what the actions did. The policy sees none of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from doxastic.agents.hidden import HiddenScale


class PrivilegedCritic(nn.Module):
    """Values `V(b, z)` of what the agent remembers, b, and the task's hidden state z.

    Conditioned on both, the value is an unbiased baseline of the gradient; given the hidden
    state alone it is not, for the agent's next actions depend on what it remembers.

    Args:
        feature_size: Width F of the memory's features.
        names: Names of the hidden state's entries.
        hidden_size: Width of the two layers.

    Source:
        Baisero and Amato, "Unbiased asymmetric reinforcement learning under partial
        observability", 2022 (arXiv 2105.11674); Pinto et al., 2018, for the idea.
    """

    def __init__(self, feature_size: int, names: tuple[str, ...], hidden_size: int = 128) -> None:
        super().__init__()
        self.scale = HiddenScale(names)
        self.body = nn.Sequential(
            nn.Linear(feature_size + len(names), hidden_size),
            nn.Tanh(),
            nn.Linear(hidden_size, hidden_size),
            nn.Tanh(),
        )
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, memory_features: Tensor, hidden: Tensor) -> Tensor:
        """Return values `[B, T, 1]` in the units of the policy's value head.

        Args:
            memory_features: `[B, T, F]`; no gradient reaches the memory.
            hidden: Hidden states `[B, T, D]` as the task tells them.
        """
        read = torch.cat([memory_features.detach(), self.scale(hidden)], dim=-1)
        value: Tensor = self.head(self.body(read))
        return value

    def loss(self, memory_features: Tensor, hidden: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error to the targets `[B, T, 1]`."""
        return (self(memory_features, hidden) - target).square().mean()
