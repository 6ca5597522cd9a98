"""How the C library of this process deals with memory that was freed."""

from __future__ import annotations

import ctypes
import os
import sys

# Parameters of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _FROM_HEAP = 1 << 28, 1 << 25
_NAMES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
_TUNABLES = ("glibc.malloc.trim_threshold", "glibc.malloc.mmap_threshold")


def keep_freed_memory() -> bool:
    """Keep up to 256 MB of freed memory for what is allocated next; return whether that is so.

    By itself glibc hands the free end of its heap back to the system, and what is allocated next
    pays a fault for every page: where it so happens, acting steps whose state has megabytes pay in
    every one of them.

    For processes of our own only, such as the command line's. Nothing is changed where the user
    has chosen by an environment variable, or without glibc.
    """
    chosen = os.environ.get("GLIBC_TUNABLES", "")
    if any(name in os.environ for name in _NAMES) or any(name in chosen for name in _TUNABLES):
        return False
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT)) and bool(mallopt(_MMAP_THRESHOLD, _FROM_HEAP))
