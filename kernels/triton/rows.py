"""How tensors are handed to the kernels around the recurrence."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

# Numbers in a tile of four warps, and programs at most where each leaves a sum: about eight for
# each of 132 multiprocessors.
TILE, PROGRAMS = 1024, 1024


def rows(x: Tensor) -> Tensor:
    """Return `[..., C]` as `[N, C]` with contiguous channels, a copy only where it must be.

    Slices of a wider tensor keep their row stride: a third of a projection is read in place.
    """
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 else x.contiguous()


def check_dtypes(inputs: dict[str, Tensor]) -> None:
    """Raise `ValueError` unless the inputs, by name, are float32, bfloat16 or float16."""
    for name, x in inputs.items():
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(
                f"{name} is {x.dtype}; backend 'triton' takes torch.float32, torch.bfloat16 and "
                "torch.float16. Pass backend='chunked'."
            )


def flags(reset: Tensor) -> Tensor:
    """Return resets as contiguous bytes, what a kernel can load."""
    return reset.contiguous().view(torch.uint8)


def head_blocks(N: int, H: int, K: int, tiles: int | None = None) -> tuple[int, int, int, int]:
    """Return how the tokens of H heads are split over programs of one head each.

    Args:
        N: Tokens.
        H: Heads.
        K: Width of a head.
        tiles: Tiles that a program takes one after another; None for as few as leave `PROGRAMS`
            of them, whose sums are then added up.

    Returns:
        Tokens of a tile, its width, the number of programs, a multiple of H, and their tiles.
    """
    block = triton.next_power_of_2(K)
    tokens = max(1, TILE // block)
    count = triton.cdiv(N, tokens)
    tiles = tiles or triton.cdiv(count, max(1, PROGRAMS // H))
    return tokens, block, triton.cdiv(count, tiles) * H, tiles
