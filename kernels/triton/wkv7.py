"""Backend "triton" of WKV-7: launches, and the operators that autograd and torch.compile see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from doxastic.kernels.triton import tuned
from doxastic.kernels.triton.common import OPTIONS, check_runnable, on_device, padded
from doxastic.kernels.triton.rows import check_dtypes, flags
from doxastic.kernels.triton.tuned import Blocks, Config
from doxastic.kernels.triton.wkv7_backward import gradient_kernel, state_gradient_kernel
from doxastic.kernels.triton.wkv7_forward import forward_kernel, group_kernel

Tensors3 = tuple[Tensor, Tensor, Tensor]
Tensors7 = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    *,
    config: Config | None = None,
    groups: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state of the WKV-7 recurrence, on a GPU.

    Results as in `doxastic.kernels.wkv7.wkv7`. Inputs may be float32, bfloat16 or float16, each its
    own; under autocast they are taken as they come. What is not contiguous is copied. The state,
    the decays and all sums are float32; see `precision` for the products.

    Args:
        r: Query `[B, T, H, K]` or `[B, T, H, Q, K]`.
        w: Log-decay `[B, T, H, K]`, at most 0, -inf included.
        k: Key, like w.
        v: Value `[B, T, H, V]`.
        a: Removal vector, like w.
        b: Replacement vector, like w.
        state: `[B, H, V, K]` float32; None for zeros.
        reset: `[B, T]` bool; None for none.
        config: How the kernels are laid out; None for the table in `tuned.py`.
        groups: Parts of the sequence that are worked on at once, each after its effect on the state
            was summed up in a matrix; 0 for as many as keep the GPU busy.

    Raises:
        ValueError: The tensors are where Triton cannot run, a dtype is not one of the three, or the
            configuration contradicts itself.
    """
    check_runnable("v", v)
    check_dtypes({"r": r, "w": w, "k": k, "v": v, "a": a, "b": b})
    if config is not None:
        tuned.check(config)
    if state is None:
        batch, _, heads, values = v.shape
        state = v.new_zeros(batch, heads, values, k.shape[-1], dtype=torch.float32)
    if reset is None:
        reset = torch.empty(0, dtype=torch.bool, device=v.device)
    queries = r if r.ndim == 5 else r.unsqueeze(3)
    inputs = [x.contiguous() for x in (queries, w, k, v, a, b, state, reset)]
    store = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    y, final, _ = _forward(*inputs, store, [] if config is None else config.numbers(), groups)
    return y if r.ndim == 5 else y.squeeze(3), final


def precision(*tensors: Tensor) -> str:
    """Return how products of these tensors are formed: "bf16", "tf32" or "tf32x3".

    float16 operands would overflow with the state or with a factor of decay; tf32 has their 10
    bits and the range of float32.
    """
    dtypes = {x.dtype for x in tensors}
    if dtypes == {torch.bfloat16}:
        return "bf16"
    return "tf32x3" if torch.float32 in dtypes else "tf32"


def _layout(config: Sequence[int], *tensors: Tensor) -> Config:
    """Return the configuration that an operator was given, or the table's for r, k, v, a, b."""
    if config:
        return Config.from_numbers(config)
    _, k, v, *_ = tensors
    widths = padded(k.shape[-1]), padded(v.shape[-1])
    return tuned.choose(tuned.architecture(v.device), *widths, precision(*tensors))


