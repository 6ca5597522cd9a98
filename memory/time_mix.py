"""The time mix of RWKV-7: token shift, projections, the WKV-7 recurrence, group norm, gate."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from doxastic.kernels.checks import can_fuse
from doxastic.kernels.time_mix import time_mix
from doxastic.kernels.token_shift import shift_mix
from doxastic.memory import initialization
from doxastic.memory.linear import are_plain


class LowRanks(NamedTuple):
    """The ranks of the time mix's four low-rank maps."""

    decay: int
    """Of w1 and w2."""

    rate: int
    """Of a1 and a2."""

    value: int
    """Of v1 and v2, which the first layer has not."""

    gate: int
    """Of g1 and g2."""


class TimeMix(nn.Module):
    """Mixes information over time through a matrix state per head.

    With x_c the token-shifted input of projection c, per head:

        r = W_r x_r,  k = W_k x_k,  v = W_v x_v,  g = sigmoid(x_g g1) g2
        log w = -e^(-1/2) sigmoid(w0 + tanh(x_w w1) w2),  alpha = sigmoid(a0 + (x_a a1) a2)
        v <- v + (v_first - v) sigmoid(v0 + (x_v v1) v2)       (layers after the first)
        kk = k k_k / |k k_k|,  k~ = k (1 + (alpha - 1) k_a)
        S <- S diag(w) - (S kk)(kk alpha)^T + v k~^T,  y = S r
        out = W_o (g (GroupNorm(y) + (r . k~ r_k) v))

    Parameter names are those of RWKV-LM's checkpoints (RWKV-v7/train_temp/src/model.py).

    With `double_rate` the removal subtracts (S kk)(kk 2 alpha)^T, so that a step may turn what it
    finds at kk around instead of only erasing it: for a uniform w and alpha its eigenvalue there is
    w - 2 alpha, -1 for w and alpha near 1, where the plain one ends at -0.455. With a fast decay
    besides it may fall to -1.455, and the state grows: the range is wider than what is stable. What
    is written, k~, keeps alpha in (0, 1).

    Attributes:
        state_offset: None, or a parameter `[H, V, K]` added to the state where it is read, y = (S +
            offset) r, and never carried. For tuning a frozen model.

    Args:
        width: Channels C, a multiple of `head_size`.
        head_size: Width of a head; the state has `head_size` squared entries per head.
        layer: Index of the layer; the first one has no value residual.
        layers: Number of layers.
        low_rank: Rank of the low-rank maps of decay, rate, value residual and gate; or one each.
        norm_eps: Added to the variance by the group norm; None for the official 1e-5 times the
            width of a head, see `initialization.norm_weight`.
        double_rate: Whether the removal's rate lies in (0, 2).
        official: Whether gate and group norm start as in RWKV-LM at any rank and eps; else as
            `initialization.gate_factor` and `initialization.norm_weight` say.
    """

    x_r: nn.Parameter
    x_w: nn.Parameter
    x_k: nn.Parameter
    x_v: nn.Parameter
    x_a: nn.Parameter
    x_g: nn.Parameter
    w1: nn.Parameter
    w2: nn.Parameter
    a1: nn.Parameter
    a2: nn.Parameter
    v1: nn.Parameter
    v2: nn.Parameter
    state_offset: nn.Parameter | None

    def __init__(
        self, width: int, head_size: int, *,
        layer: int = 0, layers: int = 1, low_rank: int | LowRanks = 8,
        norm_eps: float | None = None, double_rate: bool = False, official: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % head_size:
            raise ValueError(f"width is {width}; expected a multiple of head_size = {head_size}.")
        self.heads, self.head_size, self.layer = width // head_size, head_size, layer
        self.double_rate = double_rate
        self.register_parameter("state_offset", None)
        ranks = low_rank if isinstance(low_rank, LowRanks) else LowRanks(*4 * (low_rank,))
        depth = layer / max(layers - 1, 1)
        ratio, ramp = 1.0 - layer / layers, initialization.ramp(width)
        for name, power in zip("rwkvag", (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
            mix = initialization.shift_ratio(width, power * ratio)
            self.register_parameter(f"x_{name}", nn.Parameter(mix))
        zigzag = initialization.zigzag(width, head_size)
        self.w0 = nn.Parameter(initialization.decay_bias(width, head_size, depth))
        self.a0 = nn.Parameter(-0.19 + 0.3 * zigzag + 0.4 * ramp)
        for name, rank in zip("wav" if layer else "wa", ranks, strict=False):
            down, up = torch.zeros(width, rank), torch.empty(rank, width)
            self.register_parameter(f"{name}1", nn.Parameter(down))
            self.register_parameter(f"{name}2", nn.Parameter(initialization.orthogonal_(up, 0.1)))
        if layer:
            self.v0 = nn.Parameter(0.73 - 0.4 * ramp)
        self.g1 = nn.Parameter(torch.zeros(width, ranks.gate))
        self.g2 = nn.Parameter(initialization.gate_factor(ranks.gate, width, official))
        self.k_k = nn.Parameter(0.71 - 0.1 * ramp)
        self.k_a = nn.Parameter(torch.full((width,), 1.02))
        self.r_k = nn.Parameter(torch.full((self.heads, head_size), -0.04))
        self.receptance, self.key, self.value, self.output = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        nn.init.orthogonal_(self.receptance.weight)
        nn.init.orthogonal_(self.key.weight, gain=0.1)
        nn.init.orthogonal_(self.value.weight)
        nn.init.zeros_(self.output.weight)
        # Official: eps = 64e-5 for heads of 64, i.e. 1e-5 times the width of a head.
        eps = 1e-5 * head_size if norm_eps is None else norm_eps
        self.ln_x = nn.GroupNorm(self.heads, width, eps=eps)
        start = initialization.norm_weight(layer, layers, None if official else norm_eps)
        nn.init.constant_(self.ln_x.weight, start)

    def forward(
        self, x: Tensor, shift: Tensor, wkv: Tensor, reset: Tensor, v_first: Tensor | None,
        write: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Return the output `[B, T, C]`, the new matrix state and this stack's `v_first`.

        Args:
            x: `[B, T, C]`.
            shift: The input before the first step, `[B, C]`.
            wkv: Matrix state `[B, H, V, K]`.
            reset: `[B, T]` bool.
            v_first: Values of the first layer, `[B, T, C]`; None in the first layer itself.
            write: `[B, T, H]`, scales what every head replaces in its state; None for 1.
        """
        if (
            write is None
            and self.is_plain
            and can_fuse(self.head_size, x, shift, wkv)
            and are_plain(*self.projections)
        ):
            fused = self._fused(x, shift, wkv, reset, v_first)
            if fused is not None:
                return fused
        mixes = torch.stack([self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g])
        x_r, x_w, x_k, x_v, x_a, x_g = shift_mix(x, shift, reset, mixes)
        decay = _affine(torch.tanh(x_w @ self.w1), self.w2, self.w0)
        rate = _affine(x_a @ self.a1, self.a2, self.a0)
        gate = torch.sigmoid(x_g @ self.g1) @ self.g2
        value = self.value(x_v)
        if v_first is None:
            v_first = value
        else:
            mix = torch.sigmoid(_affine(x_v @ self.v1, self.v2, self.v0))
            value = torch.lerp(value, v_first, mix)
        y, wkv = time_mix(
            self.receptance(x_r), decay, self.key(x_k), value, rate, gate,
            k_k=self.k_k, k_a=self.k_a, r_k=self.r_k,
            norm_weight=self.ln_x.weight, norm_bias=self.ln_x.bias, norm_eps=self.ln_x.eps,
            state=wkv, reset=reset, double_rate=self.double_rate, offset=self.state_offset,
            write=write,
        )  # fmt: skip
        out: Tensor = self.output(y)
        return out, wkv, v_first

    @property
    def is_plain(self) -> bool:
        """Whether this is the official time mix, without `double_rate` and `state_offset`."""
        return not self.double_rate and self.state_offset is None

    @property
    def projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        """Receptance, key, value and output."""
        return self.receptance, self.key, self.value, self.output

    def parameters_of(
        self, v_first: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the parameters as a fused layer takes them, and those of the value residual."""
        parameters = (
            self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g,
            self.w0, self.w1, self.w2, self.a0, self.a1, self.a2, self.g1, self.g2,
            *(z.weight for z in self.projections),
            self.k_k, self.k_a, self.r_k, self.ln_x.weight, self.ln_x.bias,
        )  # fmt: skip
        return parameters, () if v_first is None else (self.v0, self.v1, self.v2)

    def _fused(
        self, x: Tensor, shift: Tensor, wkv: Tensor, reset: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return what `forward` returns, as one operation: float32 on the CPU.

        None if an argument or a parameter does not fit; the composed operations say what is wrong.
        """
        from doxastic.kernels.cpu.layers import fits_time_mix, time_mix_layer

        parameters, residual = self.parameters_of(v_first)
        inputs, parameters = (x, shift, wkv, reset, v_first), (*parameters, *residual)
        if not fits_time_mix(*inputs, self.ln_x.eps, *parameters):
            return None
        out, wkv, value = time_mix_layer(*inputs, self.ln_x.eps, *parameters)
        return out, wkv, value if v_first is None else v_first


def _affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `bias + x weight` for x `[B, T, R]`, as one operation."""
    return torch.addmm(bias, x.flatten(0, 1), weight).view(*x.shape[:2], -1)
