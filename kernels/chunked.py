"""Chunk-parallel WKV-7 in plain PyTorch.

The fallback for every dtype and device, and the backend with second derivatives. The work inside
all chunks of `CHUNK` steps is batched; only one small update per chunk is serial. The derivation
is in README.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from doxastic.kernels.reference import accumulation_dtype
from doxastic.kernels.transforms import is_transformed

CHUNK = 16


def lowest_log_decay(dtype: torch.dtype) -> float:
    """Return the log-decay per step below which `wkv7` may overflow in this dtype.

    A chunk multiplies with `exp(-g)`, where `g` is the sum of up to `CHUNK` log-decays. RWKV-7
    decays are above -0.6065; the bounds leave room for large keys and queries.
    """
    return -40.0 if dtype == torch.float64 else -4.0


class _Masks(NamedTuple):
    """What the resets of `[N, B]` chunks leave standing; None without resets.

    Attributes:
        sums: `[N, B, 1, C, C]`, or `[C, C]`: the steps since its last reset up to each step.
        scores: `[N, B, 1, (Q + 1) C, 2 C]`, or without the first three axes: pairs of steps that
            see each other.
        entry: `[N, B, 1, C, 1]`: steps that see the state at the start of the chunk.
        exit: `[N, B, 1, C, 1]`: steps that the state at the end of the chunk sees.
        whole: `[N, B, 1, 1]`: chunks without a reset.
    """

    sums: Tensor
    scores: Tensor
    entry: Tensor | None = None
    exit: Tensor | None = None
    whole: Tensor | None = None


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state of the WKV-7 recurrence, chunk by chunk.

    Arguments, shapes and results as in `doxastic.kernels.wkv7.wkv7`; computed in float64 when any
    input is float64, else in float32. `w` must not be below `lowest_log_decay`.
    """
    dtype = accumulation_dtype(r, w, k, v, a, b)
    batch, steps, heads, value_size = v.shape
    size = min(CHUNK, steps)
    queries = r.shape[3] if r.ndim == 5 else 1
    wc, kc, vc, ac, bc = (_chunks(x.to(dtype), size) for x in (w, k, v, a, b))
    rc = _chunks(r.to(dtype), size).reshape(*kc.shape[:3], size * queries, k.shape[-1])
    masks = _masks(reset, steps, size, queries, kc)
    if state is None:
        state = kc.new_zeros(batch, heads, value_size, k.shape[-1])
    y, state = _wkv7_chunks(rc, wc, kc, vc, ac, bc, state.to(dtype), masks)
    y = y.view(*kc.shape[:4], queries, value_size).permute(1, 0, 3, 2, 4, 5)
    y = y.flatten(1, 2)[:, :steps]
    return (y if r.ndim == 5 else y.squeeze(3)).to(v.dtype), state


def _chunks(x: Tensor, size: int) -> Tensor:
    """Return `[B, T, H, ...]` as chunks `[N, B, H, C, ...]`, padded with zeros at the end.

    A step of zeros changes no state: it decays by exp(0) and writes nothing.
    """
    missing = -x.shape[1] % size
    if missing:
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing))
    chunks: Tensor = x.unflatten(1, (-1, size))
    return chunks.movedim((1, 3), (0, 2))


def _masks(reset: Tensor | None, steps: int, size: int, queries: int, like: Tensor) -> _Masks:
    causal = torch.ones(size, size, dtype=torch.bool, device=like.device).tril()
    earlier = causal.tril(-1)
    if reset is None:
        return _Masks(*(x.to(like) for x in (causal, _score_mask(causal, earlier, queries))))
    reset = F.pad(reset, (0, -steps % size)).unflatten(1, (-1, size)).movedim(1, 0)
    segment = reset.cumsum(-1)[:, :, None]  # [N, B, 1, C]
    same = segment.unsqueeze(-1) == segment.unsqueeze(-2)
    masks = (
        # The decay of a reset step meets an empty state: it is no part of any sum.
        same & causal & ~reset[:, :, None, None],
        _score_mask(same & causal, same & earlier, queries),
        (segment == 0).unsqueeze(-1),
        (segment == segment[..., -1:]).unsqueeze(-1),
        segment[..., -1:] == 0,
    )
    return _Masks(*(x.to(like) for x in masks))


def _score_mask(causal: Tensor, earlier: Tensor, queries: int) -> Tensor:
    rows = torch.cat((causal.repeat_interleave(queries, -2), earlier), -2)
    return torch.cat((rows, rows), -1)


