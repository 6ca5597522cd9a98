"""The inside of a chunk of WKV-7: decays, scores and their gradients, the triangular inverse.

Everything here is inlined into the kernels. The derivation is in README.md, section Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

from doxastic.kernels.triton.common import cast, dot, rounded

# Log-decays below are taken as this: exp of it is 0 in float32, and -inf would become NaN in sums.
LEAST = tl.constexpr(-104.0)
# Above RWKV-7's floor of exp(-1/2) = 0.6065 with room for rounding it to bfloat16.
MILD = tl.constexpr(0.62)


@triton.jit
def load_rows(x, first, stride, inside, column, WIDTH: tl.constexpr):
    """Return rows of x `[rows, WIDTH]` in float32, zeros outside.

    Args:
        x: Pointer to the tensor.
        first: Number of the first row, 64 bits.
        stride: Distance from row to row, in rows.
        inside: Which of the rows exist.
        column: Columns, of which those from WIDTH on do not exist.
        WIDTH: Width of x.
    """
    row = tl.arange(0, inside.shape[0]) * stride
    pointers = x + first * WIDTH + row[:, None] * WIDTH + column[None, :]
    mask = inside[:, None] & (column < WIDTH)[None, :]
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_rows(x, first, stride, inside, column, WIDTH: tl.constexpr, values):
    """Write rows of x `[rows, WIDTH]` in its dtype; arguments as in `load_rows`."""
    row = tl.arange(0, inside.shape[0]) * stride
    pointers = x + first * WIDTH + row[:, None] * WIDTH + column[None, :]
    mask = inside[:, None] & (column < WIDTH)[None, :]
    tl.store(pointers, cast(values, x.dtype.element_ty), mask=mask)


@triton.jit
def load_matrix(x, index, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return matrix `index`, of 64 bits, of x `[..., ROWS, COLUMNS]` in float32, zeros outside."""
    mask = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    pointers = x + index * (ROWS * COLUMNS) + row[:, None] * COLUMNS + column[None, :]
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_matrix(x, index, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr, values):
    """Write matrix `index`, of 64 bits, of x `[..., ROWS, COLUMNS]` in its dtype."""
    mask = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    pointers = x + index * (ROWS * COLUMNS) + row[:, None] * COLUMNS + column[None, :]
    tl.store(pointers, cast(values, x.dtype.element_ty), mask=mask)


@triton.jit
def load_decays(w, first, stride, inside, column, WIDTH: tl.constexpr):
    """Return log-decays as `load_rows` does, none below `LEAST`; NaN stays."""
    rows = load_rows(w, first, stride, inside, column, WIDTH)
    return tl.where(rows < LEAST, LEAST, rows)


@triton.jit
def fresh_time(first, CHUNK: tl.constexpr):
    """Return `0 .. CHUNK - 1`, which the compiler takes to depend on the first step of the chunk.

    Else it would form every mask once, before the loop over chunks, and keep them all, for want of
    registers in memory.
    """
    return tl.arange(0, CHUNK) + tl.minimum(first, 0)


@triton.jit
def load_segments(reset, step, inside, HAS_RESET: tl.constexpr):
    """Return the resets among the steps of a chunk, and the number of its segment for each."""
    if HAS_RESET:
        pointers = reset + step + tl.arange(0, inside.shape[0])
        flags = tl.load(pointers, mask=inside, other=0).to(tl.int32)
    else:
        flags = tl.zeros(inside.shape, tl.int32)
    return flags, tl.cumsum(flags, 0)


@triton.jit
def earlier_decays(w, time):
    """Return, per step, the sum of w over the earlier steps of the chunk."""
    return dot((time[None, :] < time[:, None]).to(tl.float32), w, "tf32x3")


@triton.jit
def later_decays(w, time):
    """Return, per step, the sum of w over the later steps of the chunk."""
    return dot((time[None, :] > time[:, None]).to(tl.float32), w, "tf32x3")


