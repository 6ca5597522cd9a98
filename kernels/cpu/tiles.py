"""Matrix products of small widths inside compiled kernels.

Matrix libraries reach a processor's full speed at these sizes too, but every call of theirs writes
its result for all rows to memory. Inside a kernel a batch row's tensors stay in the cache from the
first operation on it to the last.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from doxastic.kernels.cpu.common import compiled
from doxastic.kernels.cpu.simd import _FAST, _VECTOR, LANES, _constant, _splat

# Rows of a tile: with two vectors each its sums fill the registers, less what they are made of.
ROWS = 8 if get_host_cpu_features().get("avx512f") else 4


def _tile(rows: int, vectors: int) -> Any:
    """Return the intrinsic that adds the product of a tile to what stands in `out`.

    out[row, :] += sum_c x[row, c] w[c, :], with element (row, c) of x at
    `x_start + row x_stride + c x_step` and rows of w and out `w_stride` and `out_stride` apart.
    A narrow tile keeps two sums of each kind, over even and odd c: one waits for itself.
    """
    chains = 1 if vectors > 1 else 2

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, x_start, x_stride, x_step, w, w_start, w_stride, count, out, out_start, out_stride = args
        x, w, out = (
            make_array(signature.args[i])(context, builder, z).data
            for i, z in ((0, x), (4, w), (8, out))
        )

        def addresses(data: Any, start: Any, stride: Any, number: int) -> list[Any]:
            offsets = [start]
            for _ in range(number - 1):
                offsets.append(builder.add(offsets[-1], stride))
            return [builder.gep(data, [offset]) for offset in offsets]

        def vector_at(address: Any, place: int) -> Any:
            moved = builder.gep(address, [ir.Constant(count.type, place * LANES)])
            return builder.bitcast(moved, _VECTOR.as_pointer())

        targets = [
            vector_at(address, place)
            for address in addresses(out, out_start, out_stride, rows)
            for place in range(vectors)
        ]
        sums = [[cgutils.alloca_once(builder, _VECTOR) for _ in range(chains)] for _ in targets]
        for (first, *others), target in zip(sums, targets, strict=True):
            builder.store(builder.load(target, align=4), first)
            for other in others:
                builder.store(_constant(0.0), other)

        def add_terms(c: Any, chain: int) -> None:
            row_w = builder.gep(w, [builder.add(w_start, builder.mul(c, w_stride))])
            ws = [builder.load(vector_at(row_w, place), align=4) for place in range(vectors)]
            first = builder.add(x_start, builder.mul(c, x_step))
            for row, address in enumerate(addresses(x, first, x_stride, rows)):
                x_c = _splat(builder, builder.load(address))
                for place, w_c in enumerate(ws):
                    sum_ = sums[row * vectors + place][chain]
                    product = builder.fmul(x_c, w_c, flags=_FAST)
                    builder.store(builder.fadd(product, builder.load(sum_), flags=_FAST), sum_)

        length = ir.Constant(count.type, chains)
        whole = builder.mul(builder.udiv(count, length), length)
        zero, one = ir.Constant(count.type, 0), ir.Constant(count.type, 1)
        with cgutils.for_range_slice(builder, zero, whole, length, count.type) as (c, _):
            for chain in range(chains):
                add_terms(builder.add(c, ir.Constant(count.type, chain)), chain)
        if chains > 1:
            with cgutils.for_range_slice(builder, whole, count, one, count.type) as (c, _):
                add_terms(c, 0)
        for (first, *others), target in zip(sums, targets, strict=True):
            value = builder.load(first)
            for other in others:
                value = builder.fadd(value, builder.load(other), flags=_FAST)
            builder.store(value, target, align=4)
        return context.get_dummy_value()

    def declare(
        typing: Any, x: Any, x_start: Any, x_stride: Any, x_step: Any, w: Any, w_start: Any,
        w_stride: Any, count: Any, out: Any, out_start: Any, out_stride: Any,
    ) -> Any:  # fmt: skip
        numbers = [types.intp] * 3
        return types.void(x, *numbers, w, *numbers, out, *numbers[:2]), build

    return intrinsic(declare)


_wide, _narrow, _wide_row, _narrow_row = (
    _tile(rows, vectors) for rows, vectors in ((ROWS, 2), (ROWS, 1), (1, 2), (1, 1))
)


@compiled
def add_product(
    x, x_start, x_stride, x_step, rows, w, w_start, w_stride, count, out, out_start, out_stride,
    columns,
):  # fmt: skip
    """Add x w, over `count`, to `out`: `rows` rows and `columns`, whole vectors, of it.

    The order of every sum is the same whatever tile its row is in.
    """
    wide = columns // (2 * LANES) * (2 * LANES)
    for j in range(0, wide, 2 * LANES):
        row = 0
        while row + ROWS <= rows:
            _wide(
                x, x_start + row * x_stride, x_stride, x_step,
                w, w_start + j, w_stride, count, out, out_start + row * out_stride + j, out_stride,
            )  # fmt: skip
            row += ROWS
        while row < rows:
            _wide_row(
                x, x_start + row * x_stride, x_stride, x_step,
                w, w_start + j, w_stride, count, out, out_start + row * out_stride + j, out_stride,
            )  # fmt: skip
            row += 1
    for j in range(wide, columns, LANES):
        row = 0
        while row + ROWS <= rows:
            _narrow(
                x, x_start + row * x_stride, x_stride, x_step,
                w, w_start + j, w_stride, count, out, out_start + row * out_stride + j, out_stride,
            )  # fmt: skip
            row += ROWS
        while row < rows:
            _narrow_row(
                x, x_start + row * x_stride, x_stride, x_step,
                w, w_start + j, w_stride, count, out, out_start + row * out_stride + j, out_stride,
            )  # fmt: skip
            row += 1
