"""The channel mix of RWKV-7: token shift and a squared-ReLU network."""

from __future__ import annotations

from torch import Tensor, nn

from doxastic.kernels.channel_mix import squared_relu
from doxastic.kernels.checks import can_fuse
from doxastic.kernels.token_shift import shift_mix
from doxastic.memory import initialization
from doxastic.memory.linear import are_plain


class ChannelMix(nn.Module):
    """Mixes channels: `W_v relu(W_k (x + (x_{t-1} - x) x_k))^2`, without a gate.

    Parameter names are those of RWKV-LM's checkpoints (RWKV-v7/train_temp/src/model.py).

    Args:
        width: Channels C.
        hidden_size: Width of the hidden layer; 4C officially.
        layer: Index of the layer.
        layers: Number of layers.
    """

    def __init__(self, width: int, hidden_size: int, *, layer: int = 0, layers: int = 1) -> None:
        super().__init__()
        ratio = 1.0 - layer / layers
        self.x_k = nn.Parameter(initialization.shift_ratio(width, ratio**4))
        self.key = nn.Linear(width, hidden_size, bias=False)
        self.value = nn.Linear(hidden_size, width, bias=False)
        nn.init.orthogonal_(self.key.weight)
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Tensor, shift: Tensor, reset: Tensor) -> Tensor:
        """Return `[B, T, C]` from x `[B, T, C]`, the input before it `[B, C]` and resets."""
        if can_fuse(x.shape[-1], x, shift) and are_plain(self.key, self.value):
            from doxastic.kernels.cpu.layers import channel_mix_layer, fits_channel_mix

            given = (x, shift, reset, self.x_k, self.key.weight, self.value.weight)
            if fits_channel_mix(*given):
                return channel_mix_layer(*given)
        (mixed,) = shift_mix(x, shift, reset, self.x_k.unsqueeze(0))
        output: Tensor = self.value(squared_relu(self.key(mixed)))
        return output
