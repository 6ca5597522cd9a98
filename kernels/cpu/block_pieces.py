"""What the passes over a whole block share: how a segment is cut, what is kept, small products.

A segment goes through a block a few steps of one batch row at a time, so that all of it stays in
the cache, and by products made here: between two calls of a matrix library every tensor of the
block would go to memory and come back. Letters: T steps, N of them at a time, C = H K channels, F
hidden channels, W the largest rank of the low-rank maps in whole vectors.
"""

from __future__ import annotations

from doxastic.kernels.cpu import wkv7
from doxastic.kernels.cpu.common import ZERO, compiled
from doxastic.kernels.cpu.simd import LANES, add, load, store
from doxastic.kernels.cpu.tiles import add_product

# Steps at a time: a piece of a segment. What a piece goes through takes a few hundred kilobytes.
STEPS = 32
# Entries between two arrays of a piece, five cache lines: at a power of two they would fall into
# the same few sets of the cache.
SPACING = 80


@compiled
def kept_places(C, K, F, W):
    """Return where what the forward keeps of a piece begins, in bytes, and the size of it all.

    r, k, v, u, y, the stream between the two mixes, all `[N, C]`, the states of `wkv7`, the hidden
    layer before its activation `[N, F]`, the low ranks of decay, rate, gate and value `[N, W]`, and
    what the two shifts saw before, `[C]`.
    """
    step, states = STEPS * C + SPACING, STEPS // wkv7.CHUNK * C * K + SPACING
    inner, low = 6 * step + states, STEPS * W + SPACING
    lows = inner + STEPS * F + SPACING
    shifts = lows + 4 * low
    return (
        0, 4 * step, 8 * step, 12 * step, 16 * step, 20 * step, 24 * step, 4 * inner,
        4 * lows, 4 * (lows + low), 4 * (lows + 2 * low), 4 * (lows + 3 * low),
        4 * shifts, 4 * (shifts + C), 4 * (shifts + 2 * C),
    )  # fmt: skip


@compiled
def keep_until_here(x, y):
    """Mention arrays that are used by address: numba frees one after its last mention."""
    x[0], y[0] = ZERO, ZERO


@compiled
def fill(y, T, C, bias):
    """Write the bias to every `y[t]`, `[T, C]`."""
    for t in range(T):
        for i in range(0, C, LANES):
            store(y, t * C + i, load(bias, i))


@compiled
def copy(y, x, count):
    """Write x to y."""
    for i in range(0, count, LANES):
        store(y, i, load(x, i))


@compiled
def add_to(y, x, count):
    """Add x to y."""
    for i in range(0, count, LANES):
        store(y, i, add(load(y, i), load(x, i)))


@compiled
def product(x, w, y, T, K, N):
    """Write x w to y, `[T, K]` times `[K, N]`."""
    y[: T * N] = ZERO
    add_product(x, 0, K, 1, T, w, 0, N, K, y, 0, N, N)


@compiled
def add_outer(dy, x, dw, T, N, K):
    """Add dy^T x to dw, `[N, T]` times `[T, K]`."""
    add_product(dy, 0, 1, N, N, x, 0, K, T, dw, 0, K, K)
