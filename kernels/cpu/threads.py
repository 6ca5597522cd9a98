"""Running a kernel over independent chains on as many threads as PyTorch may use."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import torch

from doxastic.kernels.checks import log_once

# Below this many multiply-adds a second thread costs more than it saves.
_WORTH_A_THREAD = 400_000
# Told by their type: `isinstance(x, Tensor)` of a number takes longer than all else here.
_NUMBERS = frozenset((int, float, bool, tuple, np.float32))
_pool: ThreadPoolExecutor | None = None


def run(kernel: Callable[..., None], chains: int, work: int, *args: Any) -> None:
    """Call `kernel(first, last, *args)` over `[0, chains)`, split among threads.

    Tensors go to the kernel as the address of their first element: boxing one as an array costs
    more than many a kernel takes. A piece that no other thread has begun by the time this one is
    free is run here: the pool may be busy, at a limit of threads, or closed since the main thread
    has ended.

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
    pieces = list(itertools.pairwise(borders[1:]))
    # Not the pool's own: where it fails to start a thread, it has queued the piece all the same.
    others: list[Future[None]] = [Future() for _ in pieces]
    try:
        _submit(kernel, pieces, others, values)
        kernel(borders[0], borders[1], *values)
        for piece, other in zip(pieces, others, strict=True):
            if other.cancel():
                kernel(*piece, *values)
    finally:
        # Whoever fails, no thread may outlive the tensors it writes to.
        begun = [other for other in others if not other.cancel()]
        wait(begun)
    for other in begun:
        other.result()


def _submit(
    kernel: Callable[..., None],
    pieces: list[tuple[int, int]],
    others: list[Future[None]],
    values: list[Any],
) -> None:
    """Offer the pieces to the pool, as far as it takes them."""
    try:
        for piece, other in zip(pieces, others, strict=True):
            _get_pool().submit(_carry_out, other, kernel, piece, values)
    except RuntimeError as error:
        log_once(f"the compiled kernels run on fewer threads: {error}.")


def _carry_out(
    future: Future[None], kernel: Callable[..., None], piece: tuple[int, int], values: list[Any]
) -> None:
    """Run a piece, unless the caller took it back."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        kernel(*piece, *values)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(None)


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
