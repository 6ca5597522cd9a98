"""One RWKV-7 block: time mix and channel mix, each behind a layer norm and a residual."""

from __future__ import annotations

from torch import Tensor, nn

from doxastic.kernels.checks import can_fuse
from doxastic.memory.channel_mix import ChannelMix
from doxastic.memory.linear import are_plain, is_hooked
from doxastic.memory.time_mix import LowRanks, TimeMix


class Block(nn.Module):
    """`x <- x + TimeMix(LN1 x)`, then `x <- x + ChannelMix(LN2 x)`.

    Args:
        width: Channels C.
        head_size: Width of a head.
        hidden_size: Hidden width of the channel mix.
        layer: Index of the layer.
        layers: Number of layers.
        low_rank: Rank of the time mix's low-rank maps, or one for each of them.
        norm_eps: Of the time mix's group norm; None for the official one.
        double_rate: See `TimeMix`.
        official: See `TimeMix`.
        layer_norm_eps: Of the layer norms.
        opens: Whether a layer norm `ln0` of the block's input comes before everything else, the
            residual included; the first block of a language model has it.
        channel_mix: What takes the place of `ChannelMix`; its `forward` is given `context` too.
    """

    ffn: ChannelMix

    def __init__(
        self, width: int, head_size: int, hidden_size: int, *,
        layer: int = 0, layers: int = 1, low_rank: int | LowRanks = 8,
        norm_eps: float | None = None, double_rate: bool = False, official: bool = False,
        layer_norm_eps: float = 1e-5, opens: bool = False, channel_mix: ChannelMix | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.ln0 = nn.LayerNorm(width, layer_norm_eps) if opens else None
        self.ln1, self.ln2 = (nn.LayerNorm(width, layer_norm_eps) for _ in range(2))
        self.att = TimeMix(
            width, head_size, layer=layer, layers=layers, low_rank=low_rank, norm_eps=norm_eps,
            double_rate=double_rate, official=official,
        )  # fmt: skip
        self.ffn = channel_mix or ChannelMix(width, hidden_size, layer=layer, layers=layers)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the parts of this block's state and their shapes without the batch."""
        width, size = self.ln1.normalized_shape[0], self.att.head_size
        return {
            "time_shift": (width,),
            "wkv": (self.att.heads, size, size),
            "channel_shift": (width,),
        }

    def forward(
        self, x: Tensor, state: dict[str, Tensor], reset: Tensor, v_first: Tensor | None,
        context: tuple[Tensor, ...] = (), write: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:  # fmt: skip
        """Return the output `[B, T, C]`, the new state and `v_first`.

        Args:
            x: `[B, T, C]`.
            state: The parts named by `state_shapes`, each with a leading batch dimension.
            reset: `[B, T]` bool.
            v_first: Values of the first layer, None in the first layer.
            context: What a `channel_mix` of another kind reads besides.
            write: `[B, T, H]`, scales what the time mix replaces in its state; None for 1.
        """
        if self.ln0 is not None:
            x = self.ln0(x)
        if write is None and not context:
            fused = self._fused(x, state, reset, v_first)
            if fused is not None:
                return fused
        time_input = self.ln1(x)
        mixed, wkv, v_first = self.att(
            time_input, state["time_shift"], state["wkv"], reset, v_first, write
        )
        x = x + mixed
        channel_input = self.ln2(x)
        x = x + self.ffn(channel_input, state["channel_shift"], reset, *context)
        new = {
            "time_shift": time_input[:, -1],
            "wkv": wkv,
            "channel_shift": channel_input[:, -1],
        }
        return x, new, v_first

    def _fused(
        self, x: Tensor, state: dict[str, Tensor], reset: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor], Tensor] | None:
        """Return what `forward` returns, as one operation: float32 on the CPU, small widths.

        None if an argument, a parameter or a layer is of another kind: the layers say what is
        wrong.
        """
        ln1, att, ln2, ffn = self.ln1, self.att, self.ln2, self.ffn
        if not (
            type(ln1) is nn.LayerNorm is type(ln2)
            and type(att) is TimeMix
            and type(ffn) is ChannelMix
            and att.is_plain
            and can_fuse(att.head_size, x)
            and are_plain(*att.projections, ffn.key, ffn.value)
            and not any(map(is_hooked, (ln1, att, ln2, ffn)))
        ):
            return None
        from doxastic.kernels.cpu.block import block, fits_block

        own = (state["time_shift"], state["wkv"], state["channel_shift"])
        time_mix, residual = att.parameters_of(v_first)
        inputs, eps = (x, *own, reset, v_first), (ln1.eps, att.ln_x.eps, ln2.eps)
        parameters = (
            ln1.weight, ln1.bias, *time_mix, ln2.weight, ln2.bias,
            ffn.x_k, ffn.key.weight, ffn.value.weight, *residual,
        )  # fmt: skip
        if not fits_block(*inputs, eps, *parameters):
            return None
        x, time_shift, wkv, channel_shift, value = block(*inputs, eps, *parameters)
        new = {"time_shift": time_shift, "wkv": wkv, "channel_shift": channel_shift}
        return x, new, value if v_first is None else v_first
