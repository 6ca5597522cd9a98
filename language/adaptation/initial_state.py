"""State tuning: the state that documents begin with is learnt, and nothing else."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from doxastic.language.model import LanguageModel
from doxastic.language.state_files import save_state
from doxastic.memory.state import CoreState

_SHIFTS = ("time_shift", "channel_shift")


class InitialState(nn.Module):
    """From a number of rows to the state that each begins with: parameters, zero at first.

    The parameters are float32, whatever the model is in. A row must begin with it: a reset inside
    a row clears to zeros, so documents are trained one a row (`DocumentRows`). The learning rate
    is far above that of weights, 0.01 to 1: a state's entries are of the order of one, and its
    gradients small.

    Attributes:
        wkv: The matrix states `[L, H, V, K]`.
        shifts: What the token shifts of time and channel mix see before the first token,
            `[L, 2, C]`; None for zeros.

    Args:
        model: Whose state it is. It is neither changed nor frozen.
        shifts: Whether the token shifts' parts learn too.

    Source: RWKV-PEFT, rwkvt/rwkv7/att.py, where the parameter is called time_state.
    """

    shifts: nn.Parameter | None

    def __init__(self, model: LanguageModel, *, shifts: bool = False) -> None:
        super().__init__()
        config, device = model.config, model.emb.weight.device
        self.layout = model.layout
        shape = config.layers, config.heads, config.head_size, config.head_size
        self.wkv = nn.Parameter(torch.zeros(shape, device=device))
        given = torch.zeros(config.layers, len(_SHIFTS), config.width, device=device)
        self.register_parameter("shifts", nn.Parameter(given) if shifts else None)

    def forward(self, batch_size: int) -> CoreState:
        """Return the state for so many rows; gradients of all of them add up."""
        unlearnt = self.wkv.new_zeros(1)
        parts = {}
        for name, shape in self.layout.parts:
            layer, _, part = name.partition(".")
            if part == "wkv":
                parts[name] = self.wkv[int(layer)][None]
            elif self.shifts is None:
                parts[name] = unlearnt.expand(1, *shape)
            else:
                parts[name] = self.shifts[int(layer), _SHIFTS.index(part)][None]
        return CoreState(self.layout, self.layout.join(parts).expand(batch_size, -1))

    def save(self, path: str | Path, model: LanguageModel) -> None:
        """Write one row as a file of states, which generation and evaluation start from.

        Args:
            path: The file.
            model: The base it was tuned for; the file refuses any other.
        """
        with torch.no_grad():
            save_state(path, self(1), model)

    @torch.no_grad()
    def load(self, state: CoreState) -> None:
        """Go on from a state of one row, such as `load_state` reads; without `shifts` of zeros.

        Raises:
            ValueError: The state is another model's, or has parts that this one does not learn.
        """
        if state.layout != self.layout or state.batch_size != 1:
            raise ValueError(
                f"state has {state.batch_size} rows and the parts {dict(state.layout.shapes)}; "
                f"expected one row of {dict(self.layout.shapes)}."
            )
        for name, value in self.layout.split(state.flat).items():
            layer, _, part = name.partition(".")
            if part == "wkv":
                self.wkv[int(layer)] = value[0]
            elif self.shifts is not None:
                self.shifts[int(layer), _SHIFTS.index(part)] = value[0]
            elif value.any():
                raise ValueError(
                    f"part {name!r} of the state is not zero; expected a state that was tuned "
                    "without shifts. Make it with shifts=True."
                )
