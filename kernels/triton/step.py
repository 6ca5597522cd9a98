"""One acting step on the GPU, without gradients: of WKV-7 alone, or with the time mix around it.

One launch each. Nothing is allocated but the results, and no value is looked at on the host: both
can be captured in a CUDA graph. With `inplace` the state of WKV-7 stays where it is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from doxastic.kernels.triton.common import OPTIONS, check_runnable, on_device
from doxastic.kernels.triton.rows import check_dtypes, flags

# Rows of a state that one program of `_step` takes: rows are independent, and a small batch
# needs more programs than it has heads.
ROWS = 16


@triton.jit
def _step(
    p_r, p_w, p_k, p_v, p_a, p_b, p_state, p_reset, p_y, p_new, H, Q, K, V,
    HAS_STATE: tl.constexpr, HAS_RESET: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    i_h = tl.program_id(0).to(tl.int64)
    o_k, o_v = tl.arange(0, BK), tl.program_id(1) * BV + tl.arange(0, BV)
    m_k, m_v = o_k < K, o_v < V
    w = tl.exp(tl.load(p_w + i_h * K + o_k, m_k, 0.0).to(tl.float32))
    k = tl.load(p_k + i_h * K + o_k, m_k, 0.0).to(tl.float32)
    a = tl.load(p_a + i_h * K + o_k, m_k, 0.0).to(tl.float32)
    b = tl.load(p_b + i_h * K + o_k, m_k, 0.0).to(tl.float32)
    v = tl.load(p_v + i_h * V + o_v, m_v, 0.0).to(tl.float32)
    tile, m_tile = (i_h * V + o_v[:, None]) * K + o_k[None, :], m_v[:, None] & m_k[None, :]
    state = tl.zeros((BV, BK), tl.float32)
    if HAS_STATE:
        state = tl.load(p_state + tile, m_tile, 0.0)
        if HAS_RESET:
            state = tl.where(tl.load(p_reset + i_h // H) != 0, 0.0, state)
    removed = tl.sum(state * a[None, :], 1)
    state = state * w[None, :] + removed[:, None] * b[None, :] + v[:, None] * k[None, :]
    tl.store(p_new + tile, state, m_tile)
    for q in tl.range(0, Q):
        r = tl.load(p_r + (i_h * Q + q) * K + o_k, m_k, 0.0).to(tl.float32)
        y = tl.sum(state * r[None, :], 1)
        tl.store(p_y + (i_h * Q + q) * V + o_v, y.to(p_y.dtype.element_ty), m_v)


@triton.jit
def _time_mix_step(
    p_r, p_decay, p_k, p_v, p_rate, p_gate, p_k_k, p_k_a, p_r_k, p_weight, p_bias,
    p_state, p_reset, p_out, p_new, s_state, eps, H, K, BK: tl.constexpr,
):  # fmt: skip
    i_h = tl.program_id(0).to(tl.int64)
    b, h = i_h // H, i_h % H
    i = tl.arange(0, BK)
    mask = i < K
    o, c = i_h * K + i, h * K + i
    # The front: decay, written key, removal and replacement.
    k = tl.load(p_k + o, mask, 0.0).to(tl.float32)
    scaled = k * tl.load(p_k_k + c, mask, 0.0).to(tl.float32)
    kk = scaled / tl.maximum(tl.sqrt(tl.sum(scaled * scaled, 0)), 1e-12)
    alpha = tl.sigmoid(tl.load(p_rate + o, mask, 0.0).to(tl.float32))
    k_a = tl.load(p_k_a + c, mask, 0.0).to(tl.float32)
    key = k * (1.0 + (alpha - 1.0) * k_a)
    # log w = -e^(-1/2) sigmoid(decay).
    decay = tl.load(p_decay + o, mask, 0.0).to(tl.float32)
    w = tl.exp(-0.6065306597126334 * tl.sigmoid(decay))
    # The step. Rows of the state are values, columns are keys.
    v = tl.load(p_v + o, mask, 0.0).to(tl.float32)
    r = tl.load(p_r + o, mask, 0.0).to(tl.float32)
    tile = (h * K + i[:, None]) * K + i[None, :]
    m_tile = mask[:, None] & mask[None, :]
    state = tl.load(p_state + b * s_state + tile, m_tile, 0.0)
    state = tl.where(tl.load(p_reset + b) != 0, 0.0, state)
    removed = tl.sum(state * kk[None, :], 1)
    state = state * w[None, :] - removed[:, None] * (kk * alpha)[None, :]
    state += v[:, None] * key[None, :]
    tl.store(p_new + b * H * K * K + tile, state, m_tile)
    y = tl.sum(state * r[None, :], 1)
    # The back: group norm, bonus, gate.
    centred = tl.where(mask, y - tl.sum(y, 0) / K, 0.0)
    normal = centred / tl.sqrt(tl.sum(centred * centred, 0) / K + eps)
    weight = tl.load(p_weight + c, mask, 0.0).to(tl.float32)
    bias = tl.load(p_bias + c, mask, 0.0).to(tl.float32)
    bonus = tl.sum(r * key * tl.load(p_r_k + c, mask, 0.0).to(tl.float32), 0)
    gate = tl.load(p_gate + o, mask, 0.0).to(tl.float32)
    out = (normal * weight + bias + bonus * v) * gate
    tl.store(p_out + o, out.to(p_out.dtype.element_ty), mask)


def wkv7_step(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    state: Tensor | None, reset: Tensor | None, inplace: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return y `[B, H, V]` or `[B, H, Q, V]` and the new state, from any mix of float dtypes.

    Arguments as of `doxastic.kernels.wkv7.wkv7_step`, which checks them; y has the dtype of v,
    the state is float32. With `inplace` the state is overwritten and returned.

    Raises:
        ValueError: The tensors are where Triton cannot run, or of another dtype.
    """
    check_runnable("v", v)
    check_dtypes({"r": r, "w": w, "k": k, "v": v, "a": a, "b": b})
    if not torch.compiler.is_compiling():
        return _launch_step(r, w, k, v, a, b, state, reset, inplace)
    y, new = _step_operator(r, w, k, v, a, b, state, reset)
    return y, state.copy_(new) if inplace and state is not None else new


