"""WKV-7 and decayed moments on the CPU, compiled by numba. Source of the equations: README.md.

Raw functions on contiguous float32 tensors; `wkv7.py` and `moments.py` hold the public ones. Each
(batch, head) pair is a chain of its own. The forward keeps a chain's state as [K, V] with vectors
along V, so that both of its products with the state are sums down the columns; the backward keeps
it as [V, K]. Widths are padded with zeros to whole vectors.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional as F

from doxastic.kernels.simd import LANES, add, div, exp, fma, load, mul, splat, spread, store, sub, total
from doxastic.kernels.threads import run

# The forward stores the state every CHUNK steps; the backward recomputes those in between.
CHUNK = 16
ZERO = np.float32(0.0)
ONE = np.float32(1.0)
TWO = np.float32(2.0)

compiled = njit(cache=True, nogil=True, error_model="numpy")


def flat(tensor: Tensor) -> np.ndarray:
    """Return the values of a contiguous CPU tensor as a one-dimensional array, without a copy."""
    return tensor.detach().numpy().reshape(-1)


def padded(tensor: Tensor, width: int) -> Tensor:
    """Return the tensor with its last axis zero-padded to `width`, contiguous."""
    missing = width - tensor.shape[-1]
    return F.pad(tensor, (0, missing)) if missing else tensor.contiguous()


def _whole(width: int) -> int:
    return -(-width // LANES) * LANES


@compiled
def _forward(first, last, H, T, K, V, r, decay, k, v, a, b, state, reset, y, u, stored, final):
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
def _recompute(X, entry, count, row, h, start, H, T, K, V, decay, k, v, b, u, reset, stored):
    """Rebuild the states of one chunk: X[s + 1] after step s, entry[s] where step s starts."""
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
    first, last, H, T, K, V,
    dy, dfinal, r, decay, k, v, a, b, reset, u, stored,
    dr, dw, dk, dv, da, db, dstate,
):  # fmt: skip
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
            _recompute(X, entry, count, row, h, start, H, T, K, V, decay, k, v, b, u, reset, stored)
            for s in range(count - 1, -1, -1):
                t = start + s
                o = ((row * T + t) * H + h) * K
                p = ((row * T + t) * H + h) * V
                for j in range(V):
                    du_t, dv_t, dy_t = splat(ZERO), splat(ZERO), spread(dy, p + j)
                    for i in range(0, K, LANES):
                        d = fma(dy_t, load(r, o + i), load(D, j * K + i))
                        store(D, j * K + i, d)
                        du_t = fma(d, load(b, o + i), du_t)
                        dv_t = fma(d, load(k, o + i), dv_t)
                    du[j] = total(du_t)
                    dv[p + j] = total(dv_t)
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
def _step(first, last, H, K, V, r, decay, k, v, a, b, state, reset, y, new):
    for chain in range(first, last):
        o, p = chain * K, chain * V
        keep = splat(ZERO if reset[chain // H] else ONE)
        for j in range(V):
            e = (p + j) * K
            u = splat(ZERO)
            for i in range(0, K, LANES):
                u = fma(mul(load(state, e + i), keep), load(a, o + i), u)
            u, v_j, y_j = splat(total(u)), spread(v, p + j), splat(ZERO)
            for i in range(0, K, LANES):
                s = mul(mul(load(state, e + i), keep), load(decay, o + i))
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
    kp, vp = _whole(K), _whole(V)
    r, decay, k, a, b = (padded(x, kp) for x in (r, w.exp(), k, a, b))
    v, state = padded(v, vp), _pad_state(state, vp, kp)
    y, u, final = torch.empty_like(v), torch.empty_like(v), torch.empty_like(state)
    stored = state.new_empty(B, -(-T // CHUNK), H, vp, kp)
    tensors = (r, decay, k, v, a, b, state, reset, y, u, stored, final)
    run(_forward, B * H, 5 * v.numel() * kp, H, T, kp, vp, *map(flat, tensors))
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
    kp, vp = _whole(K), _whole(V)
    r, decay, k, a, b = (padded(x, kp) for x in (r, w.exp(), k, a, b))
    v, dy, dfinal = padded(v, vp), padded(dy, vp), _pad_state(dfinal, vp, kp)
    dr, dw, dk, da, db = (torch.empty_like(r) for _ in range(5))
    dv, dstate = torch.empty_like(v), torch.empty_like(dfinal)
    tensors = (
        dy, dfinal, r, decay, k, v, a, b, reset, u, stored,
        dr, dw, dk, dv, da, db, dstate,
    )  # fmt: skip
    run(_backward, B * H, 13 * v.numel() * kp, H, T, kp, vp, *map(flat, tensors))
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
    kp, vp = _whole(K), _whole(V)
    r, decay, k, a, b = (padded(x, kp) for x in (r, w.exp(), k, a, b))
    v, old = padded(v, vp), _pad_state(state, vp, kp)
    y, new = torch.empty_like(v), old if inplace else torch.empty_like(old)
    tensors = (r, decay, k, v, a, b, old, reset, y, new)
    run(_step, B * H, 5 * v.numel() * kp, H, kp, vp, *map(flat, tensors))
    new = new[..., :V, :K]
    if inplace and new.data_ptr() != state.data_ptr():
        state.copy_(new)
    return y[..., :V].contiguous(), state if inplace else new.contiguous()


def _pad_state(state: Tensor, rows: int, columns: int) -> Tensor:
    """Return `[B, H, V, K]` zero-padded to whole vectors, contiguous."""
    V, K = state.shape[-2:]
    if (V, K) == (rows, columns):
        return state.contiguous()
    return F.pad(state, (0, columns - K, 0, rows - V))


@compiled
def _moments(first, last, T, M, value, kappa, omega, state, reset, mean, spread_, evidence, final):
    for row in range(first, last):
        for m in range(0, M, LANES):
            c = row * 3 * M + m
            n, mu, var = load(state, c), load(state, c + M), load(state, c + 2 * M)
            for t in range(T):
                o = (row * T + t) * M + m
                if reset[row * T + t]:
                    n, mu, var = splat(ZERO), splat(ZERO), splat(ZERO)
                weight = exp(load(kappa, o))
                kept = mul(n, exp(load(omega, o)))
                n = add(kept, weight)
                # Not 1 - share, which has no digits left where one step outweighs the past.
                share, rest = div(weight, n), div(kept, n)
                delta = sub(load(value, o), mu)
                mu = fma(share, delta, mu)
                var = mul(rest, fma(share, mul(delta, delta), var))
                store(mean, o, mu)
                store(spread_, o, var)
                store(evidence, o, n)
            store(final, c, n)
            store(final, c + M, mu)
            store(final, c + 2 * M, var)


@compiled
def _moments_backward(
    first, last, T, M,
    dmean, dspread, devidence, dfinal, value, kappa, omega, state, reset, mean, spread_, evidence,
    dvalue, dkappa, domega, dstate,
):  # fmt: skip
    for row in range(first, last):
        for m in range(0, M, LANES):
            c = row * 3 * M + m
            dn, dmu, dvar = load(dfinal, c), load(dfinal, c + M), load(dfinal, c + 2 * M)
            for t in range(T - 1, -1, -1):
                o = (row * T + t) * M + m
                if reset[row * T + t]:
                    n, mu, var = splat(ZERO), splat(ZERO), splat(ZERO)
                elif t > 0:
                    n, mu, var = load(evidence, o - M), load(mean, o - M), load(spread_, o - M)
                else:
                    n, mu, var = load(state, c), load(state, c + M), load(state, c + 2 * M)
                dmu = add(dmu, load(dmean, o))
                dvar = add(dvar, load(dspread, o))
                dn = add(dn, load(devidence, o))
                decay, weight = exp(load(omega, o)), exp(load(kappa, o))
                share = div(weight, load(evidence, o))
                rest = div(mul(n, decay), load(evidence, o))
                delta = sub(load(value, o), mu)
                square = mul(delta, delta)
                # spread_t = rest (var + share delta^2);  mean_t = mu + share delta
                dshare = fma(dmu, delta, mul(dvar, sub(mul(rest, square), fma(share, square, var))))
                ddelta = mul(share, fma(mul(dvar, rest), mul(splat(TWO), delta), dmu))
                # share = weight / evidence;  evidence = n decay + weight
                dweight = div(dshare, load(evidence, o))
                dn = sub(dn, mul(dweight, share))
                store(dvalue, o, ddelta)
                store(dkappa, o, mul(add(dweight, dn), weight))
                store(domega, o, mul(dn, mul(n, decay)))
                dmu, dvar, dn = sub(dmu, ddelta), mul(dvar, rest), mul(dn, decay)
                if reset[row * T + t]:
                    dn, dmu, dvar = splat(ZERO), splat(ZERO), splat(ZERO)
            store(dstate, c, dn)
            store(dstate, c + M, dmu)
            store(dstate, c + 2 * M, dvar)


def moments_forward(
    value: Tensor, log_weight: Tensor, log_decay: Tensor, state: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, spread and evidence `[B, T, M]` and the final state `[B, 3, M]`.

    Args:
        value: `[B, T, M]`, float32 contiguous, like log_weight and log_decay.
        log_weight: Log of each value's evidence.
        log_decay: At most 0; applied to what came before the value.
        state: `[B, 3, M]`: evidence, mean, spread.
        reset: `[B, T]` bool.
    """
    B, T, M = value.shape
    width = _whole(M)
    value, kappa, omega, state = (padded(x, width) for x in (value, log_weight, log_decay, state))
    mean, spread_, evidence = (torch.empty_like(value) for _ in range(3))
    final = torch.empty_like(state)
    tensors = (value, kappa, omega, state, reset, mean, spread_, evidence, final)
    run(_moments, B, 20 * value.numel(), T, width, *map(flat, tensors))
    mean, spread_, evidence, final = (
        x[..., :M].contiguous() for x in (mean, spread_, evidence, final)
    )
    return mean, spread_, evidence, final


