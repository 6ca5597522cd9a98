"""Layer norm of one batch row inside compiled kernels, forwards and backwards."""

from __future__ import annotations

import numpy as np

from doxastic.kernels.cpu.common import ZERO, compiled
from doxastic.kernels.cpu.simd import LANES, add, fma, load, mul, splat, store, sub, total
from doxastic.kernels.cpu.time_mix_passes import statistics


@compiled
def layer_norm(T, C, eps, x, weight, bias, y):
    """Write (x - mean) / sqrt(variance + eps) weight + bias of every `x[t]`, `[T, C]`."""
    for t in range(T):
        mean, scale = statistics(x, t * C, C, eps)
        for i in range(t * C, (t + 1) * C, LANES):
            c = i - t * C
            normal = mul(sub(load(x, i), splat(mean)), splat(scale))
            store(y, i, fma(normal, load(weight, c), load(bias, c)))


@compiled
def layer_norm_backward(T, C, eps, dy, x, weight, dx, dweight, dbias):
    """Add the gradients of x, weight and bias to `dx`, `dweight` and `dbias`."""
    for t in range(T):
        mean, scale = statistics(x, t * C, C, eps)
        sum_, dot = splat(ZERO), splat(ZERO)
        for i in range(t * C, (t + 1) * C, LANES):
            c, dy_i = i - t * C, load(dy, i)
            normal = mul(sub(load(x, i), splat(mean)), splat(scale))
            store(dweight, c, fma(dy_i, normal, load(dweight, c)))
            store(dbias, c, add(dy_i, load(dbias, c)))
            dnormal = mul(dy_i, load(weight, c))
            sum_ = add(sum_, dnormal)
            dot = fma(dnormal, normal, dot)
        center, slope = splat(total(sum_) / np.float32(C)), splat(total(dot) / np.float32(C))
        for i in range(t * C, (t + 1) * C, LANES):
            normal = mul(sub(load(x, i), splat(mean)), splat(scale))
            dnormal = mul(load(dy, i), load(weight, i - t * C))
            change = sub(sub(dnormal, center), mul(normal, slope))
            store(dx, i, fma(splat(scale), change, load(dx, i)))
