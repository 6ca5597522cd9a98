"""Explicit float32 vectors inside numba functions.

LLVM's loop vectoriser gives up on loops that write several arrays, because it cannot see that
they do not overlap. These intrinsics say what is meant: a `Vector` holds `LANES` neighbouring
floats in one register, and arithmetic on it is one instruction.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import carray
from numba.core import cgutils, types
from numba.core.types import CPointer  # type: ignore[attr-defined]
from numba.extending import intrinsic, models, overload, register_model
from numba.np.arrayobj import make_array


def _host_lanes() -> int:
    """Return how many float32 values one register of this processor holds."""
    features = get_host_cpu_features()
    if features.get("avx512f"):
        return 16
    return 8 if features.get("avx2") else 4


LANES = _host_lanes()
# Reordering and fusing are allowed; NaN and infinity keep their meaning.
_FAST = ("contract", "reassoc", "nsz")
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)
_ENDLESS = 1 << 40


class Vector(types.Type):
    """The numba type of `LANES` float32 values in one register."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


vector = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [float(value)] * LANES)


def _integer(value: int) -> ir.Constant:
    return ir.Constant(_INTEGERS, [value] * LANES)


def _element(context: Any, builder: Any, signature: Any, array: Any, index: Any) -> Any:
    """Return the address of `array[index]` of a contiguous one-dimensional array."""
    data = make_array(signature.args[0])(context, builder, array).data
    return builder.gep(data, [index])


def _splat(builder: Any, value: Any) -> Any:
    first = builder.insert_element(
        ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
    )
    return builder.shuffle_vector(first, first, _integer(0))


@intrinsic  # type: ignore[untyped-decorator]
def _float_pointer(typing: Any, address: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.FloatType().as_pointer())

    return CPointer(types.float32)(types.uintp), build


@intrinsic  # type: ignore[untyped-decorator]
def _byte_pointer(typing: Any, address: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return CPointer(types.uint8)(types.uintp), build


def floats(address: Any) -> Any:
    """Return the float32 values at an address, as an array whose end the caller knows.

    An array is returned as it is, so that kernels can call kernels.
    """
    raise NotImplementedError("only inside compiled functions")


def flags(address: Any) -> Any:
    """Return the bytes of a bool tensor at an address; as `floats` does."""
    raise NotImplementedError("only inside compiled functions")


@overload(floats, strict=False)  # type: ignore[untyped-decorator]
def _floats(address: Any) -> Any:
    if isinstance(address, types.Array):
        return lambda address: address
    return lambda address: carray(_float_pointer(address), _ENDLESS)


@overload(flags, strict=False)  # type: ignore[untyped-decorator]
def _flags(address: Any) -> Any:
    if isinstance(address, types.Array):
        return lambda address: address
    return lambda address: carray(_byte_pointer(address), _ENDLESS)


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, array: Any, index: Any) -> Any:
    """Return `array[index : index + LANES]`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _element(context, builder, signature, *args)
        return builder.load(builder.bitcast(address, _VECTOR.as_pointer()), align=4)

    return vector(array, types.intp), build


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write `value` to `array[index : index + LANES]`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _element(context, builder, signature, args[0], args[1])
        builder.store(args[2], builder.bitcast(address, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), build


@intrinsic  # type: ignore[untyped-decorator]
def splat(typing: Any, value: Any) -> Any:
    """Return a vector with `value` in every lane."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return vector(types.float32), build


@intrinsic  # type: ignore[untyped-decorator]
def spread(typing: Any, array: Any, index: Any) -> Any:
    """Return a vector with `array[index]` in every lane."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = _element(context, builder, signature, *args)
        return _splat(builder, builder.load(address))

    return vector(array, types.intp), build


@intrinsic  # type: ignore[untyped-decorator]
def mul(typing: Any, x: Any, y: Any) -> Any:
    """Return `x * y`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fmul(args[0], args[1], flags=_FAST)

    return vector(vector, vector), build


@intrinsic  # type: ignore[untyped-decorator]
def add(typing: Any, x: Any, y: Any) -> Any:
    """Return `x + y`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(args[0], args[1], flags=_FAST)

    return vector(vector, vector), build


@intrinsic  # type: ignore[untyped-decorator]
def sub(typing: Any, x: Any, y: Any) -> Any:
    """Return `x - y`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fsub(args[0], args[1], flags=_FAST)

    return vector(vector, vector), build


@intrinsic  # type: ignore[untyped-decorator]
def div(typing: Any, x: Any, y: Any) -> Any:
    """Return `x / y`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fdiv(args[0], args[1])

    return vector(vector, vector), build


@intrinsic  # type: ignore[untyped-decorator]
def relu(typing: Any, x: Any) -> Any:
    """Return `max(x, 0)`; NaN stays NaN."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = _constant(0.0)
        return builder.select(builder.fcmp_ordered("<", args[0], zero), zero, args[0])

    return vector(vector), build


