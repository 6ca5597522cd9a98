"""What the public kernels check, and how they choose a backend."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import Tensor, nn

from doxastic.kernels.transforms import is_transformed

logger = logging.getLogger("doxastic.kernels")

_Function = TypeVar("_Function", bound=Callable[..., object])
_logged: set[str] = set()
# Other subclasses of Tensor may keep their data elsewhere: fake, distributed, quantised ones.
_PLAIN = frozenset((Tensor, nn.Parameter))


def _is_installed(name: str) -> bool:
    """Return whether a package could be imported, without importing it."""
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # Blocked: by a finder, or with None in sys.modules.
        return False


_HAS_TRITON = _is_installed("triton")


def check_tensor(
    name: str, x: Tensor, letters: str, shape: Sequence[int], like: Tensor, anchor: str
) -> None:
    """Raise `ValueError` unless `x` is a float tensor of this shape, where `like` is.

    Args:
        name: Name of the argument, for the message.
        x: The argument.
        letters: The expected axes, e.g. "[B, T, H, K]".
        shape: Their sizes.
        like: The tensor whose device is expected.
        anchor: Name of `like`.
    """
    if x.shape != tuple(shape):
        raise ValueError(
            f"{name} has shape {list(x.shape)}; expected {letters} = {list(shape)} to fit {anchor}."
        )
    if not x.dtype.is_floating_point:
        raise ValueError(
            f"{name} is {x.dtype}; expected a floating dtype. Convert it with .float()."
        )
    if x.device != like.device:
        raise ValueError(
            f"{name} is on {x.device}; expected {like.device}, where {anchor} is. Move it there."
        )


def check_rank(name: str, x: Tensor, letters: str, rank: int) -> None:
    """Raise `ValueError` unless `x` has this many axes, none of them empty after the first."""
    if x.ndim != rank or 0 in x.shape[1:]:
        raise ValueError(
            f"{name} has shape {list(x.shape)}; expected {letters} with at least one of each."
        )


def check_state(
    state: Tensor | None, letters: str, shape: Sequence[int], dtype: torch.dtype, like: Tensor
) -> None:
    """Raise `ValueError` unless `state` is None or fits; states are at least float32."""
    if state is None:
        return
    check_tensor("state", state, letters, shape, like, "the inputs")
    if state.dtype not in (torch.float32, dtype):
        raise ValueError(
            f"state is {state.dtype}; expected torch.float32"
            f"{'' if dtype == torch.float32 else f' or {dtype}'}, whatever the inputs are."
        )


def check_reset(reset: Tensor | None, letters: str, shape: Sequence[int], like: Tensor) -> None:
    """Raise `ValueError` unless `reset` is None or a bool tensor of this shape beside `like`."""
    if reset is None:
        return
    if reset.shape != tuple(shape) or reset.dtype != torch.bool or reset.device != like.device:
        raise ValueError(
            f"reset is {list(reset.shape)} {reset.dtype} on {reset.device}; expected {letters} = "
            f"{list(shape)} torch.bool on {like.device}."
        )


def check_decay(name: str, x: Tensor, lowest: float | None = None) -> None:
    """Raise `ValueError` if a log-decay on the CPU is positive, or below `lowest` where given.

    Elsewhere looking would make the device wait, and where tensors only stand for others, see
    `is_recorded`, there is nothing to look at: there the contract holds unchecked.
    """
    if x.device.type != "cpu" or is_recorded() or type(x) not in _PLAIN or not x.numel():
        return
    x = x.detach()
    if lowest is not None and (least := x.amin().item()) < lowest:
        raise ValueError(
            f"{name} reaches {least:.4g}; backend 'chunked' takes log-decays of at least {lowest} "
            f"in this dtype, below which it may overflow. Pass backend='reference'."
        )
    if lowest is None and (most := _largest(x)) > 0:
        raise ValueError(
            f"{name} reaches {most:.4g}; expected log-decays, at most 0. If these are decays "
            f"in (0, 1], pass {name}.log()."
        )


def find_backend(name: str, backends: Mapping[str, _Function]) -> _Function:
    """Return the backend of this name, or raise `ValueError` listing what exists."""
    if name not in backends:
        raise ValueError(f"backend {name!r} does not exist; expected 'auto' or {sorted(backends)}.")
    return backends[name]


def automatic(operation: str, device: torch.device, dtype: torch.dtype, obstacle: str = "") -> str:
    """Return the backend for tensors of this device and dtype.

    That is "cpu" on the CPU and "triton" on CUDA, for what is computed in float32, else "chunked".

    Args:
        operation: Name of the public function, for the log.
        device: Where the tensors are.
        dtype: What the result is computed in.
        obstacle: What else keeps the fast backend from doing it, for the log.
    """
    fast = {"cpu": "cpu", "cuda": "triton"}.get(device.type)
    if fast is None:
        obstacle = f"there is no compiled kernel for tensors on {device.type}"
    elif fast == "triton" and not _HAS_TRITON:
        obstacle = "triton is not installed"
    elif dtype != torch.float32:
        obstacle = f"the compiled kernel does not compute in {dtype}"
    if fast is not None and not obstacle:
        return fast
    log_once(f"{operation} uses backend 'chunked': {obstacle}.")
    return "chunked"


def _largest(x: Tensor) -> float:
    """Return the largest element.

    NumPy's way on one thread: after a reduction on several, PyTorch's threads go on spinning for
    work on the cores that the kernel needs next.
    """
    if x.is_cpu and x.dtype in (torch.float32, torch.float64):
        try:
            return float(x.detach().numpy().max())
        except RuntimeError:  # PyTorch was installed without NumPy.
            pass
    return float(x.amax().item())


def empty_state(like: Tensor, *shape: int) -> Tensor:
    """Return zeros in float32 beside `like`, on the CPU without PyTorch's threads.

    See `_largest`: filling a large state on several threads would slow the kernel after it.
    """
    if type(like) is not Tensor or not like.is_cpu or is_recorded():
        return torch.zeros(shape, dtype=torch.float32, device=like.device)
    import numpy as np

    return torch.from_numpy(np.zeros(shape, np.float32))


def is_recorded() -> bool:
    """Return whether operations are not simply carried out now, so that reading data is no use.

    They are compiled or traced, go through a dispatch mode (fake tensors, `make_fx`), or are
    transformed (`vmap`, `grad`, forward-mode differentiation).
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
        or is_transformed()
    )


