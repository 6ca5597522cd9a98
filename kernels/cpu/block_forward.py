"""A whole block over the pieces of a segment, forwards; see `block_pieces`."""

from __future__ import annotations

import numpy as np

from doxastic.kernels.cpu import channel_mix, token_shift, wkv7
from doxastic.kernels.cpu.block_pieces import (
    SPACING,
    STEPS,
    copy,
    keep_until_here,
    kept_places,
    product,
)
from doxastic.kernels.cpu.common import compiled
from doxastic.kernels.cpu.layer_norm import layer_norm
from doxastic.kernels.cpu.low_rank import (
    LINEAR,
    SIGMOID,
    TANH,
    map_forward,
    padded_columns,
    transposed,
)
from doxastic.kernels.cpu.simd import LANES, floats, fma, load, sigmoid, store, sub
from doxastic.kernels.cpu.tiles import add_product
from doxastic.kernels.cpu.time_mix_passes import after, before

# Scratch arrays `[N, C]`, besides those of the hidden layer.
ARRAYS = 16


@compiled
def forward(
    first, last, T, H, keys, F, W, ranks, eps, parameters,
    p_x, p_time, p_state, p_channel, p_reset, p_first, p_kept,
    p_out, p_value, p_time_last, p_final, p_channel_last,
):  # fmt: skip
    """Run the block over the rows `[first, last)`; at address 0 nothing is kept or read."""
    (
        p_ln1, p_ln1_bias, p_mix, p_w0, p_w1, p_w2, p_a0, p_a1, p_a2, p_g1, p_g2,
        p_receptance, p_key, p_value_weight, p_output, p_k_k, p_k_a, p_r_k, p_norm, p_norm_bias,
        p_ln2, p_ln2_bias, p_mix2, p_hidden_weight, p_out_weight, p_v0, p_v1, p_v2,
    ) = parameters  # fmt: skip
    K = LANES * len(keys)
    C = H * K
    rank_w, rank_a, rank_g, rank_v = ranks
    eps1, eps_norm, eps2 = eps
    w1, a1 = padded_columns(floats(p_w1), rank_w, C, W), padded_columns(floats(p_a1), rank_a, C, W)
    g1, v1 = padded_columns(floats(p_g1), rank_g, C, W), padded_columns(floats(p_v1), rank_v, C, W)
    receptance = transposed(floats(p_receptance), C, C, C)
    key_weight = transposed(floats(p_key), C, C, C)
    value_weight = transposed(floats(p_value_weight), C, C, C)
    output = transposed(floats(p_output), C, C, C)
    hidden_weight = transposed(floats(p_hidden_weight), F, C, F)
    out_weight = transposed(floats(p_out_weight), C, F, C)
    zeros = np.zeros(C, np.float32)
    (
        at_r, at_k, at_v, at_u, at_y, at_mid, at_stored, at_inner,
        at_low_w, at_low_a, at_low_g, at_low_v, at_time, at_channel, size_kept,
    ) = kept_places(C, K, F, W)  # fmt: skip
    step, pieces = STEPS * C + SPACING, -(-T // STEPS)
    own = np.empty(size_kept // 4 if p_kept == 0 else 1, np.float32)
    scratch = np.empty(ARRAYS * step + STEPS * F, np.float32)
    p = np.int64(scratch.ctypes.data)
    p_h, p_X, p_w, p_k_written = p, p + 4 * step, p + 28 * step, p + 32 * step
    p_a, p_b, p_decay, p_rate = p + 36 * step, p + 40 * step, p + 44 * step, p + 48 * step
    p_gate, p_z, p_share, p_hidden = p + 52 * step, p + 56 * step, p + 60 * step, p + 64 * step
    h, z, share, hidden = floats(p_h), floats(p_z), floats(p_share), floats(p_hidden)
    for row in range(first, last):
        # Before the first piece the given state, from then on that which the last piece wrote.
        p_before, p_before2 = p_time + 4 * row * C, p_channel + 4 * row * C
        p_last, p_last2 = p_time_last + 4 * row * C, p_channel_last + 4 * row * C
        p_S, p_new = p_state + 4 * row * C * K, p_final + 4 * row * C * K
        for piece in range(pieces):
            start = piece * STEPS
            N, at = min(STEPS, T - start), 4 * (row * T + start) * C
            base = np.int64(own.ctypes.data)
            if p_kept != 0:
                base = p_kept + (row * pieces + piece) * size_kept
            p_r, p_k, p_v = base + at_r, base + at_k, base + at_v
            p_u, p_y, p_mid = base + at_u, base + at_y, base + at_mid
            p_stored, p_inner = base + at_stored, base + at_inner
            x, mid, inner = floats(p_x + at), floats(p_mid), floats(p_inner)
            value, out, reset = floats(p_value + at), floats(p_out + at), p_reset + row * T + start
            p_time_before, p_channel_before = base + at_time, base + at_channel
            layer_norm(N, C, eps1, x, floats(p_ln1), floats(p_ln1_bias), h)
            copy(floats(p_time_before), floats(p_before), C)
            token_shift._mix(0, 1, N, C, 6, step, p_h, p_time_before, reset, p_mix, p_X)
            copy(floats(p_last), floats(p_h + 4 * (N - 1) * C), C)
            product(floats(p_X), receptance, floats(p_r), N, C, C)
            product(floats(p_X + 8 * step), key_weight, floats(p_k), N, C, C)
            product(floats(p_X + 12 * step), value_weight, value, N, C, C)
            map_forward(
                N, C, rank_w, W, TANH, floats(p_X + 4 * step), w1, floats(p_w2), floats(p_w0),
                floats(base + at_low_w), floats(p_decay),
            )  # fmt: skip
            map_forward(
                N, C, rank_a, W, LINEAR, floats(p_X + 16 * step), a1, floats(p_a2), floats(p_a0),
                floats(base + at_low_a), floats(p_rate),
            )  # fmt: skip
            map_forward(
                N, C, rank_g, W, SIGMOID, floats(p_X + 20 * step), g1, floats(p_g2), zeros,
                floats(base + at_low_g), floats(p_gate),
            )  # fmt: skip
            if p_first == 0:
                p_v = p_value + at
            else:
                map_forward(
                    N, C, rank_v, W, LINEAR, floats(p_X + 12 * step), v1, floats(p_v2),
                    floats(p_v0), floats(base + at_low_v), share,
                )  # fmt: skip
                v, v_first = floats(p_v), floats(p_first + at)
                for i in range(0, N * C, LANES):
                    value_i = load(value, i)
                    change = sub(load(v_first, i), value_i)
                    store(v, i, fma(change, sigmoid(load(share, i)), value_i))
            before(
                0, 0, H, N, H, keys, p_decay, p_k, p_rate, p_k_k, p_k_a, p_w, p_k_written, p_a, p_b
            )  # fmt: skip
            wkv7._forward(
                0, H, H, N, keys, keys, p_r, p_w, p_k_written, p_v, p_a, p_b, p_S,
                reset, p_y, p_u, p_stored, p_new,
            )  # fmt: skip
            after(
                0, 0, H, N, H, keys, eps_norm, p_y, p_r, p_k_written, p_v, p_gate, p_r_k, p_norm,
                p_norm_bias, p_z,
            )  # fmt: skip
            copy(mid, x, N * C)
            add_product(z, 0, C, 1, N, output, 0, C, C, mid, 0, C, C)
            layer_norm(N, C, eps2, mid, floats(p_ln2), floats(p_ln2_bias), h)
            copy(floats(p_channel_before), floats(p_before2), C)
            token_shift._mix(0, 1, N, C, 1, step, p_h, p_channel_before, reset, p_mix2, p_X)
            copy(floats(p_last2), floats(p_h + 4 * (N - 1) * C), C)
            product(floats(p_X), hidden_weight, inner, N, C, F)
            channel_mix._forward(0, N * F // LANES, N * F, p_inner, p_hidden)
            copy(out, mid, N * C)
            add_product(hidden, 0, F, 1, N, out_weight, 0, C, F, out, 0, C, C)
            p_before, p_before2, p_S = p_last, p_last2, p_new
    keep_until_here(scratch, own)