@intrinsic  # type: ignore[untyped-decorator]
def fma(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """Return `x * y + z`."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        product = builder.fmul(args[0], args[1], flags=_FAST)
        return builder.fadd(product, args[2], flags=_FAST)

    return vector(vector, vector, vector), build


@intrinsic  # type: ignore[untyped-decorator]
def total(typing: Any, x: Any) -> Any:
    """Return the sum over the lanes, a float32."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            lanes = [(i + width) % LANES for i in range(LANES)]
            moved = builder.shuffle_vector(value, value, ir.Constant(_INTEGERS, lanes))
            value = builder.fadd(value, moved, flags=_FAST)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return types.float32(vector), build


def _exponential(builder: Any, x: Any) -> Any:
    """Emit e^x to 2 ulp: x = n ln 2 + f, a polynomial in f, and n added to the exponent bits."""
    low, high = _constant(-87.0), _constant(88.0)
    x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
    x = builder.select(builder.fcmp_ordered(">", x, high), high, x)
    # Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits; no flags here,
    # or the compiler would cancel the addition.
    magic = _constant(12582912.0)
    shifted = builder.fadd(builder.fmul(x, _constant(1.44269504088896341)), magic)
    n = builder.fsub(shifted, magic)
    f = builder.fsub(x, builder.fmul(n, _constant(0.693359375)))
    f = builder.fadd(f, builder.fmul(n, _constant(2.12194440e-4)))
    value = _constant(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5):
        value = builder.fadd(
            builder.fmul(value, f, flags=_FAST), _constant(coefficient), flags=_FAST
        )
    square = builder.fmul(f, f, flags=_FAST)
    value = builder.fadd(builder.fmul(value, square, flags=_FAST), f, flags=_FAST)
    value = builder.fadd(value, _constant(1.0), flags=_FAST)
    bits = builder.sub(builder.bitcast(shifted, _INTEGERS), _integer(0x4B400000 - 127))
    return builder.fmul(value, builder.bitcast(builder.shl(bits, _integer(23)), _VECTOR))


@intrinsic  # type: ignore[untyped-decorator]
def exp(typing: Any, x: Any) -> Any:
    """Return e^x, for x in [-87, 88]; beyond, the value at the border."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _exponential(builder, args[0])

    return vector(vector), build


@intrinsic  # type: ignore[untyped-decorator]
def log(typing: Any, x: Any) -> Any:
    """Return ln x to 2 ulp, for normal x > 0; infinity and NaN stay what they are."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # x = 2^n m with m in [sqrt(1/2), sqrt(2)): take n from the exponent of x / sqrt(1/2).
        bits = builder.sub(builder.bitcast(args[0], _INTEGERS), _integer(0x3F3504F3))
        n = builder.ashr(bits, _integer(23))
        mantissa = builder.and_(bits, _integer(0x007FFFFF))
        m = builder.bitcast(builder.add(mantissa, _integer(0x3F3504F3)), _VECTOR)
        f = builder.fsub(m, _constant(1.0))
        value = _constant(7.0376836292e-2)
        for coefficient in (
            -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
            -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
        ):  # fmt: skip
            product = builder.fmul(value, f, flags=_FAST)
            value = builder.fadd(product, _constant(coefficient), flags=_FAST)
        square = builder.fmul(f, f)
        value = builder.fmul(builder.fmul(value, f), square)
        value = builder.fsub(value, builder.fmul(square, _constant(0.5)))
        exponent = builder.sitofp(n, _VECTOR)
        value = builder.fadd(
            builder.fadd(f, value), builder.fmul(exponent, _constant(0.6931471805599453))
        )
        # Unordered: true for NaN too.
        endless = builder.fcmp_unordered(">=", args[0], _constant(float("inf")))
        return builder.select(endless, args[0], value)

    return vector(vector), build


@intrinsic  # type: ignore[untyped-decorator]
def sqrt(typing: Any, x: Any) -> Any:
    """Return the square root."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR])
        name = f"llvm.sqrt.v{LANES}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    return vector(vector), build


@intrinsic  # type: ignore[untyped-decorator]
def clamp(typing: Any, x: Any, limit: Any) -> Any:
    """Return x, at least `-limit` and at most `limit`; NaN stays NaN."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, high = args
        low = builder.fsub(_constant(0.0), high)
        x = builder.select(builder.fcmp_ordered("<", x, low), low, x)
        return builder.select(builder.fcmp_ordered(">", x, high), high, x)

    return vector(vector, vector), build


@intrinsic  # type: ignore[untyped-decorator]
def inside(typing: Any, x: Any, limit: Any) -> Any:
    """Return 1 in the lanes where |x| <= limit, else 0."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, high = args
        low = builder.fsub(_constant(0.0), high)
        within = builder.and_(
            builder.fcmp_ordered(">=", x, low), builder.fcmp_ordered("<=", x, high)
        )
        return builder.select(within, _constant(1.0), _constant(0.0))

    return vector(vector, vector), build


@intrinsic  # type: ignore[untyped-decorator]
def sigmoid(typing: Any, x: Any) -> Any:
    """Return 1 / (1 + e^-x)."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = _constant(1.0)
        exponential = _exponential(builder, builder.fsub(_constant(0.0), args[0]))
        return builder.fdiv(one, builder.fadd(one, exponential))

    return vector(vector), build


@intrinsic  # type: ignore[untyped-decorator]
def tanh(typing: Any, x: Any) -> Any:
    """Return tanh x: an odd polynomial for |x| < 5/8, else 1 - 2 / (e^2x + 1)."""

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (x,), one, two = args, _constant(1.0), _constant(2.0)
        square = builder.fmul(x, x)
        value = _constant(-5.70498872745e-3)
        for coefficient in (
            2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1,
        ):  # fmt: skip
            product = builder.fmul(value, square, flags=_FAST)
            value = builder.fadd(product, _constant(coefficient), flags=_FAST)
        small = builder.fadd(builder.fmul(builder.fmul(value, square), x), x)
        exponential = _exponential(builder, builder.fmul(x, two))
        large = builder.fsub(one, builder.fdiv(two, builder.fadd(exponential, one)))
        within = builder.fcmp_ordered("<", square, _constant(0.390625))
        return builder.select(within, small, large)

    return vector(vector), build


@intrinsic  # type: ignore[untyped-decorator]
def store_quarters(typing: Any, array: Any, index: Any, stride: Any, value: Any) -> Any:
    """Write quarter i of the lanes to `array[index + i stride :]`, for i from 0 to 3."""
    size = LANES // 4
    quarter = ir.VectorType(ir.FloatType(), size)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = make_array(signature.args[0])(context, builder, args[0]).data
        offset = args[1]
        for i in range(4):
            lanes = ir.Constant(
                ir.VectorType(ir.IntType(32), size), list(range(i * size, (i + 1) * size))
            )
            part = builder.shuffle_vector(args[3], args[3], lanes)
            address = builder.bitcast(builder.gep(data, [offset]), quarter.as_pointer())
            builder.store(part, address, align=4)
            offset = builder.add(offset, args[2])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, value), build


