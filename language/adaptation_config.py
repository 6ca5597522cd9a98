"""The settings of low-rank adaptation, as data; nothing heavy is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Which projections get a low-rank update, and of what size."""

    rank: int = 16
    """Rank R of each update."""

    alpha: float = 32.0
    """An update is scaled by alpha / rank, so that the learning rate need not follow the rank."""

    dropout: float = 0.0
    """Part of an update's inputs that is left out in training; it costs the fused layers."""

    targets: tuple[str, ...] = ("blocks.*.att.*", "blocks.*.ffn.*")
    """Patterns of the projections, as in a shell: blocks.*.att.key, blocks.3.*, head, ..."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for values that no update can have."""
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; expected 1 or more")
        if not 0.0 < self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha}; expected more than 0")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; expected 0 or more and less than 1")
        if not self.targets:
            raise ValueError("targets is empty; expected at least one pattern")
