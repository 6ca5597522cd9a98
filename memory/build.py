"""Memories by name: the configuration and what it builds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from doxastic.memory.base import Memory
from doxastic.memory.baselines import GRUMemory, LSTMMemory, NoMemory, WindowMemory
from doxastic.memory.belief import BeliefMemory, ReadoutName
from doxastic.memory.readouts import DECAY_BIAS

MemoryKind = Literal["belief", "gru", "lstm", "window", "none"]


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Which memory, and how large."""

    kind: MemoryKind = "belief"
    """The RWKV-7 core with a belief readout, or a baseline."""

    readout: ReadoutName = "moments"
    """How the core's belief is read; `none` is the plain summary h_t. Only for `belief`."""

    width: int = 64
    """Channels of the RWKV-7 core, or hidden size of a baseline."""

    layers: int = 1
    """Blocks of the RWKV-7 core, or layers of the GRU or LSTM."""

    head_size: int = 16
    """Width of a head of the core; its state has width times head_size entries."""

    channel_ratio: float = 2.0
    """Hidden width of the core's channel mix over its width."""

    low_rank: int = 8
    """Rank of the core's low-rank maps."""

    norm_eps: float | None = 1e4
    """Added to the variance by the group norm of the core's heads; None for RWKV-7's own, tiny
    one. Far above the variance it only centres: the size of what a head has gathered, which
    says how much evidence there is, reaches the policy."""

    belief_size: int = 16
    """Belief channels M of the moments and the learned readout."""

    write_gate: bool = False
    """Whether a belief about the inputs, of `belief_size` channels, scales what the core writes;
    only for `belief`."""

    belief_decay: tuple[float, float] = DECAY_BIAS
    """First and last of the channels' biases of the decay of the moments and the precision readout;
    at -7 evidence halves in 1,250 steps, at -1 in 4."""

    surprise: bool = False
    """Whether the features tell how unexpected the last values were; only for `moments`."""

    window: int = 16
    """Steps that the window memory sees."""

    def __post_init__(self) -> None:
        """Check the names and the sizes."""
        for name, kind in (("kind", MemoryKind), ("readout", ReadoutName)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"memory.{name} is {getattr(self, name)!r}; expected one of "
                    f"{', '.join(get_args(kind))}."
                )
        for name in ("width", "layers", "head_size", "low_rank", "belief_size", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"memory.{name} is {getattr(self, name)}; expected at least 1.")
        if self.kind == "window" and self.window < 2:
            raise ValueError(
                f"memory.window is {self.window}; expected at least 2. To see one input only, set "
                "memory.kind to none."
            )
        if self.norm_eps is not None and not 0 < self.norm_eps < math.inf:
            raise ValueError(
                f"memory.norm_eps is {self.norm_eps}; expected a finite number above 0, or null."
            )
        if not 0.5 < self.channel_ratio * self.width < math.inf:
            raise ValueError(
                f"memory.channel_ratio is {self.channel_ratio}; expected a finite number, at least "
                f"1 / memory.width = {1 / self.width:.3g}, for one hidden channel."
            )
        if not -math.inf < self.belief_decay[0] <= self.belief_decay[1] < math.inf:
            raise ValueError(
                f"memory.belief_decay is {list(self.belief_decay)}; expected two finite numbers, "
                "the smaller first."
            )
        if self.surprise and self.kind == "belief" and self.readout != "moments":
            raise ValueError(
                f"memory.surprise is true but memory.readout is {self.readout!r}; only 'moments' "
                "expects a value, set it to false."
            )
        if self.kind == "belief" and self.width % self.head_size:
            raise ValueError(
                f"memory.width is {self.width}; expected a multiple of memory.head_size = "
                f"{self.head_size}."
            )


def build_memory(config: MemoryConfig, input_size: int) -> Memory:
    """Return the memory that the configuration describes, for inputs `[B, T, input_size]`."""
    if config.kind == "gru":
        return GRUMemory(input_size, config.width, config.layers)
    if config.kind == "lstm":
        return LSTMMemory(input_size, config.width, config.layers)
    if config.kind == "window":
        return WindowMemory(input_size, config.width, config.window)
    if config.kind == "none":
        return NoMemory(input_size, config.width)
    return BeliefMemory(
        input_size, config.width,
        readout=config.readout, belief_size=config.belief_size, layers=config.layers,
        head_size=config.head_size, channel_ratio=config.channel_ratio, low_rank=config.low_rank,
        norm_eps=config.norm_eps, write_gate=config.write_gate, decay=config.belief_decay,
        surprise=config.surprise,
    )  # fmt: skip