def _sums(builder: Any, values: list[Any]) -> Any:
    """Return the vector whose lane i is the sum over the lanes of `values[i]`.

    Neighbours are merged until one vector is left: each merge adds the halves of every group.
    """
    size = LANES
    while len(values) > 1:
        starts = [p * LANES + g for p in range(2) for g in range(0, LANES, size)]
        low = [start + i for start in starts for i in range(size // 2)]
        high = [lane + size // 2 for lane in low]
        values = [
            builder.fadd(
                builder.shuffle_vector(x, y, ir.Constant(_INTEGERS, low)),
                builder.shuffle_vector(x, y, ir.Constant(_INTEGERS, high)),
                flags=_FAST,
            )
            for x, y in zip(values[::2], values[1::2], strict=True)
        ]
        size //= 2
    return values[0]


def _products(rows: int) -> Any:
    """Return the intrinsic for the inner products of `rows` rows of x with LANES / rows of w."""
    columns = LANES // rows

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, x_start, x_stride, w, w_start, w_stride, width = args
        x = make_array(signature.args[0])(context, builder, x).data
        w = make_array(signature.args[3])(context, builder, w).data
        pointer = _VECTOR.as_pointer()

        def vectors(data: Any, start: Any, stride: Any, count: int, i: Any) -> list[Any]:
            offsets = [start]
            for _ in range(count - 1):
                offsets.append(builder.add(offsets[-1], stride))
            addresses = [builder.gep(data, [builder.add(offset, i)]) for offset in offsets]
            return [builder.load(builder.bitcast(a, pointer), align=4) for a in addresses]

        sums = [cgutils.alloca_once_value(builder, _constant(0.0)) for _ in range(LANES)]
        for sum_ in sums:
            builder.store(_constant(0.0), sum_)
        zero, step = ir.Constant(width.type, 0), ir.Constant(width.type, LANES)
        with cgutils.for_range_slice(builder, zero, width, step, width.type) as (i, _):
            xs = vectors(x, x_start, x_stride, rows, i)
            ws = vectors(w, w_start, w_stride, columns, i)
            for sum_, (a, b) in zip(sums, ((a, b) for a in xs for b in ws), strict=True):
                product = builder.fmul(a, b, flags=_FAST)
                builder.store(builder.fadd(builder.load(sum_), product, flags=_FAST), sum_)
        return _sums(builder, [builder.load(sum_) for sum_ in sums])

    def declare(
        typing: Any, x: Any, x_start: Any, x_stride: Any, w: Any, w_start: Any, w_stride: Any,
        width: Any,
    ) -> Any:  # fmt: skip
        return vector(x, *[types.intp] * 2, w, *[types.intp] * 3), build

    return intrinsic(declare)


# Lane i is the inner product of x[x_start :] and w[w_start + i w_stride :], over `width`.
products = _products(1)
# Lane i n + j, n = LANES / 4, is that of x[x_start + i x_stride :] and w[w_start + j w_stride :].
products4 = _products(4)
