"""Kernels of the WKV-7 backward: gradients of the states in series, of the inputs in parallel."""

from __future__ import annotations

import triton
import triton.language as tl

from doxastic.kernels.triton.common import dot
from doxastic.kernels.triton.wkv7_chunk import (
    decays_fast,
    earlier_decays,
    fresh_time,
    later_decays,
    load_decays,
    load_matrix,
    load_rows,
    load_segments,
    scores,
    scores_gradient,
    store_matrix,
    store_rows,
    unit_inverse,
)


@triton.jit(do_not_specialize=["steps", "heads", "groups", "group_steps"])
def state_gradient_kernel(
    r, w, a, b, reset, dy, entry, exit, stored,
    steps, heads, groups, group_steps,
    K: tl.constexpr, V: tl.constexpr, Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr, LEVELS: tl.constexpr, SPAN: tl.constexpr, HAS_RESET: tl.constexpr,
    SUMMARY: tl.constexpr, PRECISION: tl.constexpr, SOLVE: tl.constexpr,
):  # fmt: skip
    """Take `BLOCK_V` rows of the gradient of one head's state back through one group of steps.

    Neither keys nor values have a part in it. With SUMMARY as in `forward_kernel`: further rows
    start from the identity and become the transposed M.

    Args:
        r: Query `[B, T, H, Q, K]`; w, a, b `[B, T, H, K]`.
        w: Log-decay.
        a: Removal vector.
        b: Replacement vector.
        reset: `[B, T]` uint8; unread unless HAS_RESET.
        dy: Gradient of the outputs, `[B, T, H, Q, V]`.
        entry: Gradients of the states at the end of every group, `[B H, groups, V, K]`; unread if
            SUMMARY.
        exit: Gradient of the initial state `[B H, V, K]`; if SUMMARY, see `forward_kernel`.
        stored: Gradients of the states at the end of every SPAN steps,
            `[B H, ceil(T / SPAN), V, K]`; unwritten if SUMMARY.
        steps: As in `forward_kernel`, like all that follow.
        heads: H.
        groups: Groups that a sequence is cut into.
        group_steps: Steps of all but the last.
        K: Key width.
        V: Value width.
        Q: Queries per step.
        BLOCK_K: K padded.
        BLOCK_V: Rows of the state per program.
        CHUNK: Steps per chunk.
        LEVELS: log2 of CHUNK.
        SPAN: A multiple of CHUNK.
        HAS_RESET: Whether there are resets.
        SUMMARY: See above.
        PRECISION: Of products.
        SOLVE: Of the triangular solve.
    """
    VALUE_BLOCKS: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    BLOCKS: tl.constexpr = (
        VALUE_BLOCKS + (BLOCK_K + BLOCK_V - 1) // BLOCK_V if SUMMARY else VALUE_BLOCKS
    )
    program = tl.program_id(0).to(tl.int64)
    block, group = (program % BLOCKS).to(tl.int32), (program // BLOCKS % groups).to(tl.int32)
    chain = program // BLOCKS // groups
    batch, head = chain // heads, chain % heads
    key = tl.arange(0, BLOCK_K)
    value = block * BLOCK_V + tl.arange(0, BLOCK_V)
    start = group * group_steps
    stop = tl.minimum(start + group_steps, steps)
    if SUMMARY:
        identity = value - VALUE_BLOCKS * BLOCK_V
        D = (identity[:, None] == key[None, :]).to(tl.float32)
    else:
        D = load_matrix(entry, chain * groups + group, value, key, V, K)
    chunks = (stop - start + CHUNK - 1) // CHUNK
    for i in range(chunks):
        first = start + (chunks - 1 - i) * CHUNK
        if not SUMMARY and ((first + CHUNK) % SPAN == 0 or first + CHUNK >= steps):
            spans = (steps + SPAN - 1) // SPAN
            store_matrix(stored, chain * spans + first // SPAN, value, key, V, K, D)
        time = fresh_time(first, CHUNK)
        inside = first + time < stop
        step = batch * steps + first
        token = step * heads + head
        flags, segment = load_segments(reset, step, inside, HAS_RESET)
        last = tl.sum(flags, 0)
        same = segment[:, None] == segment[None, :]
        entered, leaving = (segment == 0)[:, None], (segment == last)[:, None]
        w_c = load_decays(w, token, heads, inside, key, K)
        fast = decays_fast(w_c, time)

        # Where only b is written, both scores are the same and the second is compiled away.
        a_b, _ = scores(
            a, token, heads, w, b, b, token, heads, inside, key, same, fast, time,
            K, False, LEVELS, PRECISION,
        )  # fmt: skip
        inverse = unit_inverse(a_b, time, LEVELS, SOLVE)
        fall = tl.where(leaving, tl.exp(later_decays(w_c, time)), 0.0)
        b_c = load_rows(b, token, heads, inside, key, K) * fall
        dU = dot(b_c, tl.trans(D), PRECISION)
        kept = tl.where(last == 0, tl.exp(tl.sum(w_c, 0)), 0.0)
        D = D * kept[None, :]
        before = earlier_decays(w_c, time)
        for q in range(Q):
            row = token * Q + q
            r_b, _ = scores(
                r, row, heads * Q, w, b, b, token, heads, inside, key, same, fast, time,
                K, True, LEVELS, PRECISION,
            )  # fmt: skip
            r_c = load_rows(r, row, heads * Q, inside, key, K)
            r_c = tl.where(entered, r_c * tl.exp(before + w_c), 0.0)
            dy_c = load_rows(dy, row, heads * Q, inside, value, V)
            dU += dot(tl.trans(r_b), dy_c, PRECISION)
            D += dot(tl.trans(dy_c), r_c, PRECISION)
        dU = dot(tl.trans(inverse), dU, SOLVE)
        a_c = load_rows(a, token, heads, inside, key, K)
        a_c = tl.where(entered, a_c * tl.exp(before), 0.0)
        D += dot(tl.trans(dU), a_c, PRECISION)
    if SUMMARY:
        ROWS: tl.constexpr = BLOCKS * BLOCK_V
        store_matrix(exit, chain * groups + group, value, key, ROWS, BLOCK_K, D)
    elif group == 0:
        store_matrix(exit, chain, value, key, V, K, D)


@triton.jit(do_not_specialize=["steps", "heads", "tokens"])
def gradient_kernel(
    r, w, k, v, a, b, reset, dy, stored, dstored,
    dr, dw, dk, dv, da, db,
    steps, heads, tokens,
    K: tl.constexpr, V: tl.constexpr, Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    SPAN: tl.constexpr, LEVELS: tl.constexpr, HAS_RESET: tl.constexpr,
    PRECISION: tl.constexpr, SOLVE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of the inputs at SPAN steps of one head, from `BLOCK_V` value channels.

    Every gradient but that of v is a sum over value channels: each block of them writes its own
    share, one after the other in memory.

    Args:
        r: Query `[B, T, H, Q, K]`; w, k, a, b `[B, T, H, K]`, v `[B, T, H, V]`.
        w: Log-decay.
        k: Key.
        v: Value.
        a: Removal vector.
        b: Replacement vector.
        reset: `[B, T]` uint8; unread unless HAS_RESET.
        dy: Gradient of the outputs, `[B, T, H, Q, V]`.
        stored: States at the start of every SPAN steps, `[B H, ceil(T / SPAN), V, K]`.
        dstored: Gradients of the states at their end, likewise.
        dr: Receives `[value blocks, B, T, H, Q, K]`; dw, dk, da, db without Q.
        dw: Gradient of w.
        dk: Gradient of k.
        dv: Receives `[B, T, H, V]`.
        da: Gradient of a.
        db: Gradient of b.
        steps: T.
        heads: H.
        tokens: B T H.
        K: Key width.
        V: Value width.
        Q: Queries per step.
        BLOCK_K: K padded.
        BLOCK_V: Value channels per program.
        SPAN: Steps per program, one chunk.
        LEVELS: log2 of SPAN.
        HAS_RESET: Whether there are resets.
        PRECISION: Of products.
        SOLVE: Of the triangular solve.
    """
    VALUE_BLOCKS: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    spans = (steps + SPAN - 1) // SPAN
    program = tl.program_id(0).to(tl.int64)
    block, span = program % VALUE_BLOCKS, program // VALUE_BLOCKS % spans
    chain = program // VALUE_BLOCKS // spans
    batch, head = chain // heads, chain % heads
    time, key = tl.arange(0, SPAN), tl.arange(0, BLOCK_K)
    value = block.to(tl.int32) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = span * SPAN + time < steps
    step = batch * steps + span * SPAN
    token = step * heads + head
    flags, segment = load_segments(reset, step, inside, HAS_RESET)
    last = tl.sum(flags, 0)
    same = segment[:, None] == segment[None, :]
    entered, leaving = (segment == 0)[:, None], (segment == last)[:, None]
    w_c = load_decays(w, token, heads, inside, key, K)
    fast = decays_fast(w_c, time)

    # What the forward did inside this chunk.
    a_k, a_b = scores(
        a, token, heads, w, k, b, token, heads, inside, key, same, fast, time,
        K, False, LEVELS, PRECISION,
    )  # fmt: skip
    inverse = unit_inverse(a_b, time, LEVELS, SOLVE)
    before = earlier_decays(w_c, time)
    v_c = load_rows(v, token, heads, inside, value, V)
    S = load_matrix(stored, chain * spans + span, value, key, V, K)
    a_c = load_rows(a, token, heads, inside, key, K) * tl.exp(before)
    U = tl.where(entered, dot(a_c, tl.trans(S), PRECISION), 0.0) + dot(a_k, v_c, PRECISION)
    U = dot(inverse, U, SOLVE)

    # Through the state at the end.
    D = load_matrix(dstored, chain * spans + span, value, key, V, K)
    fall = tl.where(leaving, tl.exp(later_decays(w_c, time)), 0.0)
    k_c = load_rows(k, token, heads, inside, key, K) * fall
    b_c = load_rows(b, token, heads, inside, key, K) * fall
    dk_c, db_c = dot(v_c, D, PRECISION), dot(U, D, PRECISION)
    dv_c, dU = dot(k_c, tl.trans(D), PRECISION), dot(b_c, tl.trans(D), PRECISION)
    earlier = (same & (time[None, :] < time[:, None])).to(tl.float32)
    kept = tl.where(last == 0, tl.exp(tl.sum(w_c, 0)) * tl.sum(S * D, 0), 0.0)
    dw_c = dot(earlier, k_c * dk_c + b_c * db_c, "tf32x3") + kept[None, :]
    dk_c, db_c = dk_c * fall, db_c * fall

    # Through the outputs.
    net = tl.zeros([SPAN, BLOCK_K], tl.float32)
    for q in range(Q):
        row = token * Q + q
        r_k, r_b = scores(
            r, row, heads * Q, w, k, b, token, heads, inside, key, same, fast, time,
            K, True, LEVELS, PRECISION,
        )  # fmt: skip
        dy_c = load_rows(dy, row, heads * Q, inside, value, V)
        dv_c += dot(tl.trans(r_k), dy_c, PRECISION)
        dU += dot(tl.trans(r_b), dy_c, PRECISION)
        dr_k, dr_b = dot(dy_c, tl.trans(v_c), PRECISION), dot(dy_c, tl.trans(U), PRECISION)
        dr_c, dk_r, db_r, net_r, direct = scores_gradient(
            dr_k, dr_b, r, row, heads * Q, w, k, b, token, heads, inside, key, same, fast, time,
            K, True, LEVELS, PRECISION,
        )  # fmt: skip
        entry = tl.where(entered, dot(dy_c, S, PRECISION) * tl.exp(before + w_c), 0.0)
        store_rows(dr, block * tokens * Q + row, heads * Q, inside, key, K, dr_c + entry)
        dk_c += dk_r
        db_c += db_r
        entry *= load_rows(r, row, heads * Q, inside, key, K)
        net += net_r + entry
        dw_c += direct + entry

    # Through what was removed.
    dU = dot(tl.trans(inverse), dU, SOLVE)
    dv_c += dot(tl.trans(a_k), dU, PRECISION)
    da_k, da_b = dot(dU, tl.trans(v_c), PRECISION), dot(dU, tl.trans(U), PRECISION)
    da_c, dk_a, db_a, net_a, direct = scores_gradient(
        da_k, da_b, a, token, heads, w, k, b, token, heads, inside, key, same, fast, time,
        K, False, LEVELS, PRECISION,
    )  # fmt: skip
    entry = tl.where(entered, dot(dU, S, PRECISION) * tl.exp(before), 0.0)
    net += net_a + entry * load_rows(a, token, heads, inside, key, K)
    # Transposed, the earlier steps are the later ones of the segment.
    dw_c += direct + dot(tl.trans(earlier), net, "tf32x3")
    # The decay of a reset step meets an empty state.
    dw_c = tl.where(flags[:, None] == 0, dw_c, 0.0)
    share = block * tokens + token
    store_rows(dw, share, heads, inside, key, K, dw_c)
    store_rows(da, share, heads, inside, key, K, da_c + entry)
    store_rows(dk, share, heads, inside, key, K, dk_c + dk_a)
    store_rows(db, share, heads, inside, key, K, db_c + db_a)
    store_rows(dv, token, heads, inside, value, V, dv_c)
