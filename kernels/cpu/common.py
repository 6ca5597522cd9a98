"""What all CPU kernels share: how they are compiled, constants, and padding to whole vectors."""

from __future__ import annotations

import numpy as np
from numba import njit
from torch import Tensor
from torch.nn import functional as F

from doxastic.kernels.cpu.simd import LANES

ZERO = np.float32(0.0)
ONE = np.float32(1.0)
TWO = np.float32(2.0)

compiled = njit(cache=True, nogil=True, error_model="numpy")


def padded(tensor: Tensor, width: int) -> Tensor:
    """Return the tensor with its last axis zero-padded to `width`, contiguous."""
    missing = width - tensor.shape[-1]
    return F.pad(tensor, (0, missing)) if missing else tensor.contiguous()


def whole(width: int) -> int:
    """Return the width rounded up to whole vectors."""
    return -(-width // LANES) * LANES