def _launch_step(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    state: Tensor | None, reset: Tensor | None, inplace: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    B, H, V, K = *v.shape, k.shape[-1]
    Q = r.shape[2] if r.ndim == 4 else 1
    inputs = [x.contiguous() for x in (r, w, k, v, a, b)]
    y = torch.empty((*r.shape[:-1], V), dtype=v.dtype, device=v.device)
    state = None if state is None else state.contiguous()
    if inplace and state is not None:
        new = state
    else:
        new = torch.empty(B, H, V, K, dtype=torch.float32, device=v.device)
    if not new.numel():
        return y, new
    rows = min(triton.next_power_of_2(V), ROWS)
    with on_device(v):
        _step[(B * H, triton.cdiv(V, rows))](
            *inputs, new if state is None else state, new if reset is None else flags(reset),
            y, new, H, Q, K, V, state is not None, reset is not None,
            triton.next_power_of_2(K), rows, num_warps=1 if K <= 64 else 4, **OPTIONS,
        )  # fmt: skip
    if new is state and not new.is_inference():
        increment_version(new)
    return y, new


@torch.library.custom_op("doxastic::triton_wkv7_step", mutates_args=())
def _step_operator(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    state: Tensor | None, reset: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _launch_step(r, w, k, v, a, b, state, reset, False)


@_step_operator.register_fake
def _(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor,
    state: Tensor | None, reset: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y = v.new_empty((*r.shape[:-1], v.shape[-1]))
    return y, v.new_empty((*v.shape, k.shape[-1]), dtype=torch.float32)


def time_mix_step(
    r: Tensor, decay: Tensor, k: Tensor, v: Tensor, rate: Tensor, gate: Tensor,
    k_k: Tensor, k_a: Tensor, r_k: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    norm_eps: float, state: Tensor, reset: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return what `doxastic.kernels.time_mix.time_mix` returns for T = 1, in one launch.

    Arguments as there, float32, bfloat16 or float16 in any mix; the output has the dtype of v.

    Args:
        r: Receptance `[B, 1, C]`.
        decay: Pre-activation of the decay.
        k: Key.
        v: Value.
        rate: Pre-activation of the in-context learning rate.
        gate: Output gate.
        k_k: `[C]`, scales the key that is removed.
        k_a: `[C]`, how far the rate scales the key that is written.
        r_k: `[H, K]`, the bonus of the current step.
        norm_weight: `[C]`, of the group norm.
        norm_bias: `[C]`.
        norm_eps: Added to the variance.
        state: `[B, H, V, K]` float32; rows of a wider state are read where they are.
        reset: `[B, 1]` bool.
    """
    compiling = torch.compiler.is_compiling()
    step = _time_mix_step_operator if compiling else _launch_time_mix_step
    outputs: tuple[Tensor, Tensor] = step(
        r, decay, k, v, rate, gate, k_k, k_a, r_k, norm_weight, norm_bias, norm_eps, state, reset
    )
    return outputs


def _launch_time_mix_step(
    r: Tensor, decay: Tensor, k: Tensor, v: Tensor, rate: Tensor, gate: Tensor,
    k_k: Tensor, k_a: Tensor, r_k: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    norm_eps: float, state: Tensor, reset: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    (B, _, C), (H, K) = r.shape, r_k.shape
    inputs = [x.contiguous() for x in (r, decay, k, v, rate, gate)]
    parameters = [x.contiguous() for x in (k_k, k_a, r_k, norm_weight, norm_bias)]
    state = state if _is_dense(state) else state.contiguous()
    new = torch.empty(B, H, K, K, dtype=torch.float32, device=v.device)
    out = torch.empty((B, 1, C), dtype=v.dtype, device=v.device)
    if out.numel():
        block = triton.next_power_of_2(K)
        with on_device(v):
            _time_mix_step[(B * H,)](
                *inputs, *parameters, state, flags(reset), out, new, state.stride(0), norm_eps,
                H, K, block,
                num_warps=min(16, max(1, block * block // 1024)), **OPTIONS,
            )  # fmt: skip
    return out, new


@torch.library.custom_op("doxastic::triton_time_mix_step", mutates_args=())
def _time_mix_step_operator(
    r: Tensor, decay: Tensor, k: Tensor, v: Tensor, rate: Tensor, gate: Tensor,
    k_k: Tensor, k_a: Tensor, r_k: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    norm_eps: float, state: Tensor, reset: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _launch_time_mix_step(
        r, decay, k, v, rate, gate, k_k, k_a, r_k, norm_weight, norm_bias, norm_eps, state, reset
    )


@_time_mix_step_operator.register_fake
def _(
    r: Tensor, decay: Tensor, k: Tensor, v: Tensor, rate: Tensor, gate: Tensor,
    k_k: Tensor, k_a: Tensor, r_k: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    norm_eps: float, state: Tensor, reset: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return v.new_empty(v.shape), state.new_empty(state.shape)


def _is_dense(state: Tensor) -> bool:
    """Return whether every row `[H, V, K]` of the batch is contiguous."""
    return state[0].is_contiguous() if len(state) else True