def _wkv7_chunks(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, masks: _Masks
) -> tuple[Tensor, Tensor]:
    """Return y `[N B H, C Q, V]` and the state after the last chunk `[B, H, V, K]`."""
    chunks, batch, heads, size, keys = k.shape
    rows, values = r.shape[3], v.shape[-1]
    reads, writes, last = _factors(r, w, k, a, b, masks.sums)
    scores = reads.flatten(0, 2) @ writes.flatten(0, 2).mT
    scores = (scores.unflatten(0, (chunks, batch, heads)) * masks.scores).flatten(0, 2)
    reads, writes, kept = _mask_factors(reads, writes, last, masks)
    v, (reads_r, reads_a) = v.flatten(0, 2), reads.split((rows, size), 1)
    writes_k, writes_b = writes.split(size, 1)
    scores_r, scores_a = scores.split((rows, size), 1)
    scores_ak, scores_ab = scores_a.split(size, 2)
    # U = A_ab U + [a | A_ak V]: what is removed, as a response to the entry state and by itself.
    # No transform passes a backward written by hand: under one, autograd does without.
    by_hand = not is_transformed()
    inverse = _UnitInverse.apply(scores_ab) if by_hand else _unit_inverse(scores_ab)
    solved = inverse @ torch.cat((reads_a, scores_ak @ v), 2)
    response, removed = solved.split((keys, values), 2)
    transition, written = (solved.mT @ writes_b).split((keys, values), 1)
    transition = (transition + kept.diag_embed()).unflatten(0, (chunks, -1))
    written = torch.baddbmm(written, v.mT, writes_k).unflatten(0, (chunks, -1))
    inputs = (state.flatten(0, 1), transition, written)
    states = _Scan.apply(*inputs) if by_hand else _scan(*inputs)
    entry = states[:-1].flatten(0, 1).mT
    read, answer = (torch.cat((reads_r, response), 1) @ entry).split((rows, size), 1)
    y = torch.baddbmm(read, scores_r, torch.cat((v, removed + answer), 1))
    return y, states[-1].unflatten(0, (batch, heads))


def _factors(
    r: Tensor, w: Tensor, k: Tensor, a: Tensor, b: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `[r; a]` and `[k; b]` relative to the start of their segment, and its whole decay.

    With g the sum of w since the last reset, e^g meets what reads the state and e^-g what is
    written to it; a reads before its own step decays. A product with zeros and ones forms g, so
    that w before a reset has no part in it, and its gradient no rounding error from after it.
    """
    total = sums @ w
    decay = total.exp()
    repeats = r.shape[3] // k.shape[3]
    decay_r = decay if repeats == 1 else decay.repeat_interleave(repeats, 3)
    reads = torch.cat((r * decay_r, a * (total - w).exp()), 3)
    # Not the reciprocal of the decay: its derivative squares a number that may be huge.
    rise = (-total).exp()
    writes = torch.cat((k, b), 3) * torch.cat((rise, rise), 3)
    return reads, writes, decay[..., -1:, :]


def _mask_factors(
    reads: Tensor, writes: Tensor, last: Tensor, masks: _Masks
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors that meet the entry state, the exit state, and both, `[N B H, ...]`."""
    writes, kept = writes * last, last.squeeze(3)
    if masks.entry is not None and masks.exit is not None and masks.whole is not None:
        size = masks.entry.shape[3]
        repeats = reads.shape[3] // size - 1
        reads = reads * torch.cat((masks.entry.repeat_interleave(repeats, 3), masks.entry), 3)
        writes = writes * torch.cat((masks.exit, masks.exit), 3)
        kept = kept * masks.whole
    return reads.flatten(0, 2), writes.flatten(0, 2), kept.flatten(0, 2)


def _unit_inverse(strict: Tensor) -> Tensor:
    """Return `(I - A)^-1` of strictly lower triangular matrices A."""
    # (I + A)(I + A^2)(I + A^4)...: the Neumann series ends, because A^C = 0.
    power, reach = strict, 2
    inverse = strict + torch.eye(strict.shape[-1], dtype=strict.dtype, device=strict.device)
    while reach < strict.shape[-1]:
        power = power @ power
        inverse = torch.baddbmm(inverse, inverse, power)
        reach *= 2
    return inverse


class _UnitInverse(torch.autograd.Function):
    """`_unit_inverse` with a backward of two products, differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, strict: Tensor) -> Tensor:
        inverse = _unit_inverse(strict)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        transposed: Tensor = ctx.saved_tensors[0].mT
        return transposed @ gradient @ transposed


def _scan(state: Tensor, transition: Tensor, written: Tensor) -> Tensor:
    """Return all states of `S_{c+1} = S_c M_c + N_c`, the first one included."""
    states = [state]
    for c in range(len(written)):
        states.append(torch.baddbmm(written[c], states[c], transition[c]))
    return torch.stack(states)


class _Scan(torch.autograd.Function):
    """`_scan` with a backward that is a scan itself, differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, transition: Tensor, written: Tensor) -> Tensor:
        states = _scan(state, transition, written)
        ctx.save_for_backward(transition, states)
        return states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        transition, states = ctx.saved_tensors
        # The gradient runs through the same recurrence backwards.
        backwards = gradient.flip(0)
        full = _Scan.apply(backwards[0], transition.flip(0).mT, backwards[1:]).flip(0)
        dtransition = states[:-1].flatten(0, 1).mT @ full[1:].flatten(0, 1)
        return full[0], dtransition.unflatten(0, transition.shape[:2]), full[1:]
