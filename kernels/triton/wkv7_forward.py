"""Kernels of the WKV-7 forward: outputs and states, and the states between groups of chunks."""

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
    store_matrix,
    store_rows,
    unit_inverse,
)


@triton.jit(do_not_specialize=["steps", "heads", "groups", "group_steps"])
def forward_kernel(
    r, w, k, v, a, b, reset, entry, y, exit, stored,
    steps, heads, groups, group_steps,
    K: tl.constexpr, V: tl.constexpr, Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr, LEVELS: tl.constexpr, SPAN: tl.constexpr, HAS_RESET: tl.constexpr,
    STORE: tl.constexpr, SUMMARY: tl.constexpr, PRECISION: tl.constexpr, SOLVE: tl.constexpr,
):  # fmt: skip
    """Take `BLOCK_V` rows of one head's state through one group of steps, chunk by chunk.

    Rows of the state are independent, so that further rows can start from the identity and write
    no values: at the end of the group they are the matrix M of `S_end = S_start M + N`. With
    SUMMARY the programs compute these M and N instead of outputs.

    Args:
        r: Query `[B, T, H, Q, K]`; w, k, a, b `[B, T, H, K]`, v `[B, T, H, V]`, any float dtype.
        w: Log-decay.
        k: Key.
        v: Value.
        a: Removal vector.
        b: Replacement vector.
        reset: `[B, T]` uint8; unread unless HAS_RESET.
        entry: States at the start of every group, `[B H, groups, V, K]`; unread if SUMMARY.
        y: Outputs `[B, T, H, Q, V]`.
        exit: The last state `[B H, V, K]`; if SUMMARY, N above M, of every group:
            `[B H, groups, rows, BLOCK_K]`.
        stored: States at the start of every SPAN steps, `[B H, ceil(T / SPAN), V, K]`, if STORE.
        steps: T.
        heads: H.
        groups: Groups that a sequence is cut into.
        group_steps: Steps of all but the last, a multiple of SPAN.
        K: Key width; V, Q likewise.
        V: Value width.
        Q: Queries per step.
        BLOCK_K: K padded.
        BLOCK_V: Rows of the state per program.
        CHUNK: Steps per chunk.
        LEVELS: log2 of CHUNK.
        SPAN: A multiple of CHUNK.
        HAS_RESET: Whether there are resets.
        STORE: Whether to keep states for the backward.
        SUMMARY: See above.
        PRECISION: Of products; see `dot`.
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
        S = (identity[:, None] == key[None, :]).to(tl.float32)
    else:
        S = load_matrix(entry, chain * groups + group, value, key, V, K)
    for first in range(start, stop, CHUNK):
        if STORE and first % SPAN == 0:
            spans = (steps + SPAN - 1) // SPAN
            store_matrix(stored, chain * spans + first // SPAN, value, key, V, K, S)
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

        # What is removed from the entry state and from earlier writes.
        a_k, a_b = scores(
            a, token, heads, w, k, b, token, heads, inside, key, same, fast, time,
            K, False, LEVELS, PRECISION,
        )  # fmt: skip
        v_c = load_rows(v, token, heads, inside, value, V)
        before = earlier_decays(w_c, time)
        a_c = load_rows(a, token, heads, inside, key, K) * tl.exp(before)
        # Selected, not multiplied by 0: an old state may not be finite.
        U = tl.where(entered, dot(a_c, tl.trans(S), PRECISION), 0.0) + dot(a_k, v_c, PRECISION)
        U = dot(unit_inverse(a_b, time, LEVELS, SOLVE), U, SOLVE)
        if not SUMMARY:
            for q in range(Q):
                row = token * Q + q
                r_k, r_b = scores(
                    r, row, heads * Q, w, k, b, token, heads, inside, key, same, fast, time,
                    K, True, LEVELS, PRECISION,
                )  # fmt: skip
                r_c = load_rows(r, row, heads * Q, inside, key, K) * tl.exp(before + w_c)
                out = tl.where(entered, dot(r_c, tl.trans(S), PRECISION), 0.0)
                out += dot(r_k, v_c, PRECISION) + dot(r_b, U, PRECISION)
                store_rows(y, row, heads * Q, inside, value, V, out)
        # What the state keeps and receives.
        fall = tl.where(leaving, tl.exp(later_decays(w_c, time)), 0.0)
        kept = tl.exp(tl.sum(w_c, 0))
        k_c = load_rows(k, token, heads, inside, key, K) * fall
        b_c = load_rows(b, token, heads, inside, key, K) * fall
        S = tl.where(last == 0, S * kept[None, :], 0.0) + dot(tl.trans(v_c), k_c, PRECISION)
        S += dot(tl.trans(U), b_c, PRECISION)
    if SUMMARY:
        ROWS: tl.constexpr = BLOCKS * BLOCK_V
        store_matrix(exit, chain * groups + group, value, key, ROWS, BLOCK_K, S)
    elif group == groups - 1:
        store_matrix(exit, chain, value, key, V, K, S)


@triton.jit(do_not_specialize=["groups"])
def group_kernel(
    state, summary, entry, groups,
    K: tl.constexpr, V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """Write the states before every group, `S <- S M + N` from group to group.

    Args:
        state: The state before the first group, `[B H, V, K]`; the last one's if REVERSE.
        summary: N above M of every group, `[B H, groups, rows, BLOCK_K]`.
        entry: Receives the states, `[B H, groups, V, K]`.
        groups: Number of groups.
        K: Key width.
        V: Value width.
        BLOCK_K: K padded.
        BLOCK_V: Rows of the state per program.
        REVERSE: From the last group to the first.
    """
    VALUE_BLOCKS: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    ROWS: tl.constexpr = (VALUE_BLOCKS + (BLOCK_K + BLOCK_V - 1) // BLOCK_V) * BLOCK_V
    program = tl.program_id(0).to(tl.int64)
    chain = program // VALUE_BLOCKS
    key = tl.arange(0, BLOCK_K)
    value = (program % VALUE_BLOCKS).to(tl.int32) * BLOCK_V + tl.arange(0, BLOCK_V)
    S = load_matrix(state, chain, value, key, V, K)
    for i in range(groups):
        group = chain * groups + (groups - 1 - i if REVERSE else i)
        store_matrix(entry, group, value, key, V, K, S)
        N = load_matrix(summary, group, value, key, ROWS, BLOCK_K)
        M = load_matrix(summary, group, VALUE_BLOCKS * BLOCK_V + key, key, ROWS, BLOCK_K)
        S = dot(S, M, "tf32x3") + N
