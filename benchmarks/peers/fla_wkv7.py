"""flash-linear-attention's WKV-7, called as `doxastic.kernels.wkv7.wkv7` is.

Its layout is ours, `[B, T, H, K]`, and so is its log-decay; its states are `[B, H, K, V]`, the
transpose of ours. It knows no resets. Written against fla-core 0.6.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from torch import Tensor

Function = Callable[..., tuple[Tensor, Tensor]]
"""`(r, w, k, v, a, b) -> (y [B, T, H, V], state [B, H, V, K])`."""
Settings = dict[str, int | float | bool]

# -exp(-1/2), the least log-decay of RWKV-7. It allows chunks of 64 on tensor cores.
LOWER_BOUND = -0.6065306597
CHUNK_64, CHUNK_64_STORED = "fla chunk 64", "fla chunk 64, stored"
CHUNK_16, RECURRENT = "fla chunk 16", "fla recurrent"


def is_installed() -> bool:
    """Return whether fla can be found, without importing it."""
    return find_spec("fla") is not None


def versions() -> dict[str, str]:
    """Return the versions of its distributions, "absent" where there is none."""
    found = {}
    for package in ("fla-core", "flash-linear-attention"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def functions() -> dict[str, Function]:
    """Return every way in which fla computes WKV-7 that is worth comparing with.

    - chunk 64: the widest chunk that the bound on the decay allows, on tensor cores;
    - chunk 64, stored: the same, keeping for the backward pass what it else computes again;
    - chunk 16: what a caller gets who says nothing about the decay;
    - recurrent: step by step, without a backward pass.
    """
    wide: Settings = {"chunk_size": 64, "safe_gate": True, "lower_bound": LOWER_BOUND}
    return {
        CHUNK_64: _chunk(wide),
        CHUNK_64_STORED: _chunk({**wide, "disable_recompute": True}),
        CHUNK_16: _chunk({"chunk_size": 16}),
        RECURRENT: _recurrent,
    }


def _chunk(settings: Settings) -> Function:
    def function(
        r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor]:
        from fla.ops.rwkv7 import chunk_rwkv7

        y, state = chunk_rwkv7(r, w, k, v, a, b, scale=1.0, output_final_state=True, **settings)
        return y, state.mT

    return function


def _recurrent(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    from fla.ops.rwkv7 import fused_recurrent_rwkv7

    # Its default scale is K^(-1/2).
    y, state = fused_recurrent_rwkv7(r, w, k, v, a, b, scale=1.0, output_final_state=True)
    return y, state.mT
