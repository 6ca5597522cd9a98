"""A memory that keeps a belief: the recurrent core and a readout of mean and variance."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from doxastic.memory.base import Memory, check_inputs
from doxastic.memory.core import RWKV7Memory
from doxastic.memory.readouts import (
    DECAY_BIAS,
    Belief,
    LearnedReadout,
    MomentsReadout,
    PrecisionReadout,
    Readout,
)
from doxastic.memory.state import StateLayout
from doxastic.memory.write_gate import WriteGate

ReadoutName = Literal["moments", "precision", "learned", "none"]

_NO_BELIEF = (
    "this memory has readout 'none' and keeps no belief; build it with readout='moments', "
    "'precision' or 'learned'."
)


class BeliefMemory(Memory):
    """The RWKV-7 core with a belief beside its summary.

    Its features are h_t and, unless the readout is `none`, the features of the belief: mean, log
    variance, log evidence and a bounded mean-to-deviation ratio.

    Args:
        input_size: Width of the inputs.
        width: Channels of the core.
        readout: `moments`, `precision`, `learned`, or `none` for the plain summary h_t.
        belief_size: Belief channels of `moments` and `learned`; `precision` has one a head.
        layers: Blocks of the core.
        head_size: Width of a head.
        channel_ratio: Hidden width of the channel mix over `width`.
        low_rank: Rank of the core's low-rank maps.
        norm_eps: Of the time mix's group norm; None for the official one.
        write_gate: Whether a belief about the inputs scales what the core writes, see `WriteGate`.
        decay: Range of the biases of the channels' decays, see `MomentsReadout`.
        surprise: Whether `moments` has a fifth feature, see `MomentsReadout`.
    """

    def __init__(
        self, input_size: int, width: int = 64, *,
        readout: ReadoutName = "moments", belief_size: int = 16, layers: int = 1,
        head_size: int = 16, channel_ratio: float = 2.0, low_rank: int = 8,
        norm_eps: float | None = None, write_gate: bool = False,
        decay: tuple[float, float] = DECAY_BIAS, surprise: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.core = RWKV7Memory(
            input_size, width,
            layers=layers, head_size=head_size, channel_ratio=channel_ratio, low_rank=low_rank,
            norm_eps=norm_eps,
        )  # fmt: skip
        self.readout = _build_readout(
            readout, width, belief_size, width // head_size, decay, surprise
        )
        self.gate = WriteGate(input_size, belief_size, width // head_size) if write_gate else None
        size = self.readout.feature_size if self.readout else 0
        self.input_size, self.feature_size = input_size, width + size
        shapes = dict(self.core.layout.shapes)
        if self.readout and self.readout.channels:
            shapes["readout"] = (3, self.readout.channels)
        if self.gate:
            shapes["gate"] = (3, belief_size)
        self.layout = StateLayout(shapes)
        self.state_size = self.layout.size

    def forward(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features `[B, T, F]` and the state after the last step `[B, S]`."""
        check_inputs(self, x, state, reset)
        if self.gate is None:
            own = self.core
            stepped = own.step(x, state, reset)
            if stepped:
                return self._with_features(*stepped, state, reset, own.state_size)
        h, core, moments, gate = self._remember(x, state, reset)
        if self.readout is None:
            return h, _joined(state.dtype, core, gate)
        features, moments = self.readout.features(h, moments, reset)
        return torch.cat([h, features], dim=-1), _joined(state.dtype, core, moments, gate)

    def belief(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Belief, Tensor]:
        """Return the belief after each step, each part `[B, T, M]`, and the last state.

        Raises:
            ValueError: If the readout is `none`.
        """
        if self.readout is None:
            raise ValueError(_NO_BELIEF)
        check_inputs(self, x, state, reset)
        h, core, moments, gate = self._remember(x, state, reset)
        belief, moments = self.readout(h, moments, reset)
        return belief, _joined(state.dtype, core, moments, gate)

    def belief_in(self, features: Tensor) -> Belief:
        """Return the belief that the memory's features `[..., F]` show, each part `[..., M]`.

        What a loss in training reads without running the memory a second time.

        Raises:
            ValueError: If the readout is `none`.
        """
        if self.readout is None:
            raise ValueError(_NO_BELIEF)
        start = self.core.feature_size
        size = self.readout.size
        mean, deviation, evidence = features[..., start : start + 3 * size].chunk(3, dim=-1)
        return Belief(mean, (2.0 * deviation).exp(), (2.0 * evidence).expm1())

    def _with_features(
        self, h: Tensor, new: Tensor, state: Tensor, reset: Tensor, start: int
    ) -> tuple[Tensor, Tensor]:
        """Return the features of one step; before `start`, `new` holds the core's new state."""
        readout = self.readout
        if readout is None:
            return h, new
        features = readout.step(h, state[:, start:], reset, new[:, start:])
        return torch.cat([h, features], dim=-1), new

    def _remember(
        self, x: Tensor, state: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Return h, the core's new state, the readout's old state, and the gate's new one."""
        parts = self.layout.split(state)
        write = gate = None
        if self.gate is not None:
            write, gate = self.gate(x, parts["gate"], reset)
        h, core = self.core(x, state[:, : self.core.state_size], reset, write)
        return h, core, parts.get("readout"), gate


def _joined(dtype: torch.dtype, core: Tensor, *parts: Tensor | None) -> Tensor:
    """Return the parts of the state `[B, S]` in this dtype, whichever they were computed in."""
    kept = [part.flatten(1) for part in parts if part is not None]
    return torch.cat([core, *kept], dim=1).to(dtype) if kept else core


def _build_readout(
    name: str, width: int, size: int, heads: int, decay: tuple[float, float], surprise: bool
) -> Readout | None:
    if name == "none":
        return None
    if name == "moments":
        return MomentsReadout(width, size, decay, surprise)
    if name == "precision":
        return PrecisionReadout(width, heads, decay)
    if name == "learned":
        return LearnedReadout(width, size)
    raise ValueError(f"readout is {name!r}; expected 'moments', 'precision', 'learned' or 'none'.")
