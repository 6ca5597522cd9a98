"""One acting step of a whole RWKV-7 block on the CPU: a single call, whatever the batch.

Acting is bound by dispatch: a block has about fifty operations, most of them on a few kilobytes.
Here they are one compiled function that takes `TILE` rows at a time through the block, reads each
weight from where the module keeps it, and writes the new state. Nothing is cached between calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from doxastic.kernels.cpu.common import ZERO, compiled, vectors
from doxastic.kernels.cpu.simd import (
    LANES,
    add,
    flags,
    floats,
    fma,
    load,
    mul,
    products,
    products4,
    relu,
    sigmoid,
    splat,
    spread,
    store,
    store_quarters,
    sub,
    tanh,
)
from doxastic.kernels.cpu.threads import run
from doxastic.kernels.cpu.time_mix_passes import after, before, statistics

# Rows that pass through the block together: few enough for the first-level cache.
TILE = 16
COLUMNS = LANES // 4
# From this rank on, and for whole vectors, a low-rank map's first factor is read where it is: at
# least two vectors of any processor.
LARGE_RANK = 32


@compiled
def _linear(x, rows, width, w, out, outputs):
    """Write out[row, o] = x[row] . w[o] for `rows` rows of x; w is [outputs, width]."""
    fours = rows // 4 * 4
    if fours:
        for o in range(0, outputs, COLUMNS):
            for row in range(0, fours, 4):
                sums = products4(x, row * width, width, w, o * width, width, width)
                store_quarters(out, row * outputs + o, outputs, sums)
    for row in range(fours, rows):
        for o in range(0, outputs, LANES):
            store(out, row * outputs + o, products(x, row * width, 0, w, o * width, width, width))


@compiled
def _norm(x, o, C, eps, weight, bias, out, p):
    """Write the layer norm of x[o : o + C] to out[p : p + C]."""
    mean, scale = statistics(x, o, C, eps)
    for i in range(0, C, LANES):
        normal = mul(sub(load(x, o + i), splat(mean)), splat(scale))
        store(out, p + i, fma(normal, load(weight, i), load(bias, i)))


@compiled
def _mix(h, previous, p, reset, C, mix, out, o):
    """Write h + (previous - h) mix for one row; a reset row has no previous input."""
    for i in range(0, C, LANES):
        h_i, before = load(h, o + i), splat(ZERO)
        if not reset:
            before = load(previous, p + i)
        store(out, o + i, fma(sub(before, h_i), load(mix, i), h_i))


@compiled
def _up(down, rows, rank, bias, up, C, out):
    """Write bias + down[row] up for `rows` rows of `rank` numbers, padded to whole vectors."""
    stride = -(-rank // LANES) * LANES
    fours = rows // 4 * 4
    for row in range(0, fours, 4):
        o, p = row * stride, row * C
        for i in range(0, C, LANES):
            x0 = load(bias, i)
            x1, x2, x3 = x0, x0, x0
            for j in range(rank):
                up_i = load(up, j * C + i)
                x0 = fma(spread(down, o + j), up_i, x0)
                x1 = fma(spread(down, o + stride + j), up_i, x1)
                x2 = fma(spread(down, o + 2 * stride + j), up_i, x2)
                x3 = fma(spread(down, o + 3 * stride + j), up_i, x3)
            store(out, p + i, x0)
            store(out, p + C + i, x1)
            store(out, p + 2 * C + i, x2)
            store(out, p + 3 * C + i, x3)
    for row in range(fours, rows):
        for i in range(0, C, LANES):
            x = load(bias, i)
            for j in range(rank):
                x = fma(spread(down, row * stride + j), load(up, j * C + i), x)
            store(out, row * C + i, x)


@compiled
def _down(x, rows, C, w, rank, gathered, out):
    """Write x[row] w for `rows` rows, `[rank]` padded to whole vectors; `gathered` is w's copy."""
    stride = -(-rank // LANES) * LANES
    if _is_small(rank):
        _linear(x, rows, C, gathered, out, stride)
        return
    # A row's sum is one chain for even columns and one for odd, in both loops: threads cut a batch
    # anywhere, and a row's bits must not depend on its neighbours. A chain alone would wait for
    # itself at every step: eight of them run side by side, or four where rows are left over.
    fours = rows // 4 * 4
    for j in range(0, rank, LANES):
        for row in range(0, fours, 4):
            o, p, q, s = row * C, (row + 1) * C, (row + 2) * C, (row + 3) * C
            o0, p0, q0, s0 = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
            o1, p1, q1, s1 = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
            for i in range(0, C, 2):
                even, odd = load(w, i * rank + j), load(w, (i + 1) * rank + j)
                o0, o1 = fma(spread(x, o + i), even, o0), fma(spread(x, o + i + 1), odd, o1)
                p0, p1 = fma(spread(x, p + i), even, p0), fma(spread(x, p + i + 1), odd, p1)
                q0, q1 = fma(spread(x, q + i), even, q0), fma(spread(x, q + i + 1), odd, q1)
                s0, s1 = fma(spread(x, s + i), even, s0), fma(spread(x, s + i + 1), odd, s1)
            store(out, row * rank + j, add(o0, o1))
            store(out, (row + 1) * rank + j, add(p0, p1))
            store(out, (row + 2) * rank + j, add(q0, q1))
            store(out, (row + 3) * rank + j, add(s0, s1))
    for row in range(fours, rows):
        o = row * C
        for start in range(0, rank, 2 * LANES):
            # The last pair may begin earlier, and then writes one vector again.
            j = min(start, rank - 2 * LANES)
            s0, s1, s2, s3 = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
            for i in range(0, C, 2):
                even, odd, p = spread(x, o + i), spread(x, o + i + 1), i * rank + j
                s0, s1 = fma(even, load(w, p), s0), fma(odd, load(w, p + rank), s1)
                s2 = fma(even, load(w, p + LANES), s2)
                s3 = fma(odd, load(w, p + rank + LANES), s3)
            store(out, row * rank + j, add(s0, s1))
            store(out, row * rank + j + LANES, add(s2, s3))


@compiled
def _is_small(rank):
    return rank < LARGE_RANK or rank % LANES != 0


@compiled
def _gathered(w, C, rank):
    """Return the factor [C, rank] as [stride, C], with rows of zeros after `rank`, if small."""
    if not _is_small(rank):
        return w[:0].copy()
    stride = -(-rank // LANES) * LANES
    out = np.zeros(stride * C, np.float32)
    for i in range(C):
        for j in range(rank):
            out[j * C + i] = w[i * rank + j]
    return out


@compiled
def _head(e, fresh, o, keys, r, w, key, v, a, b, state, new, u, y):
    """Step the matrix state at state[e], zero if fresh, to new[e] with the vectors at o; write y.

    The old state is read, not copied first: of a large batch it is what does not fit the caches.
    """
    K = LANES * len(keys)
    for j in range(0, K, LANES):
        u_j = splat(ZERO)
        if not fresh:
            u_j = products(a, o, 0, state, e + j * K, K, K)
        store(u, j, u_j)
    for j in range(K):
        u_j, v_j = spread(u, j), spread(v, o + j)
        for i in range(0, K, LANES):
            s = splat(ZERO)
            if not fresh:
                s = mul(load(state, e + j * K + i), load(w, o + i))
            s = fma(v_j, load(key, o + i), fma(u_j, load(b, o + i), s))
            store(new, e + j * K + i, s)
    for j in range(0, K, LANES):
        store(y, o + j, products(r, o, 0, new, e + j * K, K, K))


@compiled
def _add_read(o, K, r, e, offset, y):
    """Add O r[o] to y[o] for the matrix O `[K, K]` at offset[e]."""
    for j in range(0, K, LANES):
        more = products(r, o, 0, offset, e + j * K, K, K)
        store(y, o + j, add(load(y, o + j), more))


@compiled
def block_step(
    first, last, C, keys, hidden, rank_w, rank_a, rank_g, rank_v, S, at_time, at_wkv, at_channel,
    has_first, is_last, layer_eps, eps,
    p_x, p_state, p_reset, p_v_first, p_out, p_new,
    p_ln1_weight, p_ln1_bias, p_x_r, p_x_w, p_x_k, p_x_v, p_x_a, p_x_g,
    p_w0, p_w1, p_w2, p_a0, p_a1, p_a2, p_v0, p_v1, p_v2, p_g1, p_g2, p_k_k, p_k_a, p_r_k,
    p_receptance, p_key_weight, p_value_weight, p_output, p_ln_weight, p_ln_bias,
    p_ln2_weight, p_ln2_bias, p_channel_mix, p_ffn_key, p_ffn_value, p_out_weight, p_out_bias,
    p_offset,
):  # fmt: skip
    """Take rows `first` to `last` of x `[B, C]` through the block.

    `state` and `new` are flat `[B, S]`, with the block's parts at `at_time`, `at_wkv` and
    `at_channel`. `v_first` is written by the first layer and read by later ones; the last one
    also applies the core's closing layer norm. An offset `[H, V, K]`, at the address 0 for none, is
    added to the matrix state where it is read.
    """
    x, state, v_first, out, new = (
        floats(p_x),
        floats(p_state),
        floats(p_v_first),
        floats(p_out),
        floats(p_new),
    )
    ln1_weight, ln1_bias, x_r, x_w, x_k = (
        floats(p_ln1_weight),
        floats(p_ln1_bias),
        floats(p_x_r),
        floats(p_x_w),
        floats(p_x_k),
    )
    x_v, x_a, x_g, w0, w1 = (
        floats(p_x_v),
        floats(p_x_a),
        floats(p_x_g),
        floats(p_w0),
        floats(p_w1),
    )
    w2, a0, a1, a2, v0 = (floats(p_w2), floats(p_a0), floats(p_a1), floats(p_a2), floats(p_v0))
    v1, v2, g1, g2, k_k = (floats(p_v1), floats(p_v2), floats(p_g1), floats(p_g2), floats(p_k_k))
    k_a, r_k, receptance, key_weight, value_weight = (
        floats(p_k_a),
        floats(p_r_k),
        floats(p_receptance),
        floats(p_key_weight),
        floats(p_value_weight),
    )
    output, ln_weight, ln_bias, ln2_weight, ln2_bias = (
        floats(p_output),
        floats(p_ln_weight),
        floats(p_ln_bias),
        floats(p_ln2_weight),
        floats(p_ln2_bias),
    )
    channel_mix, ffn_key, ffn_value, out_weight, out_bias = (
        floats(p_channel_mix),
        floats(p_ffn_key),
        floats(p_ffn_value),
        floats(p_out_weight),
        floats(p_out_bias),
    )
    offset, reset = floats(p_offset), flags(p_reset)
    K = LANES * len(keys)
    H, widest = C // K, max(rank_w, rank_a, rank_v, rank_g)
    down_w, down_a = _gathered(w1, C, rank_w), _gathered(a1, C, rank_a)
    down_g = _gathered(g1, C, rank_g)
    down_v = down_w if not has_first else _gathered(v1, C, rank_v)
    nothing = np.zeros(C, np.float32)
    size = TILE * C
    h, mixed, z = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    r, k, v = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    decay, rate, gate = (
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.float32),
    )
    w, key, a, b, y = (
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.empty(size, np.float32),
    )
    down = np.empty(TILE * -(-widest // LANES) * LANES, np.float32)
    wide = np.empty(TILE * hidden, np.float32)
    u = np.empty(K, np.float32)
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        for row in range(n):
            _norm(x, (start + row) * C, C, layer_eps, ln1_weight, ln1_bias, h, row * C)
            p = (start + row) * S + at_time
            for i in range(0, C, LANES):
                store(new, p + i, load(h, row * C + i))
        for g, mix in enumerate((x_r, x_w, x_k, x_v, x_a, x_g)):
            for row in range(n):
                p = (start + row) * S + at_time
                _mix(h, state, p, reset[start + row], C, mix, mixed, row * C)
            if g == 0:
                _linear(mixed, n, C, receptance, r, C)
            elif g == 1:
                _down(mixed, n, C, w1, rank_w, down_w, down)
                for i in range(0, n * -(-rank_w // LANES) * LANES, LANES):
                    store(down, i, tanh(load(down, i)))
                _up(down, n, rank_w, w0, w2, C, decay)
            elif g == 2:
                _linear(mixed, n, C, key_weight, k, C)
            elif g == 3:
                _linear(mixed, n, C, value_weight, v, C)
                if has_first:
                    _down(mixed, n, C, v1, rank_v, down_v, down)
                    _up(down, n, rank_v, v0, v2, C, z)
                    for i in range(0, n * C, LANES):
                        v_i = load(v, i)
                        difference = sub(load(v_first, start * C + i), v_i)
                        store(v, i, fma(difference, sigmoid(load(z, i)), v_i))
                else:
                    for i in range(0, n * C, LANES):
                        store(v_first, start * C + i, load(v, i))
            elif g == 4:
                _down(mixed, n, C, a1, rank_a, down_a, down)
                _up(down, n, rank_a, a0, a2, C, rate)
            else:
                _down(mixed, n, C, g1, rank_g, down_g, down)
                for i in range(0, n * -(-rank_g // LANES) * LANES, LANES):
                    store(down, i, sigmoid(load(down, i)))
                _up(down, n, rank_g, nothing, g2, C, gate)
        before(0, 0, H, n, H, keys, decay, k, rate, k_k, k_a, w, key, a, b)
        for row in range(n):
            q, size_h, fresh = (start + row) * S + at_wkv, K * K, reset[start + row]
            for head in range(H):
                e, o = q + head * size_h, row * C + head * K
                _head(e, fresh, o, keys, r, w, key, v, a, b, state, new, u, y)
                if p_offset:
                    _add_read(o, K, r, head * size_h, offset, y)
        after(0, 0, H, n, H, keys, eps, y, r, key, v, gate, r_k, ln_weight, ln_bias, z)
        _linear(z, n, C, output, mixed, C)
        for row in range(n):
            for i in range(0, C, LANES):
                o = row * C + i
                store(z, o, add(load(x, (start + row) * C + i), load(mixed, o)))
            _norm(z, row * C, C, layer_eps, ln2_weight, ln2_bias, h, row * C)
            p = (start + row) * S + at_channel
            _mix(h, state, p, reset[start + row], C, channel_mix, mixed, row * C)
            for i in range(0, C, LANES):
                store(new, p + i, load(h, row * C + i))
        _linear(mixed, n, C, ffn_key, wide, hidden)
        for i in range(0, n * hidden, LANES):
            x_i = relu(load(wide, i))
            store(wide, i, mul(x_i, x_i))
        _linear(wide, n, hidden, ffn_value, mixed, C)
        for i in range(0, n * C, LANES):
            store(out, start * C + i, add(load(z, i), load(mixed, i)))
        if is_last:
            for row in range(n):
                o = (start + row) * C
                _norm(out, o, C, layer_eps, out_weight, out_bias, out, o)


def run_block_step(
    rows: int, sizes: tuple[Any, ...], tensors: tuple[Tensor, ...], parameters: list[int]
) -> None:
    """Take all rows through the block; see `block_step` for the order of everything."""
    width, head_size, *others = sizes
    work = rows * 8 * width**2
    run(block_step, rows, work, width, vectors(head_size), *others, *tensors, *parameters)