@triton.jit
def decays_fast(w, time):
    """Return whether factors around the middle of the chunk could leave `e^{+-C MILD / 2}`."""
    CHUNK: tl.constexpr = time.shape[0]
    centre = tl.sum(tl.where(time[:, None] < CHUNK // 2, w, 0.0), 0)
    reach = tl.max(tl.maximum(-centre, centre - tl.sum(w, 0)), 0)
    return reach > CHUNK * MILD / 2


@triton.jit
def middle_factors(w, time, OWN: tl.constexpr):
    """Return the factors of reads and of writes around the middle of a chunk.

    With c the sum of w over the first half, a write has `e^{c - g_s}`, a read `e^{g_t - c}`, or,
    without OWN, as much before its own decay.
    """
    CHUNK: tl.constexpr = time.shape[0]
    row, column = time[:, None], time[None, :]
    passed = (column < row).to(tl.float32) - (column < CHUNK // 2).to(tl.float32)
    exclusive = dot(passed, w, "tf32x3")
    written = tl.exp(-exclusive - w)
    if OWN:
        exclusive += w
    return tl.exp(exclusive), written


@triton.jit
def halves(time, level):
    """Return which pairs and steps meet when blocks of `2^(level + 1)` steps are cut in the middle.

    `across[t, s]`: t is to the right of the cut that s is to the left of. `between[t, u]`: u is
    between t and the cut, on the same side; t itself is not.
    """
    side, right = time >> level, ((time >> level) & 1) == 1
    row, column = time[:, None], time[None, :]
    neighbours = (side >> 1)[:, None] == (side >> 1)[None, :]
    across = neighbours & right[:, None] & (right[None, :] == 0)
    nearer = (right[:, None] & (column < row)) | ((right[:, None] == 0) & (column > row))
    return across, ((side[:, None] == side[None, :]) & nearer).to(tl.float32)


@triton.jit
def cut_factors(between, w, OWN: tl.constexpr):
    """Return the factors of reads right of a cut, and of writes left of it, each at most 1."""
    distance = dot(between, w, "tf32x3")
    written = tl.exp(distance)
    if OWN:
        distance += w
    return tl.exp(distance), written


@triton.jit
def scores(
    x, x_first, x_stride, w, k, b, first, stride, inside, key, same, fast, time,
    K: tl.constexpr, OWN: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the decayed products of reads x with writes k and with writes b, `[C, C]` each.

    Each branch loads what it needs: nothing but the results is in registers around them.

    Args:
        x: Reads `[rows, K]`.
        x_first: Number of the first.
        x_stride: Distance from one to the next, in rows.
        w: Log-decays `[rows, K]`.
        k: Writes, like w.
        b: Writes, like w.
        first: Number of the first row of w, k and b.
        stride: Distance of their rows.
        inside: Which of the C steps exist.
        key: Columns.
        same: `[C, C]`, pairs of one segment.
        fast: From `decays_fast`.
        time: `0 .. C - 1`.
        K: Key width.
        OWN: Whether x at t sees the decay and the writes of step t, as r does and a does not.
        LEVELS: log2 of C.
        PRECISION: Of the products.
    """
    row, column = time[:, None], time[None, :]
    if fast:
        x_c = load_rows(x, x_first, x_stride, inside, key, K)
        w_c = load_decays(w, first, stride, inside, key, K)
        k_c = load_rows(k, first, stride, inside, key, K)
        b_c = load_rows(b, first, stride, inside, key, K)
        if OWN:
            pairs = row == column
            x_k = tl.where(pairs, tl.sum(x_c * k_c, 1)[:, None], 0.0)
            x_b = tl.where(pairs, tl.sum(x_c * b_c, 1)[:, None], 0.0)
        else:
            x_k, x_b = tl.zeros(same.shape, tl.float32), tl.zeros(same.shape, tl.float32)
        for level in range(LEVELS):
            across, between = halves(time, level)
            read, written = cut_factors(between, w_c, OWN)
            pairs = same & across
            x_k += tl.where(pairs, dot(x_c * read, tl.trans(k_c * written), PRECISION), 0.0)
            x_b += tl.where(pairs, dot(x_c * read, tl.trans(b_c * written), PRECISION), 0.0)
    else:
        x_c = load_rows(x, x_first, x_stride, inside, key, K)
        w_c = load_decays(w, first, stride, inside, key, K)
        k_c = load_rows(k, first, stride, inside, key, K)
        b_c = load_rows(b, first, stride, inside, key, K)
        read, written = middle_factors(w_c, time, OWN)
        pairs = same & ((column <= row) if OWN else (column < row))
        x_k = tl.where(pairs, dot(x_c * read, tl.trans(k_c * written), PRECISION), 0.0)
        x_b = tl.where(pairs, dot(x_c * read, tl.trans(b_c * written), PRECISION), 0.0)
    return x_k, x_b


@triton.jit
def scores_gradient(
    dx_k, dx_b, x, x_first, x_stride, w, k, b, first, stride, inside, key, same, fast, time,
    K: tl.constexpr, OWN: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the gradients of x, k, b, and of w in two parts, from those of both `scores`.

    The gradient of w at u is `direct_u` plus the sum of `net_t` over the later steps t > u of its
    segment. In `net`, pairs that do not span u are meant to cancel. They do: both sides are
    products of the same rounded factors. A chunk that decays fast has no `net`.

    Args:
        dx_k: Gradient of the scores with k.
        dx_b: Gradient of the scores with b.
        x: As in `scores`, like all that follow.
        x_first: Number of the first read.
        x_stride: Distance of the reads.
        w: Log-decays.
        k: Writes.
        b: Writes.
        first: First row of w, k and b.
        stride: Distance of their rows.
        inside: Which of the C steps exist.
        key: Columns.
        same: Pairs of one segment.
        fast: From `decays_fast`.
        time: `0 .. C - 1`.
        K: Key width.
        OWN: Whether x at t sees step t.
        LEVELS: log2 of C.
        PRECISION: Of the products.
    """
    row, column = time[:, None], time[None, :]
    if fast:
        x_c = load_rows(x, x_first, x_stride, inside, key, K)
        w_c = load_decays(w, first, stride, inside, key, K)
        k_c = load_rows(k, first, stride, inside, key, K)
        b_c = load_rows(b, first, stride, inside, key, K)
        dx, dk, db = tl.zeros_like(x_c), tl.zeros_like(x_c), tl.zeros_like(x_c)
        net, direct = tl.zeros_like(x_c), tl.zeros_like(x_c)
        if OWN:
            k_own = tl.sum(tl.where(row == column, dx_k, 0.0), 1)[:, None]
            b_own = tl.sum(tl.where(row == column, dx_b, 0.0), 1)[:, None]
            dx += k_own * k_c + b_own * b_c
            dk += k_own * x_c
            db += b_own * x_c
        for level in range(LEVELS):
            across, between = halves(time, level)
            read, written = cut_factors(between, w_c, OWN)
            k_side, b_side = tl.where(same & across, dx_k, 0.0), tl.where(same & across, dx_b, 0.0)
            x_level, k_level, b_level = x_c * read, k_c * written, b_c * written
            dx_level = dot(k_side, k_level, PRECISION) + dot(b_side, b_level, PRECISION)
            dk_level = dot(tl.trans(k_side), x_level, PRECISION)
            db_level = dot(tl.trans(b_side), x_level, PRECISION)
            dx += dx_level * read
            dk += dk_level * written
            db += db_level * written
            # Reads are to the right of a cut, writes to its left: no row has both.
            spanning = x_level * dx_level
            if OWN:
                direct += spanning
            spanning += k_level * dk_level + b_level * db_level
            direct += dot(tl.trans(between), spanning, "tf32x3")
    else:
        x_c = load_rows(x, x_first, x_stride, inside, key, K)
        w_c = load_decays(w, first, stride, inside, key, K)
        k_c = load_rows(k, first, stride, inside, key, K)
        b_c = load_rows(b, first, stride, inside, key, K)
        read, written = middle_factors(w_c, time, OWN)
        pairs = same & ((column <= row) if OWN else (column < row))
        k_side, b_side = tl.where(pairs, dx_k, 0.0), tl.where(pairs, dx_b, 0.0)
        x_c, k_c, b_c = x_c * read, k_c * written, b_c * written
        dx = dot(k_side, k_c, PRECISION) + dot(b_side, b_c, PRECISION)
        dk = dot(tl.trans(k_side), x_c, PRECISION)
        db = dot(tl.trans(b_side), x_c, PRECISION)
        net = -rounded(k_c, PRECISION) * dk - rounded(b_c, PRECISION) * db
        if OWN:
            net += rounded(x_c, PRECISION) * dx
            direct = net
        else:
            direct = net
            net += rounded(x_c, PRECISION) * dx
        dx, dk, db = dx * read, dk * written, db * written
    return dx, dk, db, net, direct


@triton.jit
def unit_inverse(A, time, LEVELS: tl.constexpr, PRECISION: tl.constexpr):
    """Return `(I - A)^-1` of a strictly lower triangular A.

    The inverse of two neighbouring blocks follows from theirs: with P, R the blocks' inverses and
    Q the part of A that couples them, it is `[[P, 0], [R Q P, R]]`. All factors are inverses of
    parts, and none grows where the whole does not; the powers in a Neumann series do, up to
    binomial coefficients when all keys are equal.
    """
    row, column = time[:, None], time[None, :]
    inverse = tl.where((row >> 1) == (column >> 1), A, 0.0) + (row == column).to(tl.float32)
    for level in tl.static_range(1, LEVELS):
        couple = ((row >> (level + 1)) == (column >> (level + 1))) & (
            (row >> level) != (column >> level)
        )
        half = dot(inverse, tl.where(couple, A, 0.0), PRECISION)
        inverse += dot(half, inverse, PRECISION)
    return inverse
