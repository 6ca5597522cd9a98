"""Running a kernel over independent chains on as many threads as PyTorch may use."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import torch

# Below this many multiply-adds a second thread costs more than it saves.
_WORTH_A_THREAD = 400_000
# Told by their type: `isinstance(x, Tensor)` of a number takes longer than all else here.
_NUMBERS = frozenset((int, float, bool, tuple, np.float32))
_pool: ThreadPoolExecutor | None = None


def run(kernel: Callable[..., None], chains: int, work: int, *args: Any) -> None:
    """Call `kernel(first, last, *args)` over `[0, chains)`, split among threads.

    Tensors go to the kernel as the address of their first element: boxing one as an array costs
    more than many a kernel takes.

    Args:
        kernel: A compiled function that releases the interpreter lock.
        chains: How many independent pieces there are.
        work: Rough number of multiply-adds in all; small work stays on this thread.
        args: Numbers, passed through, and contiguous tensors.
    """
    # `args` stays referenced until the kernel is done: a tensor may live nowhere else.
    values = [x if type(x) in _NUMBERS else x.data_ptr() for x in args]
    threads = min(torch.get_num_threads(), chains, 1 + work // _WORTH_A_THREAD)
    if threads <= 1:
        kernel(0, chains, *values)
        return
    borders = [chains * i // threads for i in range(threads + 1)]
    others = [
        _get_pool().submit(kernel, first, last, *values)
        for first, last in itertools.pairwise(borders[1:])
    ]
    try:
        kernel(borders[0], borders[1], *values)
    finally:
        # Whoever fails, no thread may outlive the tensors it writes to.
        wait(others)
    for other in others:
        other.result()


def _get_pool() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="doxastic")
    return _pool


def _forget_pool() -> None:
    """Drop the pool in a forked child, where its threads do not exist."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
