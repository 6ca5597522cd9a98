"""The acting step of a block: its parameters handed to the compiled kernel without copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from doxastic.memory.block import Block
from doxastic.memory.state import StateLayout

_BEFORE = ("ln1.weight", "ln1.bias")
_RATIOS = tuple(f"att.x_{name}" for name in "rwkvag")
_FIRST = ("att.w0", "att.w1", "att.w2", "att.a0", "att.a1", "att.a2")
_VALUE = ("att.v0", "att.v1", "att.v2")
_REST = (
    "att.g1", "att.g2", "att.k_k", "att.k_a", "att.r_k", "att.receptance.weight",
    "att.key.weight", "att.value.weight", "att.output.weight", "att.ln_x.weight",
    "att.ln_x.bias", "ln2.weight", "ln2.bias", "ffn.x_k", "ffn.key.weight", "ffn.value.weight",
)  # fmt: skip


class BlockStep:
    """Takes one step of a block, `[B, C]` to `[B, C]`, in one compiled call.

    The kernel reads the parameters where they are; they are looked up at every call, so that
    neither an optimiser step nor a replaced parameter goes unseen.

    Args:
        block: The block.
        layout: Layout of the whole core's state.
        layer: Index of the block in the core.
        closing: The core's layer norm, applied after the last block.
        is_last: Whether this is that block.
    """

    def __init__(
        self, block: Block, layout: StateLayout, layer: int, closing: nn.LayerNorm, is_last: bool
    ) -> None:
        value = _VALUE if layer else ("att.a0",) * 3
        names = (*_BEFORE, *_RATIOS, *_FIRST, *value, *_REST)
        self._slots = [_slot(block, name) for name in names]
        self._slots += [(closing._parameters, "weight"), (closing._parameters, "bias")]
        width, rank = block.att.w1.shape
        hidden = block.ffn.key.out_features
        self._sizes = (width, block.att.head_size, hidden, rank, layout.size)
        self._places = tuple(
            layout.offset(f"{layer}.{name}") for name in ("time_shift", "wkv", "channel_shift")
        )
        self._flags = (layer > 0, is_last)
        self._run: Callable[..., None] | None = None
        self._seen: list[int] = []
        self._eps = np.float32(block.att.ln_x.eps)

    def fits(self, lanes: int) -> bool:
        """Return whether width, head and hidden width are whole vectors of `lanes`."""
        return all(size % lanes == 0 for size in self._sizes[:3])

    def __call__(
        self, x: Tensor, state: Tensor, reset: Tensor, v_first: Tensor, out: Tensor, new: Tensor
    ) -> None:
        """Write the block's output and its parts of the new state.

        Args:
            x: `[B, C]`, contiguous like all of them.
            state: `[B, S]`.
            reset: `[B]` bool.
            v_first: `[B, C]`, written by the first layer and read by later ones.
            out: `[B, C]`, written.
            new: `[B, S]`, written.
        """
        if self._run is None:
            from doxastic.kernels.cpu.block_step import run_block_step

            self._run = run_block_step
        self._run(
            reset.numel(), (*self._sizes, *self._places, *self._flags, self._eps),
            (x, state, reset, v_first, out, new), self._addresses(),
        )  # fmt: skip

    def _addresses(self) -> list[int]:
        tensors = [parameters[name] for parameters, name in self._slots]
        addresses = [tensor.data_ptr() for tensor in tensors]
        if addresses != self._seen:
            if not all(tensor.is_contiguous() for tensor in tensors):
                raise ValueError(
                    "a parameter of the block is not contiguous; expected the layout it was "
                    "built with. Assign a contiguous copy."
                )
            self._seen = addresses
        return addresses


def _slot(block: Block, path: str) -> tuple[dict[str, Any], str]:
    """Return the dictionary that holds a parameter, and its key."""
    owner, _, name = path.rpartition(".")
    return block.get_submodule(owner)._parameters, name


def can_step(x: Tensor) -> bool:
    """Return whether the compiled step may serve this input `[B, 1, C]` now."""
    return (
        not torch.is_grad_enabled()
        and type(x) is Tensor
        and x.dtype is torch.float32
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        # Inside a functorch transform (vmap, grad) tensors have no data of their own.
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def build_steps(
    blocks: nn.ModuleList, layout: StateLayout, closing: nn.LayerNorm
) -> list[BlockStep] | None:
    """Return the acting steps of all blocks, or None where the kernel cannot serve them.

    It needs numba, and widths of whole vectors.
    """
    try:
        from doxastic.kernels.cpu.simd import LANES
    except ImportError:
        return None
    last = len(blocks) - 1
    steps = [
        BlockStep(block, layout, layer, closing, layer == last)  # type: ignore[arg-type]
        for layer, block in enumerate(blocks)
    ]
    return steps if all(step.fits(LANES) for step in steps) else None
