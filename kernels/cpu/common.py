"""What all CPU kernels share: how they are compiled, constants, and padding to whole vectors."""

from __future__ import annotations

import hashlib
import numbers
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from torch import Tensor
from torch.nn import functional as F

from doxastic.kernels.checks import log_once
from doxastic.kernels.cpu.simd import LANES

ZERO = np.float32(0.0)
ONE = np.float32(1.0)
TWO = np.float32(2.0)


def _digest() -> str:
    """Return a digest of all files beside this one: of whatever a kernel may have compiled in."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_FILES = _digest()


def compiled(function: Callable[..., Any]) -> Any:
    """Return the function compiled by numba, without the interpreter lock, and kept on disk.

    Numba would take a kernel from disk for as long as the kernel's own file is the same, whatever
    has become of the functions and constants compiled into it from others.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        kernel = njit(cache=True, **options)(function)
    except RuntimeError:
        log_once(
            "numba finds no folder that it may write to: every process compiles the CPU kernels "
            "anew. Set NUMBA_CACHE_DIR to such a folder."
        )
        return njit(**options)(function)
    constants = {n: x for n, x in function.__globals__.items() if isinstance(x, numbers.Number)}
    # No public way leads there. A numba that keeps its stamp elsewhere goes on as above.
    with suppress(AttributeError):
        index = kernel._cache._cache_file
        index._source_stamp = (index._source_stamp, _FILES, repr(sorted(constants.items())))
    return kernel


def padded(tensor: Tensor, width: int) -> Tensor:
    """Return the tensor with its last axis zero-padded to `width`, contiguous."""
    missing = width - tensor.shape[-1]
    return F.pad(tensor, (0, missing)) if missing else tensor.contiguous()


def whole(width: int) -> int:
    """Return the width rounded up to whole vectors."""
    return -(-width // LANES) * LANES


def vectors(width: int) -> tuple[int, ...]:
    """Return whole vectors of this width as a tuple of so many zeros, for a kernel.

    A kernel is compiled for the types of its arguments, and the length of a tuple is part of its
    type: `LANES * len(vectors)` is a constant there, loops over it have no end to look for.
    """
    return (0,) * (width // LANES)
