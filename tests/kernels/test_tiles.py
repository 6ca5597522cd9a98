"""Products of small matrices inside compiled kernels."""

from __future__ import annotations

import pytest
import torch
from numba import njit
from tolerances import KERNEL, SAME, assert_close

tiles = pytest.importorskip("doxastic.kernels.cpu.tiles")
simd = pytest.importorskip("doxastic.kernels.cpu.simd")
LANES = simd.LANES


@njit
def add_product(x, step, rows, w, count, out, columns):
    """Add x w: x is `[rows, count]`, or its transpose where `step` is `rows`."""
    stride = count if step == 1 else 1
    tiles.add_product(x, 0, stride, step, rows, w, 0, columns, count, out, 0, columns, columns)


def product(x, w, out, transposed=False):
    """Return out + x w by tiles."""
    (rows, count), columns = x.shape, w.shape[1]
    given = x.t().contiguous() if transposed else x
    made = out.clone()
    arrays = [z.flatten().numpy() for z in (given, w, made)]
    add_product(arrays[0], rows if transposed else 1, rows, arrays[1], count, arrays[2], columns)
    return torch.from_numpy(arrays[2]).view(rows, columns)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("vectors", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 7, 64])
@pytest.mark.parametrize("rows", [1, tiles.ROWS - 1, tiles.ROWS, 2 * tiles.ROWS + 3])
def test_a_product_is_added_to_what_stands_there(rows, count, vectors, transposed):
    torch.manual_seed(rows + count)
    x, w = torch.randn(rows, count), torch.randn(count, vectors * LANES)
    out = torch.randn(rows, vectors * LANES)
    expected = out.double() + x.double() @ w.double()
    assert_close("product", product(x, w, out, transposed), expected, KERNEL[torch.float32])


def test_nothing_is_added_over_no_columns():
    out = torch.randn(tiles.ROWS + 1, 3 * LANES)
    x, w = torch.zeros(len(out), 0), torch.zeros(0, 3 * LANES)
    assert torch.equal(product(x, w, out), out)


@pytest.mark.parametrize("vectors", [1, 2, 3])
def test_a_row_is_the_same_in_any_tile(vectors):
    torch.manual_seed(0)
    x, w = torch.randn(3 * tiles.ROWS - 1, 37), torch.randn(37, vectors * LANES)
    out = torch.zeros(len(x), vectors * LANES)
    together = product(x, w, out)
    alone = torch.cat([product(x[i : i + 1], w, out[i : i + 1]) for i in range(len(x))])
    assert_close("rows", together, alone, SAME[torch.float32])
    assert torch.equal(together, alone)
