"""The recurrent core: a stack of RWKV-7 blocks whose whole past is one flat state."""

from __future__ import annotations

from torch import Tensor, nn

from doxastic.memory.base import Memory, check_inputs
from doxastic.memory.block import Block
from doxastic.memory.block_step import CoreStep, build_step, can_step
from doxastic.memory.linear import is_hooked
from doxastic.memory.state import StateLayout


class RWKV7Memory(Memory):
    """RWKV-7 blocks between an input projection and a final layer norm.

    The features h_t are the plain recurrent summary of everything seen since the last reset.

    Args:
        input_size: Width of the inputs; projected to `width` if it differs.
        width: Channels C, the width of the features.
        layers: Number of blocks.
        head_size: Width of a head.
        channel_ratio: Hidden width of the channel mix over `width`.
        low_rank: Rank of the time mix's low-rank maps.
        norm_eps: Of the time mix's group norm; None for the official one.

    Source:
        RWKV-LM, RWKV-v7/rwkv_v7_numpy.py; the input projection takes the embedding's place.
    """

    projection: nn.Module

    def __init__(
        self, input_size: int, width: int = 64, *,
        layers: int = 1, head_size: int = 16, channel_ratio: float = 2.0, low_rank: int = 8,
        norm_eps: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.input_size, self.feature_size = input_size, width
        self.projection = (
            nn.Identity() if input_size == width else nn.Linear(input_size, width, bias=False)
        )
        hidden = round(channel_ratio * width)
        blocks = [
            Block(
                width,
                head_size,
                hidden,
                layer=layer,
                layers=layers,
                low_rank=low_rank,
                norm_eps=norm_eps,
            )
            for layer in range(layers)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.ln_out = nn.LayerNorm(width)
        self.layout = StateLayout(
            {
                f"{layer}.{name}": shape
                for layer, block in enumerate(blocks)
                for name, shape in block.state_shapes().items()
            }
        )
        self._parts = tuple(blocks[0].state_shapes())
        self.state_size = self.layout.size
        self._step: CoreStep | None = build_step(self, blocks, self.ln_out, self.layout)

    def forward(
        self, x: Tensor, state: Tensor, reset: Tensor, write: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the features `[B, T, C]` and the state after the last step `[B, S]`.

        Args:
            x: Inputs `[B, T, C]`.
            state: State before the first step, `[B, S]`.
            reset: `[B, T]` bool.
            write: `[B, T, H]`, scales what every block replaces in its state; None for 1.
        """
        check_inputs(self, x, state, reset)
        stepped = self.step(x, state, reset) if write is None else None
        if stepped:
            return stepped
        x, v_first = self.projection(x), None
        parts = self.layout.split(state)
        new: dict[str, Tensor] = {}
        for layer, block in enumerate(self.blocks):
            own = {name: parts[f"{layer}.{name}"] for name in self._parts}
            x, own, v_first = block(x, own, reset, v_first, (), write)
            new.update({f"{layer}.{name}": own[name] for name in self._parts})
        return self.ln_out(x), self.layout.join(new).to(state.dtype)

    def step(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return what `forward` returns, from the compiled step, or None where it cannot serve.

        It serves a single step without gradient in float32 on the CPU. The state may be wider
        than the core's: the columns after it are passed over, in the new state undefined.
        """
        if self._step is None or x.shape[1] != 1 or not can_step(x, state):
            return None
        projection = self.projection
        if type(projection) is not nn.Identity or is_hooked(projection):
            x = projection(x)
        return self._step(x, state, reset)