def moments_backward(
    dmean: Tensor, dspread: Tensor, devidence: Tensor, dfinal: Tensor,
    value: Tensor, log_weight: Tensor, log_decay: Tensor, state: Tensor, reset: Tensor,
    mean: Tensor, spread_: Tensor, evidence: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of value, log_weight, log_decay and the initial state.

    Args:
        dmean: Gradient of mean, `[B, T, M]`; likewise dspread and devidence.
        dspread: Gradient of spread.
        devidence: Gradient of evidence.
        dfinal: Gradient of the final state, `[B, 3, M]`.
        value: As given to `moments_forward`, like log_weight, log_decay, state and reset.
        log_weight: Log of each value's evidence.
        log_decay: Log-decay.
        state: Initial state.
        reset: `[B, T]` bool.
        mean: As returned by `moments_forward`, like spread_ and evidence.
        spread_: Weighted variance.
        evidence: Sum of weights.
    """
    B, T, M = value.shape
    width = _whole(M)
    inputs = [
        padded(x, width)
        for x in (dmean, dspread, devidence, dfinal, value, log_weight, log_decay, state)
    ]
    outputs = [padded(x, width) for x in (mean, spread_)]
    if width != M:
        # The padding carried the weight e^0, so its evidence is not zero.
        evidence = F.pad(evidence, (0, width - M), value=1.0)
    dvalue, dkappa, domega = (torch.empty_like(inputs[0]) for _ in range(3))
    dstate = torch.empty_like(inputs[3])
    tensors = (*inputs, reset, *outputs, evidence, dvalue, dkappa, domega, dstate)
    run(_moments_backward, B, 40 * dvalue.numel(), T, width, *map(flat, tensors))
    dvalue, dkappa, domega, dstate = (
        x[..., :M].contiguous() for x in (dvalue, dkappa, domega, dstate)
    )
    return dvalue, dkappa, domega, dstate
