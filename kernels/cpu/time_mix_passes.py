"""What lies before and after WKV-7 in the time mix, forwards and backwards: a pass each.

Every pass goes over the heads `first` to `last` of one row `[T, H, K]` of a batch.
"""

from __future__ import annotations

import math

import numpy as np

from doxastic.kernels.cpu.common import ONE, ZERO, compiled
from doxastic.kernels.cpu.simd import (
    LANES,
    add,
    exp,
    floats,
    fma,
    load,
    mul,
    sigmoid,
    splat,
    store,
    sub,
    total,
)

# log w = -e^(-1/2) sigmoid(decay)
SCALE = np.float32(-math.exp(-0.5))
# As torch.nn.functional.normalize.
SMALLEST_NORM = np.float32(1e-12)


@compiled
def _inverse_norm(k, k_k, o, c, K):
    """Return 1 / |k k_k| of the head that starts at k[o] and k_k[c]."""
    square = splat(ZERO)
    for i in range(0, K, LANES):
        x = mul(load(k, o + i), load(k_k, c + i))
        square = fma(x, x, square)
    return ONE / max(np.sqrt(total(square)), SMALLEST_NORM)


@compiled
def before(row, first, last, T, H, keys, p_decay, p_k, p_rate, p_k_k, p_k_a, p_w, p_key, p_a, p_b):
    """Write the decay, the written key, the removal and the replacement vector."""
    K = LANES * len(keys)
    decay, k, rate, k_k, k_a = (
        floats(p_decay),
        floats(p_k),
        floats(p_rate),
        floats(p_k_k),
        floats(p_k_a),
    )
    w, key, a, b = (floats(p_w), floats(p_key), floats(p_a), floats(p_b))
    one = splat(ONE)
    for t in range(T):
        for h in range(first, last):
            o, c = ((row * T + t) * H + h) * K, h * K
            scale = splat(_inverse_norm(k, k_k, o, c, K))
            for i in range(0, K, LANES):
                k_i, alpha = load(k, o + i), sigmoid(load(rate, o + i))
                kk = mul(mul(k_i, load(k_k, c + i)), scale)
                store(w, o + i, exp(mul(splat(SCALE), sigmoid(load(decay, o + i)))))
                store(key, o + i, mul(k_i, fma(sub(alpha, one), load(k_a, c + i), one)))
                store(a, o + i, sub(splat(ZERO), kk))
                store(b, o + i, mul(kk, alpha))


@compiled
def statistics(y, o, K, eps):
    """Return the mean and the inverse deviation of the head that starts at y[o]."""
    sum_ = splat(ZERO)
    for i in range(0, K, LANES):
        sum_ = add(sum_, load(y, o + i))
    mean = total(sum_) / np.float32(K)
    square = splat(ZERO)
    for i in range(0, K, LANES):
        x = sub(load(y, o + i), splat(mean))
        square = fma(x, x, square)
    return mean, ONE / np.sqrt(total(square) / np.float32(K) + eps)


@compiled
def _bonus(r, key, r_k, o, c, K):
    """Return r . (key r_k) of the head that starts at r[o] and r_k[c]."""
    sum_ = splat(ZERO)
    for i in range(0, K, LANES):
        sum_ = fma(mul(load(r, o + i), load(key, o + i)), load(r_k, c + i), sum_)
    return total(sum_)


@compiled
def after(
    row, first, last, T, H, keys, eps,
    p_y, p_r, p_key, p_v, p_gate, p_r_k, p_weight, p_bias, p_out,
):  # fmt: skip
    """Write gate (GroupNorm(y) + bonus v)."""
    K = LANES * len(keys)
    y, r, key, v, gate = (floats(p_y), floats(p_r), floats(p_key), floats(p_v), floats(p_gate))
    r_k, weight, bias, out = (floats(p_r_k), floats(p_weight), floats(p_bias), floats(p_out))
    for t in range(T):
        for h in range(first, last):
            o, c = ((row * T + t) * H + h) * K, h * K
            mean, scale = statistics(y, o, K, eps)
            bonus = splat(_bonus(r, key, r_k, o, c, K))
            for i in range(0, K, LANES):
                normal = mul(sub(load(y, o + i), splat(mean)), splat(scale))
                x = fma(normal, load(weight, c + i), load(bias, c + i))
                store(out, o + i, mul(fma(bonus, load(v, o + i), x), load(gate, o + i)))


@compiled
def _accumulate(array, index, value):
    store(array, index, add(load(array, index), value))