def _busy_groups(v: Tensor, layout: Config) -> int:
    """Return into how many groups to cut the sequences: 1 unless most of the GPU would idle.

    Cut sequences are passed over twice, with K further rows the first time: about three times the
    work, which pays from four groups on. Two programs per multiprocessor hide each other's waits.
    """
    batch, steps, heads, values = v.shape
    if not v.is_cuda:
        return 1
    processors = torch.cuda.get_device_properties(v.device).multi_processor_count
    programs = batch * heads * triton.cdiv(values, min(layout.forward.values, padded(values)))
    groups = min(2 * processors // max(1, programs), steps // (8 * layout.gradient.steps))
    return groups if groups >= 4 else 1


class _Launch(NamedTuple):
    """What the launches of one call share.

    Attributes:
        chains: B H.
        steps: T.
        heads: H.
        groups: Groups that a sequence is cut into, none of them empty.
        group_steps: Steps of each but the last.
        spans: Parts of `span` steps, at whose ends states are kept.
        span: Their steps.
        shared: Constants of all three kernels.
    """

    chains: int
    steps: int
    heads: int
    groups: int
    group_steps: int
    spans: int
    span: int
    shared: dict[str, Any]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Return what the serial kernels take after their tensors."""
        return self.steps, self.heads, self.groups, self.group_steps

    def serial(self, blocks: Blocks) -> dict[str, Any]:
        """Return the constants of a serial kernel."""
        options = _options(blocks, self.shared["V"])
        return self.shared | options | {"CHUNK": blocks.steps, "SPAN": self.span}


def _options(blocks: Blocks, values: int) -> dict[str, Any]:
    return {
        "BLOCK_V": min(blocks.values, padded(values)),
        "LEVELS": blocks.steps.bit_length() - 1,
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
        **OPTIONS,
    }


def _plan(
    r: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, reset: Tensor, layout: Config,
    groups: int,
) -> _Launch:  # fmt: skip
    batch, steps, heads, values = v.shape
    span = layout.gradient.steps
    spans = triton.cdiv(steps, span)
    group_spans = triton.cdiv(spans, groups or _busy_groups(v, layout))
    products = precision(r, k, v, a, b)
    shared = {
        "K": k.shape[-1],
        "V": values,
        "Q": r.shape[3],
        "BLOCK_K": padded(k.shape[-1]),
        "HAS_RESET": reset.numel() > 0,
        "PRECISION": products,
        "SOLVE": "tf32x3" if products == "tf32x3" else "tf32",
    }
    groups = triton.cdiv(spans, group_spans)
    return _Launch(batch * heads, steps, heads, groups, group_spans * span, spans, span, shared)


@torch.library.custom_op("doxastic::triton_wkv7_forward", mutates_args=())
def _forward(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    state: Tensor, reset: Tensor, store: bool, config: Sequence[int], groups: int,
) -> Tensors3:  # fmt: skip
    layout = _layout(config, r, k, v, a, b)
    plan = _plan(r, k, v, a, b, reset, layout, groups)
    constants = plan.serial(layout.forward) | {"STORE": False, "SUMMARY": False}
    tensors = (r, w, k, v, a, b, flags(reset))
    y, final, stored = _empty_outputs(r, k, v, a, b, state, store, layout.gradient.steps)
    blocks = triton.cdiv(v.shape[3], constants["BLOCK_V"])
    with on_device(v):
        entry = state
        if plan.groups > 1:
            summary, summary_blocks = _empty_summary(v, plan, constants)
            forward_kernel[(plan.chains * plan.groups * summary_blocks,)](
                *tensors, state, y, summary, stored, *plan.sizes, **constants | {"SUMMARY": True}
            )
            entry = _entries(state, summary, plan, constants, blocks, reverse=False)
        forward_kernel[(plan.chains * plan.groups * blocks,)](
            *tensors, entry, y, final, stored, *plan.sizes, **constants | {"STORE": store}
        )
    return y, final, stored


def _empty_outputs(
    r: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, store: bool, span: int
) -> Tensors3:
    batch, steps, heads, queries, keys = r.shape
    values = v.shape[3]
    y = v.new_empty(batch, steps, heads, queries, values)
    # Their products would round them anyway.
    dtype = torch.bfloat16 if precision(r, k, v, a, b) == "bf16" else torch.float32
    shape = (batch, heads, -(-steps // span), values, keys) if store else (0,)
    return y, torch.empty_like(state), v.new_empty(shape, dtype=dtype)


def _empty_summary(v: Tensor, plan: _Launch, constants: dict[str, Any]) -> tuple[Tensor, int]:
    """Return room for N above M of every group, and how many blocks of rows that is."""
    rows, keys = constants["BLOCK_V"], constants["BLOCK_K"]
    blocks = triton.cdiv(v.shape[3], rows) + triton.cdiv(keys, rows)
    shape = (plan.chains, plan.groups, blocks * rows, keys)
    return v.new_empty(shape, dtype=torch.float32), blocks


def _entries(
    state: Tensor, summary: Tensor, plan: _Launch, constants: dict[str, Any], blocks: int, *,
    reverse: bool,
) -> Tensor:  # fmt: skip
    """Return the states before every group, or their gradients after it."""
    values, keys = state.shape[2:]
    entry = state.new_empty(plan.chains, plan.groups, values, keys)
    shared = {name: constants[name] for name in ("K", "V", "BLOCK_K", "BLOCK_V")}
    group_kernel[(plan.chains * blocks,)](
        state, summary, entry, plan.groups,
        **shared, REVERSE=reverse, num_warps=4, num_stages=1, **OPTIONS,
    )  # fmt: skip
    return entry


@_forward.register_fake
def _(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    state: Tensor, reset: Tensor, store: bool, config: Sequence[int], groups: int,
) -> Tensors3:  # fmt: skip
    layout = _layout(config, r, k, v, a, b)
    return _empty_outputs(r, k, v, a, b, state, store, layout.gradient.steps)


@torch.library.custom_op("doxastic::triton_wkv7_backward", mutates_args=())
def _backward(
    dy: Tensor, dfinal: Tensor,
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    reset: Tensor, stored: Tensor, config: Sequence[int], groups: int,
) -> Tensors7:  # fmt: skip
    layout = _layout(config, r, k, v, a, b)
    plan = _plan(r, k, v, a, b, reset, layout, groups)
    with on_device(v):
        dstored, dstate = _state_gradients(
            (r, w, a, b, flags(reset), dy), v, dfinal, stored, plan, layout.state_gradient
        )
        options = _options(layout.gradient, v.shape[3])
        blocks = triton.cdiv(v.shape[3], options["BLOCK_V"])
        dr, dw, dk, da, db = (_empty_shares(x, blocks) for x in (r, w, k, a, b))
        dv = torch.empty_like(v)
        gradient_kernel[(plan.chains * plan.spans * blocks,)](
            r, w, k, v, a, b, flags(reset), dy, stored, dstored, dr, dw, dk, dv, da, db,
            plan.steps, plan.heads, v.shape[0] * plan.steps * plan.heads,
            **plan.shared, SPAN=plan.span, **options,
        )  # fmt: skip
    if blocks > 1:
        shares = zip((dr, dw, dk, da, db), (r, w, k, a, b), strict=True)
        dr, dw, dk, da, db = (share.sum(0).to(x.dtype) for share, x in shares)
    return dr, dw, dk, dv, da, db, dstate


def _state_gradients(
    tensors: tuple[Tensor, ...], v: Tensor, dfinal: Tensor, stored: Tensor,
    plan: _Launch, layout: Blocks,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of the states after every span, and of the initial state."""
    constants = plan.serial(layout)
    blocks = triton.cdiv(v.shape[3], constants["BLOCK_V"])
    dstored, dstate = torch.empty_like(stored), torch.empty_like(dfinal)
    entry = dfinal
    if plan.groups > 1:
        summary, summary_blocks = _empty_summary(v, plan, constants)
        state_gradient_kernel[(plan.chains * plan.groups * summary_blocks,)](
            *tensors, dfinal, summary, dstored, *plan.sizes, **constants, SUMMARY=True
        )
        entry = _entries(dfinal, summary, plan, constants, blocks, reverse=True)
    state_gradient_kernel[(plan.chains * plan.groups * blocks,)](
        *tensors, entry, dstate, dstored, *plan.sizes, **constants, SUMMARY=False
    )
    return dstored, dstate


def _empty_shares(x: Tensor, blocks: int) -> Tensor:
    """Return room for a gradient, or for one share of it per block of value channels."""
    if blocks == 1:
        return torch.empty_like(x)
    return x.new_empty(blocks, *x.shape, dtype=torch.float32)


@_backward.register_fake
def _(
    dy: Tensor, dfinal: Tensor,
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    reset: Tensor, stored: Tensor, config: Sequence[int], groups: int,
) -> Tensors7:  # fmt: skip
    dr, dw, dk, dv, da, db = (torch.empty_like(x) for x in (r, w, k, v, a, b))
    return dr, dw, dk, dv, da, db, torch.empty_like(dfinal)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensors3) -> None:
    *tensors, reset, _, config, groups = inputs
    ctx.save_for_backward(*tensors[:6], reset, output[2])
    ctx.config, ctx.groups = config, groups
    ctx.state_shape = tensors[6].shape
    # Else autograd would fill a zero gradient for the stored states at every call.
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dy: Tensor | None, dfinal: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    # Read once: under gradient checkpointing they may not be unpacked a second time.
    saved = ctx.saved_tensors
    r, v = saved[0], saved[3]
    if dy is None:
        dy = v.new_zeros(*r.shape[:4], v.shape[3])
    if dfinal is None:
        dfinal = v.new_zeros(ctx.state_shape, dtype=torch.float32)
    gradients = _backward(dy.contiguous(), dfinal.contiguous(), *saved, ctx.config, ctx.groups)
    return *gradients, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
