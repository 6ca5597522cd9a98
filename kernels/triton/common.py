"""What every Triton kernel shares: casts, products, padding, and where it may run."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Decided when triton is imported: TRITON_INTERPRET=1 must be set before.
INTERPRETING = tl.constexpr(bool(triton.knobs.runtime.interpret))

# Of every launch. Products and sums are contracted, as by default, about which Triton 3.9 warns.
OPTIONS = {"enable_fp_fusion": True}


@triton.jit
def cast(x, DTYPE: tl.constexpr):
    """Return float32 x in DTYPE, rounded to the nearest.

    The interpreter would cut bfloat16 off: there the bits are rounded first.
    """
    if INTERPRETING and tl.bfloat16 == DTYPE:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """Return x in float32 as a product of this precision sees it; only "bf16" changes it."""
    if PRECISION == "bf16":
        x = cast(x, tl.bfloat16).to(tl.float32)
    return x


@triton.jit
def dot(x, y, PRECISION: tl.constexpr):
    """Return the matrix product of float32 x and y, summed in float32.

    PRECISION is "bf16" (operands rounded to bfloat16) or one of Triton's input precisions of
    float32: "tf32" (10 bits), "tf32x3" (three products, almost float32), "ieee". The interpreter
    multiplies the bit patterns of bfloat16 operands: there they are rounded, then widened.
    """
    if PRECISION == "bf16" and not INTERPRETING:
        product = tl.dot(cast(x, tl.bfloat16), cast(y, tl.bfloat16))
    elif PRECISION == "bf16":
        product = tl.dot(rounded(x, PRECISION), rounded(y, PRECISION), input_precision="ieee")
    else:
        product = tl.dot(x, y, input_precision=PRECISION)
    return product


def padded(width: int) -> int:
    """Return the block that holds a width: the next power of two, at least 16 for products."""
    return max(16, int(triton.next_power_of_2(width)))


def check_runnable(name: str, x: Tensor) -> None:
    """Raise `ValueError` unless Triton kernels can run where `x` is.

    Args:
        name: Name of the argument, for the message.
        x: A tensor that a kernel would read.
    """
    if x.is_cuda or (INTERPRETING.value and x.device.type == "cpu"):
        return
    remedy = "Move the tensors to a CUDA device or pass backend='auto'"
    if x.device.type == "cpu":
        remedy += "; to try the kernels without a GPU set TRITON_INTERPRET=1 before Python starts"
    raise ValueError(f"backend 'triton' takes CUDA tensors; {name} is on {x.device}. {remedy}.")


def on_device(x: Tensor) -> torch.cuda.device:
    """Return a context in which kernels are launched on the device of `x`; empty on the CPU.

    Triton launches on PyTorch's current device and stream, whatever device the pointers are of:

        with on_device(x):
            kernel[(programs,)](x, ..., num_warps=4)

    A grid has one axis, the only one that may exceed 65,535. Offsets are 64 bits wide.
    """
    return torch.cuda.device(x.device if x.is_cuda else -1)
