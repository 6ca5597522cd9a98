"""The acting step of a core: its parameters handed to the compiled kernel without copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from doxastic.kernels.checks import log_once
from doxastic.memory.block import Block
from doxastic.memory.channel_mix import ChannelMix
from doxastic.memory.state import StateLayout

_BEFORE = ("ln1.weight", "ln1.bias")
_RATIOS = tuple(f"att.x_{name}" for name in "rwkvag")
_FIRST = ("att.w0", "att.w1", "att.w2", "att.a0", "att.a1", "att.a2")
_VALUE = ("att.v0", "att.v1", "att.v2")
_RANKED = ("att.w1", "att.a1", "att.g1")
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
        width, hidden = block.att.w1.shape[0], block.ffn.key.out_features
        ranks = (block.get_parameter(f"{path[:-1]}1").shape[1] for path in (*_RANKED, value[0]))
        self._sizes = (width, block.att.head_size, hidden, *ranks)
        self._offset = _slot(block, "att.state_offset")
        self._offset_shape = (block.att.heads, block.att.head_size, block.att.head_size)
        self._places = tuple(
            layout.offset(f"{layer}.{name}") for name in ("time_shift", "wkv", "channel_shift")
        )
        self._flags = (layer > 0, is_last)
        self._run: Callable[..., None] | None = None
        self._seen: list[int] = []
        self._eps = (np.float32(closing.eps), np.float32(block.att.ln_x.eps))

    def fits(self, lanes: int) -> bool:
        """Return whether width, head and hidden width are whole vectors of `lanes`."""
        return all(size % lanes == 0 for size in self._sizes[:3])

    def addresses(self) -> list[int] | None:
        """Return where the parameters are, or None, logged once, if the kernel cannot read them.

        The last one is the state offset's, 0 where there is none.
        """
        try:
            tensors = [parameters[name] for parameters, name in self._slots]
            offset = self._offset[0][self._offset[1]]
        except KeyError:
            _log("a parameter was replaced by a computed one")
            return None
        if offset is not None:
            if offset.shape != self._offset_shape:
                # The modules say what is wrong with it.
                return None
            tensors.append(offset)
        addresses = [tensor.data_ptr() for tensor in tensors]
        if offset is None:
            addresses.append(0)
        if addresses != self._seen:
            if not all(map(_is_readable, tensors)):
                _log("a parameter is not contiguous float32 on the CPU")
                return None
            self._seen = addresses
        return addresses

    def __call__(
        self, x: Tensor, state: Tensor, reset: Tensor, v_first: Tensor, out: Tensor, new: Tensor,
        addresses: list[int],
    ) -> None:  # fmt: skip
        """Write the block's output and its parts of the new state.

        Args:
            x: `[B, C]`, contiguous like all of them.
            state: `[B, S]`.
            reset: `[B]` bool.
            v_first: `[B, C]`, written by the first layer and read by later ones.
            out: `[B, C]`, written.
            new: `[B, S]`, written.
            addresses: From `addresses`.
        """
        if self._run is None:
            from doxastic.kernels.cpu.block_step import run_block_step

            self._run = run_block_step
        self._run(
            reset.numel(), (*self._sizes, state.shape[1], *self._places, *self._flags, *self._eps),
            (x, state, reset, v_first, out, new), addresses,
        )  # fmt: skip


def _is_standard(block: Block) -> bool:
    """Return whether the block is what the kernel computes; ln0 runs before it."""
    return type(block.ffn) is ChannelMix and not block.att.double_rate


def _slot(block: Block, path: str) -> tuple[dict[str, Any], str]:
    """Return the dictionary that holds a parameter, and its key."""
    owner, _, name = path.rpartition(".")
    return block.get_submodule(owner)._parameters, name


def _is_readable(tensor: Tensor) -> bool:
    return tensor.dtype is torch.float32 and tensor.is_cpu and tensor.is_contiguous()


def _log(reason: str) -> None:
    log_once(f"the acting step of the RWKV-7 core is not compiled: {reason}.")


def can_step(x: Tensor, state: Tensor) -> bool:
    """Return whether the compiled step may serve this input `[B, 1, C]` and state now."""
    return (
        not torch.is_grad_enabled()
        and type(x) is Tensor
        and x.dtype is torch.float32
        and state.dtype is torch.float32
        and x.is_cpu
        and state.is_cpu
        and not torch.compiler.is_compiling()
        # The input projection would hand over half precision, whose bytes are no float32.
        and not torch.is_autocast_enabled("cpu")
        # Inside a functorch transform (vmap, grad) tensors have no data of their own.
        and torch._C._functorch.peek_interpreter_stack() is None
    )


class CoreStep:
    """Takes one step of a whole core, a compiled call a block.

    A core that is no longer as it was built, with a replaced submodule, a parametrised weight or a
    hook, has no compiled step: its modules run instead.

    Args:
        core: What holds the blocks and the closing layer norm, as `blocks` and `ln_out`.
        blocks: The blocks.
        closing: The layer norm after the last one.
        layout: Layout of the state.
    """

    def __init__(
        self, core: nn.Module, blocks: Sequence[Block], closing: nn.LayerNorm, layout: StateLayout
    ) -> None:
        last = len(blocks) - 1
        self._steps = [
            BlockStep(block, layout, layer, closing, layer == last)
            for layer, block in enumerate(blocks)
        ]
        self._links = _links(core, "blocks") + _links(core, "ln_out")

    def fits(self, lanes: int) -> bool:
        """Return whether every width is whole vectors of `lanes`."""
        return all(step.fits(lanes) for step in self._steps)

    def __call__(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return output and new state, or None, logged once, if the modules have to run.

        Args:
            x: `[B, 1, C]`.
            state: `[B, S]`.
            reset: `[B, 1]` bool.
        """
        for children, name, child, hooks, pre_hooks in self._links:
            if children.get(name) is not child:
                _log("a submodule was replaced")
                return None
            if hooks or pre_hooks:
                _log("a submodule has a forward hook")
                return None
        places = [addresses for step in self._steps if (addresses := step.addresses())]
        if len(places) < len(self._steps):
            return None
        x, state, reset = x.contiguous(), state.contiguous(), reset.contiguous()
        new, out, v_first = torch.empty_like(state), torch.empty_like(x), torch.empty_like(x)
        for step, addresses in zip(self._steps, places, strict=True):
            step(x, state, reset, v_first, out, new, addresses)
            x = out
        return out, new


def _links(
    parent: nn.Module, name: str
) -> list[tuple[dict[str, nn.Module | None], str, nn.Module, Any, Any]]:
    """Return child `name` and all below it: who holds it, under which key, itself, its hooks."""
    child = parent.get_submodule(name)
    below = [link for key, _ in child.named_children() for link in _links(child, key)]
    own = (parent._modules, name, child, child._forward_hooks, child._forward_pre_hooks)
    return [own, *below]


def build_step(
    core: nn.Module, blocks: Sequence[Block], closing: nn.LayerNorm, layout: StateLayout
) -> CoreStep | None:
    """Return the core's acting step, or None where the kernel cannot serve it.

    It needs numba, widths of whole vectors, and blocks without options.
    """
    if not all(map(_is_standard, blocks)):
        return None
    try:
        from doxastic.kernels.cpu.simd import LANES
    except ImportError:
        return None
    step = CoreStep(core, blocks, closing, layout)
    return step if step.fits(LANES) else None
