"""The contract every memory obeys."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

# float64 is for checking gradients and laws.
_STATE_DTYPES = (torch.float32, torch.float64)


class Memory(nn.Module, ABC):
    """A recurrent map from inputs to features whose whole past is one flat state.

    The same call serves acting (`T = 1`) and learning (`T > 1`). Four laws hold for every
    memory: a sequence equals its steps; one call equals two calls with the state carried;
    a reset equals a fresh start, and no gradient crosses it; the order in the batch is
    irrelevant.

    Attributes:
        input_size: Width `C` of the input vectors.
        feature_size: Width `F` of the features.
        state_size: Width `S` of the flat state.
    """

    input_size: int
    feature_size: int
    state_size: int

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> Tensor:
        """Return the state before anything was seen, zeros `[B, S]` in float32.

        Args:
            batch_size: Number of sequences `B`.
            device: Where to put it; by default beside the memory's parameters.
        """
        if device is None:
            device = next((p.device for p in self.parameters()), torch.device("cpu"))
        return torch.zeros(batch_size, self.state_size, device=device)

    @abstractmethod
    def forward(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features `[B, T, F]` and the state after the last step `[B, S]`.

        Args:
            x: Inputs `[B, T, C]`.
            state: State before the first step, `[B, S]` float32.
            reset: `[B, T]` bool; true at `t` clears the state before step `t` is consumed.
        """


def check_inputs(memory: Memory, x: Tensor, state: Tensor, reset: Tensor) -> None:
    """Raise `ValueError` unless the arguments of `Memory.forward` fit the contract."""
    shape = x.shape
    if len(shape) != 3 or shape[1] < 1 or shape[2] != memory.input_size:
        raise ValueError(
            f"x has shape {list(shape)}; expected [B, T, C] with T >= 1 and "
            f"C = {memory.input_size}. Give a single step as [B, 1, C]."
        )
    if state.shape != (shape[0], memory.state_size):
        raise ValueError(
            f"state has shape {list(state.shape)}; expected [B, S] = "
            f"[{shape[0]}, {memory.state_size}]. Start from memory.initial_state(B)."
        )
    if state.dtype not in _STATE_DTYPES:
        raise ValueError(
            f"state is {state.dtype}; expected torch.float32, whatever the memory's dtype is. "
            "Start from memory.initial_state(B)."
        )
    if reset.shape != shape[:2] or reset.dtype != torch.bool:
        raise ValueError(
            f"reset is {list(reset.shape)} {reset.dtype}; expected [B, T] = "
            f"{list(shape[:2])} torch.bool."
        )
