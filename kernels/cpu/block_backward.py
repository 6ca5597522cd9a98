"""A whole block over the pieces of a segment, backwards; see `block_pieces`."""

from __future__ import annotations

import numpy as np

from doxastic.kernels.cpu import channel_mix, token_shift, wkv7
from doxastic.kernels.cpu.block_pieces import (
    SPACING,
    STEPS,
    add_outer,
    add_to,
    copy,
    fill,
    keep_until_here,
    kept_places,
    product,
)
from doxastic.kernels.cpu.common import ONE, ZERO, compiled
from doxastic.kernels.cpu.layer_norm import layer_norm, layer_norm_backward
from doxastic.kernels.cpu.low_rank import (
    LINEAR,
    SIGMOID,
    TANH,
    map_backward,
    transposed,
)
from doxastic.kernels.cpu.simd import LANES, floats, load, mul, sigmoid, splat, store, sub
from doxastic.kernels.cpu.tiles import add_product
from doxastic.kernels.cpu.time_mix_passes import after, after_backward, before, before_backward

# Scratch arrays `[N, C]`, besides those of the hidden layer.
ARRAYS = 26


@compiled
def backward(
    first, last, parts, B, T, H, keys, F, W, ranks, eps, parameters, places, size,
    p_x, p_time, p_channel, p_reset, p_first, p_kept, p_value,
    p_dout, p_dtime_last, p_dfinal, p_dchannel_last, p_dvalue,
    p_dx, p_dtime, p_dstate, p_dchannel, p_dfirst, p_sums,
):  # fmt: skip
    """Run the block backwards over the rows of the parts `[first, last)` of the batch.

    The gradients of the parameters are added up within each part, `size` bytes of `p_sums` where
    each has its place; those of the low-rank factors before the activation are `[R, C]`. At address
    0 nothing is read.
    """
    (
        p_ln1, p_ln1_bias, p_mix, p_w0, p_w1, p_w2, p_a0, p_a1, p_a2, p_g1, p_g2,
        p_receptance, p_key, p_value_weight, p_output, p_k_k, p_k_a, p_r_k, p_norm, p_norm_bias,
        p_ln2, p_ln2_bias, p_mix2, p_hidden_weight, p_out_weight, p_v0, p_v1, p_v2,
    ) = parameters  # fmt: skip
    (
        to_ln1, to_ln1_bias, to_mix, to_w0, to_w1, to_w2, to_a0, to_a1, to_a2, to_g1, to_g2,
        to_receptance, to_key, to_value_weight, to_output, to_k_k, to_k_a, to_r_k, to_norm,
        to_norm_bias, to_ln2, to_ln2_bias, to_mix2, to_hidden_weight, to_out_weight, to_v0, to_v1,
        to_v2,
    ) = places  # fmt: skip
    K = LANES * len(keys)
    C = H * K
    rank_w, rank_a, rank_g, rank_v = ranks
    eps1, eps_norm, eps2 = eps
    w1, a1 = transposed(floats(p_w1), C, rank_w, C), transposed(floats(p_a1), C, rank_a, C)
    g1, v1 = transposed(floats(p_g1), C, rank_g, C), transposed(floats(p_v1), C, rank_v, C)
    w2, a2 = transposed(floats(p_w2), rank_w, C, W), transposed(floats(p_a2), rank_a, C, W)
    g2, v2 = transposed(floats(p_g2), rank_g, C, W), transposed(floats(p_v2), rank_v, C, W)
    zeros, one = np.zeros(C, np.float32), splat(ONE)
    (
        at_r, at_k, at_v, at_u, at_y, at_mid, at_stored, at_inner,
        at_low_w, at_low_a, at_low_g, at_low_v, at_time, at_channel, size_kept,
    ) = kept_places(C, K, F, W)  # fmt: skip
    step, pieces = STEPS * C + SPACING, -(-T // STEPS)
    scratch = np.empty(ARRAYS * step + 2 * (STEPS * F + SPACING) + STEPS * W, np.float32)
    p = np.int64(scratch.ctypes.data)
    p_h, p_dh, p_dmid, p_z = p, p + 4 * step, p + 8 * step, p + 12 * step
    p_dz, p_decay, p_rate, p_gate = p + 16 * step, p + 20 * step, p + 24 * step, p + 28 * step
    p_dgate, p_dr, p_dk, p_dv = p + 32 * step, p + 36 * step, p + 40 * step, p + 44 * step
    p_share, p_dshare = p + 48 * step, p + 52 * step
    # Twelve arrays that serve twice: around the recurrence, then as mixed inputs and gradients.
    p_w, p_k_written, p_a, p_b = p + 56 * step, p + 60 * step, p + 64 * step, p + 68 * step
    p_dw, p_dk_written, p_da, p_db = p + 72 * step, p + 76 * step, p + 80 * step, p + 84 * step
    p_dy, p_dr_bonus, p_dk_bonus = p + 88 * step, p + 92 * step, p + 96 * step
    p_dv_bonus, p_X, p_dX = p + 100 * step, p + 56 * step, p + 80 * step
    p_hidden = p + 104 * step
    p_dhidden = p_hidden + 4 * (STEPS * F + SPACING)
    dz_low = floats(p_dhidden + 4 * (STEPS * F + SPACING))
    owed, owed2 = np.empty(C, np.float32), np.empty(C, np.float32)
    h, dh, dmid, z, dz = floats(p_h), floats(p_dh), floats(p_dmid), floats(p_z), floats(p_dz)
    decay, rate, gate = floats(p_decay), floats(p_rate), floats(p_gate)
    dgate, dr, dk, dv = floats(p_dgate), floats(p_dr), floats(p_dk), floats(p_dv)
    share, dshare = floats(p_share), floats(p_dshare)
    hidden, dhidden = floats(p_hidden), floats(p_dhidden)
    dX = (
        p_dX, p_dX + 4 * step, p_dX + 8 * step, p_dX + 12 * step, p_dX + 16 * step,
        p_dX + 20 * step,
    )  # fmt: skip
    for part in range(first, last):
        p_sum = p_sums + part * size
        for row in range(part * B // parts, (part + 1) * B // parts):
            # What a piece owes to the one before it.
            p_owing, p_owing2 = p_dtime + 4 * row * C, p_dchannel + 4 * row * C
            owed[:], owed2[:] = ZERO, ZERO
            if p_dtime_last != 0:
                copy(owed, floats(p_dtime_last + 4 * row * C), C)
            if p_dchannel_last != 0:
                copy(owed2, floats(p_dchannel_last + 4 * row * C), C)
            p_D, p_dS = p_dfinal + 4 * row * C * K, p_dstate + 4 * row * C * K
            for piece in range(pieces - 1, -1, -1):
                start = piece * STEPS
                N, at = min(STEPS, T - start), 4 * (row * T + start) * C
                reset = p_reset + row * T + start
                base = p_kept + (row * pieces + piece) * size_kept
                p_time_before, p_channel_before = base + at_time, base + at_channel
                p_r, p_k, p_v = base + at_r, base + at_k, base + at_v
                p_u, p_y, p_stored = (
                    base + at_u,
                    base + at_y,
                    base + at_stored,
                )
                p_inner = base + at_inner
                low_w, low_a = floats(base + at_low_w), floats(base + at_low_a)
                low_g, low_v = floats(base + at_low_g), floats(base + at_low_v)
                if p_first == 0:
                    p_v = p_value + at
                x, mid, dout = floats(p_x + at), floats(base + at_mid), floats(p_dout + at)

                # The channel mix.
                layer_norm(N, C, eps2, mid, floats(p_ln2), floats(p_ln2_bias), h)
                token_shift._mix(
                    0, 1, N, C, 1, step, p_h, p_channel_before, reset, p_mix2, p_X
                )  # fmt: skip
                channel_mix._forward(0, N * F // LANES, N * F, p_inner, p_hidden)
                add_outer(dout, hidden, floats(p_sum + to_out_weight), N, C, F)
                product(dout, floats(p_out_weight), dhidden, N, C, F)
                channel_mix._backward(0, N * F // LANES, N * F, p_inner, p_dhidden)
                add_outer(dhidden, floats(p_X), floats(p_sum + to_hidden_weight), N, F, C)
                product(dhidden, floats(p_hidden_weight), floats(p_dX), N, F, C)
                token_shift._mix_backward(
                    0, 1, N, C, p_h, p_channel_before, reset, p_mix2, (p_dX,),
                    p_dh, p_owing2, p_sum + to_mix2,
                )  # fmt: skip
                add_to(floats(p_dh + 4 * (N - 1) * C), owed2, C)
                copy(owed2, floats(p_owing2), C)
                copy(dmid, dout, N * C)
                layer_norm_backward(
                    N, C, eps2, dh, mid, floats(p_ln2), dmid,
                    floats(p_sum + to_ln2), floats(p_sum + to_ln2_bias),
                )  # fmt: skip

                # The time mix, down to what its projections gave.
                fill(decay, N, C, floats(p_w0))
                add_product(low_w, 0, W, 1, N, floats(p_w2), 0, C, rank_w, decay, 0, C, C)
                fill(rate, N, C, floats(p_a0))
                add_product(low_a, 0, W, 1, N, floats(p_a2), 0, C, rank_a, rate, 0, C, C)
                fill(gate, N, C, zeros)
                add_product(low_g, 0, W, 1, N, floats(p_g2), 0, C, rank_g, gate, 0, C, C)
                before(
                    0, 0, H, N, H, keys, p_decay, p_k, p_rate, p_k_k, p_k_a, p_w, p_k_written, p_a,
                    p_b,
                )  # fmt: skip
                after(
                    0, 0, H, N, H, keys, eps_norm, p_y, p_r, p_k_written, p_v, p_gate, p_r_k,
                    p_norm, p_norm_bias, p_z,
                )  # fmt: skip
                add_outer(dmid, z, floats(p_sum + to_output), N, C, C)
                product(dmid, floats(p_output), dz, N, C, C)
                after_backward(
                    0, 0, H, N, H, keys, eps_norm, p_dz, p_y, p_r, p_k_written, p_v, p_gate, p_r_k,
                    p_norm, p_norm_bias, p_dy, p_dr_bonus, p_dk_bonus, p_dv_bonus, p_dgate,
                    p_sum + to_r_k, p_sum + to_norm, p_sum + to_norm_bias,
                )  # fmt: skip
                wkv7._backward(
                    0, H, H, N, keys, keys, p_dy, p_D, p_r, p_w, p_k_written, p_v,
                    p_a, p_b, reset, p_u, p_stored, p_dr, p_dw, p_dk_written, p_dv, p_da, p_db,
                    p_dS,
                )  # fmt: skip
                # The gradients of decay and rate take the place of these.
                before_backward(
                    0, 0, H, N, H, keys, p_dw, p_dk_written, p_dk_bonus, p_da, p_db, p_dr_bonus,
                    p_dv_bonus, p_decay, p_k, p_rate, p_k_k, p_k_a, p_decay, p_dk, p_rate, p_dr,
                    p_dv, p_sum + to_k_k, p_sum + to_k_a,
                )  # fmt: skip
                if p_first != 0:
                    fill(share, N, C, floats(p_v0))
                    add_product(low_v, 0, W, 1, N, floats(p_v2), 0, C, rank_v, share, 0, C, C)
                    value, v_first = floats(p_value + at), floats(p_first + at)
                    dfirst = floats(p_dfirst + at)
                    for i in range(0, N * C, LANES):
                        share_i, dv_i = sigmoid(load(share, i)), load(dv, i)
                        dfirst_i = mul(dv_i, share_i)
                        store(dfirst, i, dfirst_i)
                        store(dv, i, sub(dv_i, dfirst_i))
                        slope = mul(dfirst_i, sub(one, share_i))
                        store(dshare, i, mul(slope, sub(load(v_first, i), load(value, i))))
                if p_dvalue != 0:
                    add_to(dv, floats(p_dvalue + at), N * C)

                # The projections and the shift.
                layer_norm(N, C, eps1, x, floats(p_ln1), floats(p_ln1_bias), h)
                token_shift._mix(0, 1, N, C, 6, step, p_h, p_time_before, reset, p_mix, p_X)
                add_outer(dr, floats(p_X), floats(p_sum + to_receptance), N, C, C)
                product(dr, floats(p_receptance), floats(dX[0]), N, C, C)
                x_k, x_v = floats(p_X + 8 * step), floats(p_X + 12 * step)
                add_outer(dk, x_k, floats(p_sum + to_key), N, C, C)
                product(dk, floats(p_key), floats(dX[2]), N, C, C)
                add_outer(dv, x_v, floats(p_sum + to_value_weight), N, C, C)
                product(dv, floats(p_value_weight), floats(dX[3]), N, C, C)
                dx_w, dx_a, dx_g = floats(dX[1]), floats(dX[4]), floats(dX[5])
                dx_w[: N * C] = ZERO
                map_backward(
                    N, C, rank_w, W, TANH, decay, floats(p_X + 4 * step), low_w, w2, w1, dz_low,
                    dx_w, floats(p_sum + to_w1), floats(p_sum + to_w2), floats(p_sum + to_w0),
                )  # fmt: skip
                dx_a[: N * C] = ZERO
                map_backward(
                    N, C, rank_a, W, LINEAR, rate, floats(p_X + 16 * step), low_a, a2, a1, dz_low,
                    dx_a, floats(p_sum + to_a1), floats(p_sum + to_a2), floats(p_sum + to_a0),
                )  # fmt: skip
                dx_g[: N * C] = ZERO
                map_backward(
                    N, C, rank_g, W, SIGMOID, dgate, floats(p_X + 20 * step), low_g, g2, g1, dz_low,
                    dx_g, floats(p_sum + to_g1), floats(p_sum + to_g2), zeros,
                )  # fmt: skip
                # The gate has no bias, and whatever stands where its gradient went is nobody's.
                zeros[:] = ZERO
                if p_first != 0:
                    map_backward(
                        N, C, rank_v, W, LINEAR, dshare, x_v, low_v, v2, v1, dz_low, floats(dX[3]),
                        floats(p_sum + to_v1), floats(p_sum + to_v2), floats(p_sum + to_v0),
                    )  # fmt: skip
                token_shift._mix_backward(
                    0, 1, N, C, p_h, p_time_before, reset, p_mix, dX,
                    p_dh, p_owing, p_sum + to_mix,
                )  # fmt: skip
                add_to(floats(p_dh + 4 * (N - 1) * C), owed, C)
                copy(owed, floats(p_owing), C)
                dx = floats(p_dx + at)
                copy(dx, dmid, N * C)
                layer_norm_backward(
                    N, C, eps1, dh, x, floats(p_ln1), dx,
                    floats(p_sum + to_ln1), floats(p_sum + to_ln1_bias),
                )  # fmt: skip
                p_D = p_dS
    keep_until_here(scratch, zeros)
