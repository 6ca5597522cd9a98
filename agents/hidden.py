"""What a task hides, on a scale that networks can read and predict."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from doxastic.agents.normalization import RunningMeanStd

# Noise levels differ by factors, and may be 0.
_NOISE_OFFSET = 0.1


class HiddenScale(nn.Module):
    """Scales hidden states `[..., D]` to mean 0 and variance 1, noise levels as log(level + 0.1).

    Signs and other few-valued entries enter as the numbers they are.

    Args:
        names: Of the entries; those that begin with "noise" are levels.
    """

    is_noise: Tensor

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.statistics = RunningMeanStd((len(names),))
        is_noise = torch.tensor([name.startswith("noise") for name in names])
        self.register_buffer("is_noise", is_noise, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the hidden states on the scale of all that was seen."""
        scaled: Tensor = self.statistics(self._levels(hidden))
        return scaled

    def update(self, hidden: Tensor) -> None:
        """Take hidden states into the statistics."""
        self.statistics.update(self._levels(hidden))

    def _levels(self, hidden: Tensor) -> Tensor:
        return torch.where(self.is_noise, (hidden.clamp_min(0.0) + _NOISE_OFFSET).log(), hidden)
