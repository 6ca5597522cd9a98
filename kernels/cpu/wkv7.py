"""WKV-7 on the CPU, compiled by numba. Source of the equations: kernels/README.md.

Raw functions on contiguous float32 tensors; `kernels/wkv7.py` holds the public ones. Each (batch,
head) pair is a chain of its own. The forward keeps a chain's state as [K, V] with vectors along
V, so that both of its products with the state are sums down the columns; the backward keeps it
as [V, K]. Widths are padded with zeros to whole vectors.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import functional as F

from doxastic.kernels.cpu.common import ZERO, compiled, padded, vectors, whole
from doxastic.kernels.cpu.simd import (
    LANES,
    exp,
    flags,
    floats,
    fma,
    load,
    mul,
    products,
    splat,
    spread,
    store,
    total,
)
from doxastic.kernels.cpu.threads import run

# The forward stores the state every CHUNK steps; the backward recomputes those in between.
CHUNK = 16


@compiled
def _exp(first, last, p_x, p_y):
    x, y = floats(p_x), floats(p_y)
    for i in range(first * LANES, last * LANES, LANES):
        store(y, i, exp(load(x, i)))


def _decay(w: Tensor) -> Tensor:
    """Return e^w for a contiguous w whose last axis is whole vectors.

    Not by PyTorch: with several threads its own would go on spinning for work, on the cores that
    the kernel's threads need next.
    """
    decay = torch.empty_like(w)
    run(_exp, w.numel() // LANES, 4 * w.numel(), w, decay)
    return decay


@compiled
def _forward(
    first,
    last,
    H,
    T,
    keys,
    values,
    p_r,
    p_decay,
    p_k,
    p_v,
    p_a,
    p_b,
    p_state,
    p_reset,
    p_y,
    p_u,
    p_stored,
    p_final,
):
    K, V = LANES * len(keys), LANES * len(values)
    r, decay, k, v, a, b = (
        floats(p_r),
        floats(p_decay),
        floats(p_k),
        floats(p_v),
        floats(p_a),
        floats(p_b),
    )
    state, y, u, stored, final = (
        floats(p_state),
        floats(p_y),
        floats(p_u),
        floats(p_stored),
        floats(p_final),
    )
    reset = flags(p_reset)
    chunks = -(-T // CHUNK)
    S = np.empty(K * V, np.float32)
    removed = np.empty(V, np.float32)
    for chain in range(first, last):
        row, h = chain // H, chain % H
        for i in range(K):
            for j in range(V):
                S[i * V + j] = state[(chain * V + j) * K + i]
        o = (row * T * H + h) * K
        for j in range(0, V, LANES):
            total_ = splat(ZERO)
            for i in range(K):
                total_ = fma(spread(a, o + i), load(S, i * V + j), total_)
            store(removed, j, total_)
        for t in range(T):
            o = ((row * T + t) * H + h) * K
            p = ((row * T + t) * H + h) * V
            if t % CHUNK == 0:
                c = ((row * chunks + t // CHUNK) * H + h) * V * K
                for j in range(V):
                    for i in range(K):
                        stored[c + j * K + i] = S[i * V + j]
            if reset[row * T + t]:
                S[:] = ZERO
                removed[:] = ZERO
            # One pass over the state makes y_t and already u_{t+1} = S_t a_{t+1}.
            o_next = o + H * K if t + 1 < T else o
            for j in range(0, V, LANES):
                u_t, v_t = load(removed, j), load(v, p + j)
                store(u, p + j, u_t)
                y_t, u_next = splat(ZERO), splat(ZERO)
                for i in range(K):
                    s = mul(load(S, i * V + j), spread(decay, o + i))
                    s = fma(spread(b, o + i), u_t, s)
                    s = fma(spread(k, o + i), v_t, s)
                    store(S, i * V + j, s)
                    y_t = fma(spread(r, o + i), s, y_t)
                    u_next = fma(spread(a, o_next + i), s, u_next)
                store(y, p + j, y_t)
                store(removed, j, u_next)
        for i in range(K):
            for j in range(V):
                final[(chain * V + j) * K + i] = S[i * V + j]


@compiled
def _recompute(
    X, entry, count, row, h, start, H, T, keys, values, decay, k, v, b, u, reset, stored
):
    """Rebuild the states of one chunk: X[s + 1] after step s, entry[s] where step s starts."""
    K, V = LANES * len(keys), LANES * len(values)
    size = V * K
    c = ((row * (-(-T // CHUNK)) + start // CHUNK) * H + h) * size
    for e in range(size):
        X[e] = stored[c + e]
    for s in range(count):
        t = start + s
        entry[s] = (CHUNK + 1) * size if reset[row * T + t] else s * size
        o = ((row * T + t) * H + h) * K
        p = ((row * T + t) * H + h) * V
        for i in range(0, K, LANES):
            w_t, k_t, b_t = load(decay, o + i), load(k, o + i), load(b, o + i)
            for j in range(V):
                x = mul(load(X, entry[s] + j * K + i), w_t)
                x = fma(spread(u, p + j), b_t, x)
                x = fma(spread(v, p + j), k_t, x)
                store(X, (s + 1) * size + j * K + i, x)


@compiled
def _backward(
    first, last, H, T, keys, values,
    p_dy, p_dfinal, p_r, p_decay, p_k, p_v, p_a, p_b, p_reset, p_u, p_stored,
    p_dr, p_dw, p_dk, p_dv, p_da, p_db, p_dstate,
):  # fmt: skip
    K, V = LANES * len(keys), LANES * len(values)
    dy, dfinal, r, decay, k, v = (
        floats(p_dy),
        floats(p_dfinal),
        floats(p_r),
        floats(p_decay),
        floats(p_k),
        floats(p_v),
    )
    a, b, u, stored, dr, dw = (
        floats(p_a),
        floats(p_b),
        floats(p_u),
        floats(p_stored),
        floats(p_dr),
        floats(p_dw),
    )
    dk, dv, da, db, dstate = (
        floats(p_dk),
        floats(p_dv),
        floats(p_da),
        floats(p_db),
        floats(p_dstate),
    )
    reset = flags(p_reset)
    size = V * K
    # The last slot stays zero: the state that a reset step starts from.
    X = np.zeros((CHUNK + 2) * size, np.float32)
    entry = np.empty(CHUNK, np.int64)
    D = np.empty(size, np.float32)
    du = np.empty(V, np.float32)
    for chain in range(first, last):
        row, h = chain // H, chain % H
        for e in range(size):
            D[e] = dfinal[chain * size + e]
        for c in range(-(-T // CHUNK) - 1, -1, -1):
            start = c * CHUNK
            count = min(CHUNK, T - start)
            _recompute(
                X, entry, count, row, h, start, H, T, keys, values, decay, k, v, b, u, reset, stored
            )
            for s in range(count - 1, -1, -1):
                t = start + s
                o = ((row * T + t) * H + h) * K
                p = ((row * T + t) * H + h) * V
                for j in range(V):
                    dy_j = spread(dy, p + j)
                    for i in range(0, K, LANES):
                        e = j * K + i
                        store(D, e, fma(dy_j, load(r, o + i), load(D, e)))
                for j in range(0, V, LANES):
                    store(du, j, products(b, o, 0, D, j * K, K, K))
                    store(dv, p + j, products(k, o, 0, D, j * K, K, K))
                before, after = entry[s], (s + 1) * size
                for i in range(0, K, LANES):
                    dr_t, dw_t, dk_t = splat(ZERO), splat(ZERO), splat(ZERO)
                    da_t, db_t = splat(ZERO), splat(ZERO)
                    w_t, a_t = load(decay, o + i), load(a, o + i)
                    for j in range(V):
                        d, x = load(D, j * K + i), load(X, before + j * K + i)
                        dr_t = fma(load(X, after + j * K + i), spread(dy, p + j), dr_t)
                        db_t = fma(d, spread(u, p + j), db_t)
                        dk_t = fma(d, spread(v, p + j), dk_t)
                        dw_t = fma(d, x, dw_t)
                        da_t = fma(x, spread(du, j), da_t)
                        store(D, j * K + i, fma(d, w_t, mul(a_t, spread(du, j))))
                    store(dr, o + i, dr_t)
                    store(dw, o + i, mul(dw_t, w_t))
                    store(dk, o + i, dk_t)
                    store(da, o + i, da_t)
                    store(db, o + i, db_t)
                if reset[row * T + t]:
                    D[:] = ZERO
        for e in range(size):
            dstate[chain * size + e] = D[e]


@compiled
def _step(
    first, last, H, keys, values, p_r, p_decay, p_k, p_v, p_a, p_b, p_state, p_reset, p_y, p_new
):
    K, V = LANES * len(keys), LANES * len(values)
    r, decay, k, v, a, b = (
        floats(p_r),
        floats(p_decay),
        floats(p_k),
        floats(p_v),
        floats(p_a),
        floats(p_b),
    )
    state, y, new = floats(p_state), floats(p_y), floats(p_new)
    reset = flags(p_reset)
    for chain in range(first, last):
        o, p = chain * K, chain * V
        # A branch, not a product: neither NaN nor infinity of the old state passes a reset.
        fresh = reset[chain // H]
        for j in range(V):
            e = (p + j) * K
            u = splat(ZERO)
            if not fresh:
                for i in range(0, K, LANES):
                    u = fma(load(state, e + i), load(a, o + i), u)
            u, v_j, y_j = splat(total(u)), spread(v, p + j), splat(ZERO)
            for i in range(0, K, LANES):
                s = splat(ZERO)
                if not fresh:
                    s = mul(load(state, e + i), load(decay, o + i))
                s = fma(u, load(b, o + i), s)
                s = fma(v_j, load(k, o + i), s)
                store(new, e + i, s)
                y_j = fma(s, load(r, o + i), y_j)
            y[p + j] = total(y_j)


def wkv7_forward(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y `[B,T,H,V]`, the final state, u = S a `[B,T,H,V]`, and the stored chunk states.

    Args:
        r: Query; like w (log-decay), k, a, b of shape `[B, T, H, K]`, float32 contiguous.
        w: Log-decay, at most 0.
        k: Key.
        v: Value `[B, T, H, V]`.
        a: Removal vector.
        b: Replacement vector.
        state: `[B, H, V, K]`.
        reset: `[B, T]` bool.
    """
    B, T, H, K, V = *r.shape, v.shape[-1]
    kp, vp = whole(K), whole(V)
    r, w, k, a, b = (padded(x, kp) for x in (r, w, k, a, b))
    decay = _decay(w)
    v, state = padded(v, vp), _pad_state(state, vp, kp)
    y, u, final = torch.empty_like(v), torch.empty_like(v), torch.empty_like(state)
    stored = state.new_empty(B, -(-T // CHUNK), H, vp, kp)
    tensors = (r, decay, k, v, a, b, state, reset, y, u, stored, final)
    run(_forward, B * H, 5 * v.numel() * kp, H, T, vectors(kp), vectors(vp), *tensors)
    return y[..., :V].contiguous(), final[..., :V, :K].contiguous(), u, stored


def wkv7_backward(
    dy: Tensor, dfinal: Tensor,
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    reset: Tensor, u: Tensor, stored: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of r, w, k, v, a, b and of the initial state.

    Args:
        dy: Gradient of y, `[B, T, H, V]`.
        dfinal: Gradient of the final state, `[B, H, V, K]`.
        r: As in `wkv7_forward`, like w, k, v, a, b and reset.
        w: Log-decay.
        k: Key.
        v: Value.
        a: Removal vector.
        b: Replacement vector.
        reset: `[B, T]` bool.
        u: From `wkv7_forward`.
        stored: From `wkv7_forward`.
    """
    B, T, H, K, V = *r.shape, v.shape[-1]
    kp, vp = whole(K), whole(V)
    r, w, k, a, b = (padded(x, kp) for x in (r, w, k, a, b))
    decay = _decay(w)
    v, dy, dfinal = padded(v, vp), padded(dy, vp), _pad_state(dfinal, vp, kp)
    dr, dw, dk, da, db = (torch.empty_like(r) for _ in range(5))
    dv, dstate = torch.empty_like(v), torch.empty_like(dfinal)
    tensors = (
        dy, dfinal, r, decay, k, v, a, b, reset, u, stored,
        dr, dw, dk, dv, da, db, dstate,
    )  # fmt: skip
    run(_backward, B * H, 13 * v.numel() * kp, H, T, vectors(kp), vectors(vp), *tensors)
    dr, dw, dk, da, db = (x[..., :K].contiguous() for x in (dr, dw, dk, da, db))
    return dr, dw, dk, dv[..., :V].contiguous(), da, db, dstate[..., :V, :K].contiguous()


def wkv7_step(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    state: Tensor, reset: Tensor, inplace: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return y `[B, H, V]` and the new state of a single step, without gradients.

    Args:
        r: Query; like w, k, a, b of shape `[B, H, K]`, float32 contiguous.
        w: Log-decay.
        k: Key.
        v: Value `[B, H, V]`.
        a: Removal vector.
        b: Replacement vector.
        state: `[B, H, V, K]`.
        reset: `[B]` bool.
        inplace: Write the new state over the old one and return that tensor.
    """
    B, H, K, V = *r.shape, v.shape[-1]
    kp, vp = whole(K), whole(V)
    r, w, k, a, b = (padded(x, kp) for x in (r, w, k, a, b))
    decay = _decay(w)
    v, old = padded(v, vp), _pad_state(state, vp, kp)
    y, new = torch.empty_like(v), old if inplace else torch.empty_like(old)
    tensors = (r, decay, k, v, a, b, old, reset, y, new)
    run(_step, B * H, 5 * v.numel() * kp, H, vectors(kp), vectors(vp), *tensors)
    new = new[..., :V, :K]
    if inplace:
        if new.data_ptr() != state.data_ptr():
            state.copy_(new)
        elif not state.is_inference():
            increment_version(state)
    return y[..., :V].contiguous(), state if inplace else new.contiguous()


def _pad_state(state: Tensor, rows: int, columns: int) -> Tensor:
    """Return `[B, H, V, K]` zero-padded to whole vectors, contiguous."""
    V, K = state.shape[-2:]
    if (rows, columns) == (V, K):
        return state.contiguous()
    return F.pad(state, (0, columns - K, 0, rows - V))
