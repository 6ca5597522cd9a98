"""The vectors of this machine against numpy in float64: values, lanes, and what is not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit

from doxastic.kernels.cpu import simd
from doxastic.kernels.cpu.simd import LANES, flags, floats, load, splat, spread, store

NAN, INF = float("nan"), float("inf")
compiled = njit(error_model="numpy")


def apply(function, *arrays):
    """Return the function of whole vectors, applied to float32 arrays of one length."""
    size = len(arrays[0])
    inputs = [np.zeros(-(-size // LANES) * LANES, np.float32) for _ in range(3)]
    for x, values in zip(inputs, arrays, strict=False):
        x[:size] = values
    out = np.full_like(inputs[0], NAN)
    if len(arrays) == 1:
        kernel = compiled(lambda x, y, z, i: function(load(x, i)))
    elif len(arrays) == 2:
        kernel = compiled(lambda x, y, z, i: function(load(x, i), load(y, i)))
    else:
        kernel = compiled(lambda x, y, z, i: function(load(x, i), load(y, i), load(z, i)))

    @compiled
    def run(x, y, z, out):
        for i in range(0, len(x), LANES):
            store(out, i, kernel(x, y, z, i))

    run(*inputs, out)
    return out[:size]


def ulps(actual, exact):
    """Return the largest error in units of the last place of float32."""
    spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return np.max(np.abs(actual.astype(np.float64) - exact) / spacing)


def numbers(low, high, size=20_001):
    return np.linspace(low, high, size).astype(np.float32)


def test_exp_is_exact_to_two_ulp():
    for x in (numbers(-87.0, 88.0), numbers(-1.0, 1.0), np.float32(1e-6) * numbers(-1.0, 1.0)):
        assert ulps(apply(simd.exp, x), np.exp(x.astype(np.float64))) <= 2.0
    assert apply(simd.exp, [0.0, -0.0]).tolist() == [1.0, 1.0]


def test_exp_stays_at_its_borders():
    least, most = apply(simd.exp, [-87.0, 88.0])
    values = apply(simd.exp, [-INF, -1e30, -88.0, 88.5, 1e30, INF, NAN])
    assert values[:6].tolist() == [least] * 3 + [most] * 3
    assert np.isnan(values[6])


def test_log_is_exact_to_two_ulp():
    tiny = np.finfo(np.float32).tiny
    wide = np.exp2(np.linspace(-126, 127.9, 20_001)).astype(np.float32)
    for x in (wide, numbers(0.5, 2.0), 1.0 + numbers(-1e-4, 1e-4), np.float32([tiny, 3.4e38])):
        x = x[x != 1.0].astype(np.float32)
        assert ulps(apply(simd.log, x), np.log(x.astype(np.float64))) <= 2.0
    assert apply(simd.log, [1.0]).item() == 0.0


def test_log_keeps_infinity_and_nan():
    values = apply(simd.log, [INF, NAN])
    assert values[0] == INF and np.isnan(values[1])


def test_sigmoid_is_exact_to_three_ulp_and_saturates():
    x = numbers(-86.0, 88.0)
    assert ulps(apply(simd.sigmoid, x), 1.0 / (1.0 + np.exp(-x.astype(np.float64)))) <= 3.0
    values = apply(simd.sigmoid, [0.0, INF, 100.0, -100.0, -INF, NAN])
    assert values[:3].tolist() == [0.5, 1.0, 1.0]
    assert (values[3:5] >= 0.0).all() and (values[3:5] < 1e-37).all()
    assert np.isnan(values[5])


def test_sqrt_and_div_are_rounded_once():
    x, y = numbers(0.0, 1e6), numbers(0.1, 3.0)
    assert (apply(simd.sqrt, x) == np.sqrt(x)).all()
    assert (apply(simd.div, x, y) == x / y).all()
    assert apply(simd.sqrt, [INF]).item() == INF and np.isnan(apply(simd.sqrt, [-1.0, NAN])).all()


def test_relu_cuts_below_zero_and_keeps_nan():
    values = apply(simd.relu, [-INF, -1.0, -0.0, 0.0, 2.5, INF, NAN])
    assert values[:6].tolist() == [0.0, 0.0, 0.0, 0.0, 2.5, INF]
    assert np.isnan(values[6])


def test_clamp_keeps_what_is_inside_and_nan():
    x, limit = [-INF, -8.5, -8.0, 0.5, 8.0, 8.5, INF, NAN], [8.0] * 8
    values = apply(simd.clamp, x, limit)
    assert values[:7].tolist() == [-8.0, -8.0, -8.0, 0.5, 8.0, 8.0, 8.0]
    assert np.isnan(values[7])
    assert apply(simd.inside, x, limit).tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_arithmetic_is_that_of_float32():
    random = np.random.default_rng(0)
    x, y, z = random.standard_normal((3, 100)).astype(np.float32)
    assert (apply(simd.add, x, y) == x + y).all()
    assert (apply(simd.sub, x, y) == x - y).all()
    assert (apply(simd.mul, x, y) == x * y).all()
    # Rounded once or twice, as the processor has it.
    exact = x.astype(np.float64) * y + z
    assert np.max(np.abs(apply(simd.fma, x, y, z) - exact)) < 3e-7


@pytest.mark.parametrize("function", [simd.add, simd.sub, simd.mul, simd.div])
def test_arithmetic_keeps_nan_and_infinity(function):
    values = apply(function, [NAN, INF, 1.0], [1.0, 2.0, NAN])
    assert np.isnan(values[[0, 2]]).all() and values[1] == INF


def test_load_store_splat_and_spread_touch_their_lanes_only():
    @compiled
    def kernel(x, out):
        store(out, 1, load(x, 3))
        store(out, LANES + 2, spread(x, 5))
        store(out, 2 * LANES + 3, splat(x[7]))

    x = np.arange(2 * LANES + 8, dtype=np.float32)
    out = np.full(3 * LANES + 5, -1.0, np.float32)
    kernel(x, out)
    expected = [-1.0, *x[3 : 3 + LANES], -1.0, *[5.0] * LANES, -1.0, *[7.0] * LANES, -1.0, -1.0]
    assert out.tolist() == expected


def test_total_is_the_sum_of_the_lanes():
    @compiled
    def kernel(x, out):
        out[0] = simd.total(load(x, 0))

    x = np.float32(2.0) ** np.arange(LANES, dtype=np.float32)
    out = np.empty(1, np.float32)
    for values, expected in ((x, 2.0**LANES - 1.0), (np.where(x == 4.0, NAN, x), NAN)):
        kernel(values.astype(np.float32), out)
        np.testing.assert_equal(out[0], np.float32(expected))


@pytest.mark.parametrize("width", [LANES, 3 * LANES])
def test_products_are_inner_products_lane_by_lane(width):
    @compiled
    def kernel(x, w, width, out, out4):
        store(out, 0, simd.products(x, 2, 0, w, 3, width + 1, width))
        sums = simd.products4(x, 2, width + 3, w, 3, width + 1, width)
        simd.store_quarters(out4, 1, LANES // 4 + 2, sums)

    # Small whole numbers: every sum is exact in any order.
    random = np.random.default_rng(0)
    x = random.integers(-4, 5, 4 * (width + 3) + 2).astype(np.float32)
    w = random.integers(-4, 5, LANES * (width + 1) + 3).astype(np.float32)
    out, out4 = np.empty(LANES, np.float32), np.full(LANES + 12, -99.0, np.float32)
    kernel(x, w, width, out, out4)
    rows = [x[2 + i * (width + 3) :][:width] for i in range(4)]
    columns = [w[3 + j * (width + 1) :][:width] for j in range(LANES)]
    assert out.tolist() == [float(rows[0] @ column) for column in columns]
    expected, quarter = np.full_like(out4, -99.0), LANES // 4
    for i, row in enumerate(rows):
        start = 1 + i * (quarter + 2)
        expected[start : start + quarter] = [row @ column for column in columns[:quarter]]
    assert out4.tolist() == expected.tolist()


def test_products_keep_nan():
    @compiled
    def kernel(x, w, out):
        store(out, 0, simd.products(x, 0, 0, w, 0, LANES, LANES))

    x, w = np.ones(LANES, np.float32), np.ones(LANES * LANES, np.float32)
    w[3 * LANES - 1], out = NAN, np.empty(LANES, np.float32)
    kernel(x, w, out)
    assert np.isnan(out[2]) and (np.delete(out, 2) == LANES).all()


def test_kernels_read_tensors_by_address_and_arrays_as_they_are():
    @compiled
    def kernel(x, keep, out):
        x, keep, out = floats(x), flags(keep), floats(out)
        for i in range(4):
            out[i] = x[i] if keep[i] else np.float32(-1.0)

    x = torch.arange(4.0)
    keep, out = torch.tensor([True, False, True, False]), torch.empty(4)
    kernel(x.data_ptr(), keep.data_ptr(), out.data_ptr())
    assert out.tolist() == [0.0, -1.0, 2.0, -1.0]
    other = np.empty(4, np.float32)
    kernel(x.numpy(), keep.view(torch.uint8).numpy(), other)
    assert other.tolist() == out.tolist()


@pytest.mark.parametrize("function", [floats, flags])
def test_addresses_are_nothing_outside_compiled_functions(function):
    with pytest.raises(NotImplementedError, match="only inside compiled functions"):
        function(0)


def test_tanh_is_exact_to_three_ulp_and_saturates():
    x = np.concatenate([np.linspace(-9, 9, 4001), np.geomspace(1e-6, 1, 400)]).astype(np.float32)
    assert ulps(apply(simd.tanh, x), np.tanh(x.astype(np.float64))) <= 3.0
    values = apply(simd.tanh, [0.0, INF, 100.0, -100.0, -INF, NAN])
    np.testing.assert_array_equal(values[:5], [0.0, 1.0, 1.0, -1.0, -1.0])
    assert np.isnan(values[5])
