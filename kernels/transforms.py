"""Whether a transform is at work that compiled kernels cannot follow."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

BLIND = "no transform of torch.func and no forward-mode derivative reaches a compiled kernel"


def is_transformed() -> bool:
    """Return whether a `torch.func` transform or forward-mode differentiation is active.

    A kernel reads numbers. Under `vmap` a tensor has none of its own, and a tangent travels beside
    them: a kernel would return a derivative of zero without a word.
    """
    # In a graph being compiled the interpreter stack never reads as None.
    return not torch.compiler.is_compiling() and (
        torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    )


def check_backend(backend: str) -> None:
    """Raise `ValueError` if a transform is active that this backend cannot follow."""
    if backend in ("cpu", "triton") and is_transformed():
        raise ValueError(
            f"backend {backend!r} was asked for inside a transform: {BLIND}. "
            "Pass backend='chunked' or 'reference'."
        )
