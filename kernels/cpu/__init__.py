"""The CPU backend: float32 kernels compiled by numba, for every processor that LLVM knows."""

from doxastic.kernels.cpu.moments import moments_backward, moments_forward
from doxastic.kernels.cpu.simd import LANES
from doxastic.kernels.cpu.wkv7 import CHUNK, wkv7_backward, wkv7_forward, wkv7_step

__all__ = [
    "CHUNK",
    "LANES",
    "moments_backward",
    "moments_forward",
    "wkv7_backward",
    "wkv7_forward",
    "wkv7_step",
]
