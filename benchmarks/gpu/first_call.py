"""How long the first call of a kernel takes, in a fresh process that finds nothing compiled."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def first_call(arm: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> float:
    """Return the seconds of the first forward and backward pass of WKV-7.

    The process has started, made its inputs and initialised the GPU before; what it imports to run
    the kernels, compiles and measures is in the seconds. Triton's cache is an empty folder.

    Args:
        arm: A contender of `gpu.cases.wkv7_case`.
        shape: `(B, T, H, K)`.
        dtype: Of the inputs.
        device: "cuda", or "cpu" in Triton's interpreter.
    """
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        _environment("TRITON_CACHE_DIR", folder),
        concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool,
    ):
        return pool.submit(_measure, arm, shape, dtype, device).result()


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Set a variable for processes that are started inside."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _measure(arm: str, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> float:
    from gpu.cases import wkv7_case

    case = wkv7_case(shape, dtype, device)
    leaves = [x.requires_grad_(x.is_floating_point()) for x in case.inputs.values()]
    weight = torch.randn_like(case.inputs["v"])
    _synchronise(device)
    begin = time.perf_counter()
    y = case.contenders[arm].function(*leaves)[0]
    torch.autograd.grad(y, [x for x in leaves if x.requires_grad], weight)
    _synchronise(device)
    return time.perf_counter() - begin


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
