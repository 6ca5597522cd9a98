"""Every numerical tolerance of the tests, by dtype: relative errors in the Frobenius norm."""

from __future__ import annotations

import torch
from torch import Tensor

# What a kernel may differ from the float64 reference.
KERNEL = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 1e-2,
    torch.float16: 2e-3,
}
# Log-decays at their floor of -exp(-1/2) for the whole sequence: e^9.7 within a chunk.
WORST_DECAY = {torch.float64: 1e-11, torch.float32: 2e-5}
# Gradients through RWKV-7's group norm, whose eps is tiny: where a head's outputs nearly vanish, as
# after a reset, rounding is divided by their deviation. The composed form is no better.
NORMALISED = {torch.float32: 1e-4}
# Gradients through up to three whole layers.
STACKED = {torch.float32: 5e-5}
# Logits and states of a language model against another program's, absolute; both are of the order
# of one, the measured differences of that of 1e-6.
OTHER_PROGRAM = 1e-4
# The same in half precision: how much farther from the exact logits than the other program's.
OTHER_PROGRAM_HALF = 2.0
# Two ways to the same result that only round differently.
SAME = {torch.float64: 1e-13, torch.float32: 1e-6}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return `|actual - expected| / |expected|`, or `|actual|` where the expected is zero."""
    expected = expected.detach().double()
    error = (actual.detach().double() - expected).norm()
    return (error / expected.norm() if expected.any() else error).item()


def assert_close(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Fail unless shapes agree, all is finite and the relative error is below the tolerance."""
    assert actual.shape == expected.shape, f"{name}: {actual.shape} is not {expected.shape}"
    assert actual.isfinite().all(), f"{name} is not finite"
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{name}: relative error {error:.2e} above {tolerance:.0e}"
