"""DeepEmbed: channel mixes that are steered by tables of the token, RWKV-7a's and RWKV-8's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from doxastic.kernels.channel_mix import squared_relu
from doxastic.kernels.token_shift import shift_mix
from doxastic.memory.channel_mix import ChannelMix
from doxastic.memory.initialization import orthogonal_

# Rows and columns of the matrix of a token, in every published checkpoint.
SIDE = 32


class MatrixChannelMix(ChannelMix):
    """The channel mix of RWKV-7a: a token's own small matrix gates the hidden layer.

    With e the token's embedding after ln0 and x the input of the layer, unshifted:

        E = reshape(s_emb[token] + s_emb_x e)                 [32, 32]
        hidden = relu(W_k x_k)^2 (s0 + ((x s1) E) s2)
        out = W_v hidden

    Names and equations are those of RWKV-LM, RWKV-v7/rwkv_v7a_demo.py. No published file says how
    the tables start. Here the gate starts at one and everything learns: s0 is 1; s2 is 0; s1 and
    s_emb_x are orthogonal of gain 0.1; s_emb is 0.

    Args:
        vocab_size: Number of tokens V.
        width: Channels C.
        hidden_size: Width of the hidden layer.
        layer: Index of the layer.
        layers: Number of layers.
    """

    def __init__(
        self, vocab_size: int, width: int, hidden_size: int, *, layer: int, layers: int
    ) -> None:
        super().__init__(width, hidden_size, layer=layer, layers=layers)
        self.s_emb = nn.Embedding(vocab_size, SIDE * SIDE)
        self.s_emb_x = nn.Linear(width, SIDE * SIDE, bias=False)
        self.s0 = nn.Parameter(torch.ones(hidden_size))
        self.s1 = nn.Parameter(orthogonal_(torch.empty(width, SIDE), 0.1))
        self.s2 = nn.Parameter(torch.zeros(SIDE, hidden_size))
        nn.init.zeros_(self.s_emb.weight)
        orthogonal_(self.s_emb_x.weight.data, 0.1)

    def forward(
        self, x: Tensor, shift: Tensor, reset: Tensor,
        tokens: Tensor | None = None, embedded: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return `[B, T, C]`; `tokens` are `[B, T]`, `embedded` is their embedding after ln0."""
        (mixed,) = shift_mix(x, shift, reset, self.x_k.unsqueeze(0))
        matrices = (self.s_emb(tokens) + self.s_emb_x(embedded)).unflatten(-1, (SIDE, SIDE))
        inner = (x @ self.s1).unsqueeze(-2) @ matrices
        gate = inner.squeeze(-2) @ self.s2 + self.s0
        output: Tensor = self.value(squared_relu(self.key(mixed)) * gate)
        return output


class VectorChannelMix(ChannelMix):
    """The channel mix of RWKV-8 rc00: its output is scaled by a vector of the token.

    `out = (W_v relu(W_k x_k)^2) enn[token]`, with enn `[V, C]` starting at one. Names and
    equations are those of RWKV-LM, RWKV-v7/rwkv_v8_rc00_demo.py.

    Args:
        vocab_size: Number of tokens V.
        width: Channels C.
        hidden_size: Width of the hidden layer.
        layer: Index of the layer.
        layers: Number of layers.
    """

    def __init__(
        self, vocab_size: int, width: int, hidden_size: int, *, layer: int, layers: int
    ) -> None:
        super().__init__(width, hidden_size, layer=layer, layers=layers)
        self.enn = nn.Embedding(vocab_size, width)
        nn.init.ones_(self.enn.weight)

    def forward(
        self, x: Tensor, shift: Tensor, reset: Tensor,
        tokens: Tensor | None = None, embedded: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return `[B, T, C]`; `tokens` are `[B, T]`, `embedded` is not read."""
        output: Tensor = super().forward(x, shift, reset) * self.enn(tokens)
        return output


CHANNEL_MIXES = {"matrix": MatrixChannelMix, "vector": VectorChannelMix}