def has_data(x: Tensor) -> bool:
    """Return whether `x` is float32 on the CPU and has, unless `is_recorded`, data of its own."""
    return type(x) in _PLAIN and x.dtype is torch.float32 and x.is_cpu


def can_fuse(width: int, *tensors: Tensor) -> bool:
    """Return whether a fused CPU kernel may take these tensors, float32 on the CPU all of them.

    The kernels read addresses, which recorded tensors have not, of float32 numbers, which products
    under autocast are not.

    Args:
        width: The innermost width, which must be whole vectors.
        tensors: Every float tensor that the kernel would read.
    """
    if is_recorded() or torch.is_autocast_enabled("cpu"):
        return False
    for x in tensors:
        # As `has_data`: called for every layer, where a call for every tensor would be felt.
        if type(x) not in _PLAIN or x.dtype is not torch.float32 or not x.is_cpu:
            return False
    lanes = _lanes()
    return lanes > 0 and width % lanes == 0


@functools.cache
def _lanes() -> int:
    """Return how many float32 a vector of the CPU kernels holds, 0 without numba."""
    try:
        from doxastic.kernels.cpu.simd import LANES
    except ImportError:
        return 0
    return LANES


def can_launch(*tensors: Tensor) -> bool:
    """Return whether the fused Triton kernels may take these tensors: CUDA, at most 32 bits, all.

    In graphs being compiled too, where they are operators of `torch.library`, and under autocast:
    they compute in float32 whatever the tensors are.

    Args:
        tensors: Every float tensor that the kernel would read.
    """
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    if not all(x.is_cuda and x.dtype in dtypes for x in tensors):
        return False
    if not _HAS_TRITON:
        log_once("what surrounds the recurrences is composed: triton is not installed.")
    return _HAS_TRITON


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast leaves operations on tensors like `x` alone.

    Autocast speaks for projections. A recurrence multiplies matrices too, but its states are sums
    over the whole past: they are formed in float32 from whatever the projections hand over.
    """
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def log_once(message: str) -> None:
    """Log a warning the first time this message comes; compiled graphs stay silent."""
    if not torch.compiler.is_compiling() and message not in _logged:
        _logged.add(message)
        logger.warning(message)


def check_cpu(device: torch.device, dtype: torch.dtype) -> None:
    """Raise `ValueError` unless backend "cpu" can compute on this device in this dtype."""
    if device.type != "cpu" or dtype != torch.float32:
        raise ValueError(
            f"backend 'cpu' computes in torch.float32 on the CPU; came {dtype} on {device}. "
            "Pass backend='chunked'."
        )