@compiled
def after_backward(
    row, first, last, T, H, keys, eps,
    p_dout, p_y, p_r, p_key, p_v, p_gate, p_r_k, p_weight, p_bias,
    p_dy, p_dr, p_dkey, p_dv, p_dgate, p_dr_k, p_dweight, p_dbias,
):  # fmt: skip
    """Write the gradients of `after`; those of the parameters are sums per batch row."""
    K = LANES * len(keys)
    dout, y, r, key, v = (floats(p_dout), floats(p_y), floats(p_r), floats(p_key), floats(p_v))
    gate, r_k, weight, bias, dy = (
        floats(p_gate),
        floats(p_r_k),
        floats(p_weight),
        floats(p_bias),
        floats(p_dy),
    )
    dr, dkey, dv, dgate, dr_k = (
        floats(p_dr),
        floats(p_dkey),
        floats(p_dv),
        floats(p_dgate),
        floats(p_dr_k),
    )
    dweight, dbias = (floats(p_dweight), floats(p_dbias))
    for t in range(T):
        for h in range(first, last):
            o, c = ((row * T + t) * H + h) * K, h * K
            # Where this batch row's sums of the head's parameters stand.
            s = row * H * K + c
            mean, scale = statistics(y, o, K, eps)
            bonus = splat(_bonus(r, key, r_k, o, c, K))
            dbonus, dnormal_sum, dnormal_dot = splat(ZERO), splat(ZERO), splat(ZERO)
            for i in range(0, K, LANES):
                normal = mul(sub(load(y, o + i), splat(mean)), splat(scale))
                v_i, w_i = load(v, o + i), load(weight, c + i)
                x = fma(bonus, v_i, fma(normal, w_i, load(bias, c + i)))
                store(dgate, o + i, mul(load(dout, o + i), x))
                dx = mul(load(dout, o + i), load(gate, o + i))
                _accumulate(dweight, s + i, mul(dx, normal))
                _accumulate(dbias, s + i, dx)
                dbonus = fma(dx, v_i, dbonus)
                store(dv, o + i, mul(dx, bonus))
                dnormal_sum = fma(dx, w_i, dnormal_sum)
                dnormal_dot = fma(mul(dx, w_i), normal, dnormal_dot)
            center = splat(total(dnormal_sum) / np.float32(K))
            slope = splat(total(dnormal_dot) / np.float32(K))
            ds = splat(total(dbonus))
            for i in range(0, K, LANES):
                normal = mul(sub(load(y, o + i), splat(mean)), splat(scale))
                dnormal = mul(mul(load(dout, o + i), load(gate, o + i)), load(weight, c + i))
                store(dy, o + i, mul(splat(scale), sub(sub(dnormal, center), mul(normal, slope))))
                r_i, k_i, r_k_i = load(r, o + i), load(key, o + i), load(r_k, c + i)
                store(dr, o + i, mul(ds, mul(k_i, r_k_i)))
                store(dkey, o + i, mul(ds, mul(r_i, r_k_i)))
                _accumulate(dr_k, s + i, mul(ds, mul(r_i, k_i)))


@compiled
def before_backward(
    row, first, last, T, H, keys,
    p_dw, p_dkey, p_dkey_bonus, p_da, p_db, p_dr_bonus, p_dv_bonus,
    p_decay, p_k, p_rate, p_k_k, p_k_a,
    p_ddecay, p_dk, p_drate, p_dr, p_dv, p_dk_k, p_dk_a,
):  # fmt: skip
    """Write the gradients of `before`, and add the bonus to those of r and v.

    Those of the parameters are sums per batch row.
    """
    K = LANES * len(keys)
    dw, dkey, dkey_bonus, da, db = (
        floats(p_dw),
        floats(p_dkey),
        floats(p_dkey_bonus),
        floats(p_da),
        floats(p_db),
    )
    decay, k, rate, k_k, k_a = (
        floats(p_decay),
        floats(p_k),
        floats(p_rate),
        floats(p_k_k),
        floats(p_k_a),
    )
    ddecay, dk, drate, dk_k, dk_a = (
        floats(p_ddecay),
        floats(p_dk),
        floats(p_drate),
        floats(p_dk_k),
        floats(p_dk_a),
    )
    dr_bonus, dv_bonus, dr, dv = (
        floats(p_dr_bonus),
        floats(p_dv_bonus),
        floats(p_dr),
        floats(p_dv),
    )
    one = splat(ONE)
    for t in range(T):
        for h in range(first, last):
            o, c = ((row * T + t) * H + h) * K, h * K
            s = row * H * K + c
            scale = splat(_inverse_norm(k, k_k, o, c, K))
            dot = splat(ZERO)
            for i in range(0, K, LANES):
                kk = mul(mul(load(k, o + i), load(k_k, c + i)), scale)
                dkk = sub(mul(load(db, o + i), sigmoid(load(rate, o + i))), load(da, o + i))
                dot = fma(dkk, kk, dot)
            slope = splat(total(dot))
            for i in range(0, K, LANES):
                k_i, k_k_i, k_a_i = load(k, o + i), load(k_k, c + i), load(k_a, c + i)
                alpha = sigmoid(load(rate, o + i))
                kk = mul(mul(k_i, k_k_i), scale)
                dkk = sub(mul(load(db, o + i), alpha), load(da, o + i))
                dx = mul(scale, sub(dkk, mul(kk, slope)))
                dkey_i = add(load(dkey, o + i), load(dkey_bonus, o + i))
                slow = sub(alpha, one)
                store(dk, o + i, fma(dkey_i, fma(slow, k_a_i, one), mul(dx, k_k_i)))
                _accumulate(dk_k, s + i, mul(dx, k_i))
                _accumulate(dk_a, s + i, mul(mul(dkey_i, k_i), slow))
                dalpha = fma(load(db, o + i), kk, mul(mul(dkey_i, k_i), k_a_i))
                store(drate, o + i, mul(dalpha, mul(alpha, sub(one, alpha))))
                gate = sigmoid(load(decay, o + i))
                slope_w = mul(mul(splat(SCALE), gate), sub(one, gate))
                store(ddecay, o + i, mul(load(dw, o + i), slope_w))
                _accumulate(dr, o + i, load(dr_bonus, o + i))
                _accumulate(dv, o + i, load(dv_bonus, o + i))
