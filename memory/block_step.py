"""The acting step of a core: its parameters handed to the compiled kernel without copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from operator import getitem, is_, itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from doxastic.kernels.checks import has_data, is_recorded, log_once
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
    neither an optimiser step nor a replaced or transposed parameter goes unseen.

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
        slots = [_slot(block, name) for name in names]
        slots += [(closing._parameters, "weight"), (closing._parameters, "bias")]
        self._holders, self._names = zip(*slots, strict=True)
        self._shapes = [parameters[name].shape for parameters, name in slots]
        width, hidden = block.att.w1.shape[0], block.ffn.key.out_features
        # A matrix `[n, C]` with another n than C fits in one layout only.
        self._flexible = itemgetter(
            *(
                i
                for i, shape in enumerate(self._shapes)
                if len(shape) == 2 and (shape[1] != width or shape[0] == width)
            )
        )
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
        self._strides: list[tuple[int, ...]] = []
        self._attention = block.att
        self._norms = (closing, block.ln1, block.ln2, block.att.ln_x)
        self._seen_eps: list[float] = []
        self._eps = (np.float32(0.0), np.float32(0.0))

    def fits(self, lanes: int) -> bool:
        """Return whether width, head and hidden width are whole vectors of `lanes`."""
        return all(size % lanes == 0 for size in self._sizes[:3])

    def addresses(self) -> list[int] | None:
        """Return where the parameters are, or None, logged once, if the kernel cannot read them.

        The last one is the state offset's, 0 where there is none. None too if the block has got
        an option that the kernel has not.
        """
        if self._attention.double_rate:
            _log("its rate was doubled")
            return None
        eps = [norm.eps for norm in self._norms]
        if eps != self._seen_eps and not self._take_eps(eps):
            return None
        try:
            tensors: list[Tensor] = list(map(getitem, self._holders, self._names))
            offset = self._offset[0][self._offset[1]]
        except KeyError:
            _log("a parameter was replaced by a computed one")
            return None
        if offset is not None:
            if offset.shape != self._offset_shape:
                # The modules say what is wrong with it.
                return None
            tensors.append(offset)
        addresses = list(map(Tensor.data_ptr, tensors))
        if offset is None:
            addresses.append(0)
        # What addresses do not tell: a matrix that was transposed or narrowed where it is, and, by
        # one of each two factors, another rank in memory that was freed and is used again.
        strides = list(map(Tensor.stride, self._flexible(tensors)))
        if addresses != self._seen or strides != self._strides:
            if not all(map(_is_readable, tensors)):
                _log("a parameter is not contiguous float32 on the CPU")
                return None
            if any(x.shape != shape for x, shape in zip(tensors, self._shapes, strict=False)):
                _log("a parameter has another shape than at first")
                return None
            self._seen, self._strides = addresses, strides
        return addresses

    def _take_eps(self, eps: list[float]) -> bool:
        """Return whether the layer norms have one eps, as the kernel has; then remember it."""
        if eps[0] != eps[1] or eps[0] != eps[2]:
            _log("its layer norms have different eps")
            return False
        self._seen_eps, self._eps = eps, (np.float32(eps[0]), np.float32(eps[3]))
        return True

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
    return has_data(tensor) and tensor.is_contiguous()


def _log(reason: str) -> None:
    log_once(f"the acting step of the RWKV-7 core is not compiled: {reason}.")


def can_step(x: Tensor, state: Tensor) -> bool:
    """Return whether the compiled step may serve this input `[B, 1, C]` and state now."""
    return (
        not torch.is_grad_enabled()
        # As `has_data`, without two more calls in every step.
        and type(x) is type(state) is Tensor
        and x.dtype is state.dtype is torch.float32
        and x.is_cpu
        and state.is_cpu
        and not is_recorded()
        # The input projection would hand over half precision, whose bytes are no float32.
        and not torch.is_autocast_enabled("cpu")
    )


class CoreStep:
    """Takes one step of a whole core, a compiled call a block.

    A core that is no longer as it was built, with a replaced submodule, a parametrised weight, a
    hook or a module with a `forward` of its own, has no compiled step: its modules run instead.

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
        # The core is its own child here: nobody replaces it, but it may have hooks.
        links = [({"core": core}, "core"), *_links(core, "blocks"), *_links(core, "ln_out")]
        self._holders, self._names = zip(*links, strict=True)
        self._modules = [holder[name] for holder, name in links]
        self._own = [module.__dict__ for module in self._modules]
        self._hooks = [own["_forward_hooks"] for own in self._own]
        self._hooks += [own["_forward_pre_hooks"] for own in self._own]

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
        # Mapped, not looped over: this is a tenth of a small step.
        if not all(map(is_, map(dict.get, self._holders, self._names), self._modules)):
            _log("a submodule was replaced")
            return None
        # No gradient is recorded: hooks of the backward have nothing to see.
        own_forward = any(map(dict.__contains__, self._own, repeat("forward")))
        if own_forward or any(self._hooks):
            _log("a module has a forward hook or a forward of its own")
            return None
        if _has_any_global_hook():
            _log("all modules have a hook")
            return None
        places = [addresses for step in self._steps if (addresses := step.addresses())]
        if len(places) < len(self._steps):
            return None
        x, state, reset = x.contiguous(), state.contiguous(), reset.contiguous()
        new, out = torch.empty_like(state), torch.empty_like(x)
        # A single layer writes its values, which nobody reads, before it writes its output.
        v_first = torch.empty_like(x) if len(self._steps) > 1 else out
        for step, addresses in zip(self._steps, places, strict=True):
            step(x, state, reset, v_first, out, new, addresses)
            x = out
        return out, new


def _links(parent: nn.Module, name: str) -> list[tuple[dict[str, Any], str]]:
    """Return child `name` and all below it, each by who holds it and under which key."""
    child = parent.get_submodule(name)
    below = [link for key, _ in child.named_children() for link in _links(child, key)]
    return [(parent._modules, name), *below]


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
