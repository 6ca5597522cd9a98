"""One RWKV-7 block: time mix and channel mix, each behind a layer norm and a residual."""

from __future__ import annotations

from torch import Tensor, nn

from doxastic.memory.channel_mix import ChannelMix
from doxastic.memory.time_mix import TimeMix


class Block(nn.Module):
    """`x <- x + TimeMix(LN1 x)`, then `x <- x + ChannelMix(LN2 x)`.

    Args:
        width: Channels C.
        head_size: Width of a head.
        hidden_size: Hidden width of the channel mix.
        layer: Index of the layer.
        layers: Number of layers.
        low_rank: Rank of the time mix's low-rank maps.
        norm_eps: Of the time mix's group norm; None for the official one.
    """

    def __init__(
        self, width: int, head_size: int, hidden_size: int, *,
        layer: int = 0, layers: int = 1, low_rank: int = 8, norm_eps: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.att = TimeMix(
            width, head_size, layer=layer, layers=layers, low_rank=low_rank, norm_eps=norm_eps
        )
        self.ffn = ChannelMix(width, hidden_size, layer=layer, layers=layers)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the parts of this block's state and their shapes without the batch."""
        width, size = self.ln1.normalized_shape[0], self.att.head_size
        return {
            "time_shift": (width,),
            "wkv": (self.att.heads, size, size),
            "channel_shift": (width,),
        }

    def forward(
        self, x: Tensor, state: dict[str, Tensor], reset: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the output `[B, T, C]`, the new state and `v_first`.

        Args:
            x: `[B, T, C]`.
            state: The parts named by `state_shapes`, each with a leading batch dimension.
            reset: `[B, T]` bool.
            v_first: Values of the first layer, None in the first layer.
        """
        time_input = self.ln1(x)
        mixed, wkv, v_first = self.att(
            time_input, state["time_shift"], state["wkv"], reset, v_first
        )
        x = x + mixed
        channel_input = self.ln2(x)
        x = x + self.ffn(channel_input, state["channel_shift"], reset)
        new = {
            "time_shift": time_input[:, -1],
            "wkv": wkv,
            "channel_shift": channel_input[:, -1],
        }
        return x, new, v_first
