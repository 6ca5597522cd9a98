"""The gated write: what the gate scales, when it is known, and where it starts."""

from __future__ import annotations

import pytest
import torch
from tolerances import KERNEL, SAME, assert_close

from doxastic.kernels.time_mix import DECAY_SCALE, time_mix
from doxastic.memory.belief import BeliefMemory
from doxastic.memory.core import RWKV7Memory
from doxastic.memory.write_gate import WriteGate

F32, F64 = torch.float32, torch.float64
BATCH, STEPS, HEADS, SIZE = 2, 7, 2, 8
WIDTH = HEADS * SIZE


def inputs(dtype=F64):
    """Return the arguments of `time_mix` for which the output is y without norm or bonus."""
    sequences = [torch.randn(BATCH, STEPS, WIDTH, dtype=dtype) for _ in range(5)]
    vectors = {
        "k_k": torch.randn(WIDTH, dtype=dtype),
        "k_a": torch.rand(WIDTH, dtype=dtype),
        "r_k": torch.zeros(HEADS, SIZE, dtype=dtype),
        "norm_weight": torch.ones(WIDTH, dtype=dtype),
        "norm_bias": torch.zeros(WIDTH, dtype=dtype),
    }
    state = torch.randn(BATCH, HEADS, SIZE, SIZE, dtype=dtype)
    reset = torch.zeros(BATCH, STEPS, dtype=torch.bool)
    rest = {"norm_eps": 1e-5, "state": state, "reset": reset}
    return [*sequences, torch.ones_like(sequences[0])], {**vectors, **rest}


def last_state(sequences, rest, write):
    """Return the matrix state after the recurrence as the gate's docstring writes it."""
    _, decay, k, v, rate, _ = (x.view(BATCH, STEPS, HEADS, SIZE) for x in sequences)
    k_k, k_a = (rest[name].view(HEADS, SIZE) for name in ("k_k", "k_a"))
    alpha, w = rate.sigmoid(), (-DECAY_SCALE * decay.sigmoid()).exp()
    kk = torch.nn.functional.normalize(k * k_k, dim=-1)
    key = k * (1 + (alpha - 1) * k_a)
    s = rest["state"]
    for t in range(STEPS):
        written = v[:, t, :, :, None] * key[:, t, :, None, :]
        found = (s * kk[:, t, :, None, :]).sum(-1)
        removed = found[..., None] * (kk * alpha)[:, t, :, None, :]
        s = s * w[:, t, :, None, :] + write[:, t, :, None, None] * (written - removed)
    return s


@pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
def test_the_gate_scales_what_is_written_and_what_is_removed(dtype):
    sequences, rest = inputs(dtype)
    write = torch.rand(BATCH, STEPS, HEADS, dtype=dtype)
    _, state = time_mix(*sequences, **rest, write=write)
    assert_close("state", state, last_state(sequences, rest, write), KERNEL[dtype])


def test_a_closed_gate_lets_the_state_only_decay():
    sequences, rest = inputs()
    _, state = time_mix(*sequences, **rest, write=torch.zeros(BATCH, STEPS, HEADS, dtype=F64))
    decay = (-DECAY_SCALE * sequences[1].sigmoid()).sum(1).exp().view(BATCH, HEADS, 1, SIZE)
    assert_close("state", state, rest["state"] * decay, SAME[F64])


@pytest.mark.parametrize("layers", [1, 2])
def test_an_open_gate_is_no_gate(layers):
    core = RWKV7Memory(6, 32, layers=layers, head_size=8)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    core = core.double()
    x, state = torch.randn(3, 11, 6, dtype=F64), torch.randn(3, core.state_size, dtype=F64)
    reset = torch.rand(3, 11) < 0.2
    features, last = core(x, state, reset)
    gated, gated_last = core(x, state, reset, torch.ones(3, 11, 4, dtype=F64))
    assert_close("features", gated, features, KERNEL[F64])
    assert_close("state", gated_last, last, KERNEL[F64])


def test_a_gate_of_another_shape_is_named():
    core = RWKV7Memory(6, 32, head_size=8)
    x, state, reset = torch.zeros(2, 5, 6), core.initial_state(2), torch.zeros(2, 5) > 0
    with pytest.raises(ValueError, match=r"write has shape \[2, 5, 3\]; expected \[B, T, H\]"):
        core(x, state, reset, torch.ones(2, 5, 3))


def gates(resets=(), steps=6):
    gate = WriteGate(4, 3, 2)
    with torch.no_grad():
        gate.projection.weight.normal_()
    x = torch.randn(1, steps, 4, requires_grad=True)
    reset = torch.zeros(1, steps, dtype=torch.bool)
    reset[:, list(resets)] = True
    out, last = gate(x, torch.zeros(1, 3, 3), reset)
    return gate, x, reset, out, last


def test_the_belief_before_a_step_gates_it():
    _, x, _, out, _ = gates()
    for t in range(1, 6):
        (gradient,) = torch.autograd.grad(out[:, t].sum(), [x], retain_graph=True)
        assert gradient[:, t:].eq(0).all()
        assert gradient[:, :t].abs().sum(-1).gt(0).all()


def test_the_gate_reads_mean_and_deviation_of_the_inputs():
    gate, x, reset, out, last = gates(resets=(3,))
    belief, state = gate.moments(x, torch.zeros(1, 3, 3), reset)
    read = torch.cat([belief.mean, 0.5 * belief.variance.log()], dim=-1)
    expected = gate.projection(read).sigmoid()
    assert_close("gates", out[:, [1, 2, 4, 5]], expected[:, [0, 1, 3, 4]], SAME[F32])
    assert_close("moments", last, state, SAME[F32])


def test_after_a_reset_the_prior_gates():
    _, _, _, out, _ = gates(resets=(3,))
    assert torch.equal(out[:, 3], out[:, 0])
    gate = WriteGate(4, 3, 2)
    with torch.no_grad():
        gate.projection.weight.zero_()
    start, _ = gate(torch.randn(1, 2, 4), torch.zeros(1, 3, 3), torch.zeros(1, 2) > 0)
    torch.testing.assert_close(start, torch.full((1, 2, 2), 0.8808), rtol=1e-4, atol=0.0)


def test_gradients_reach_every_parameter_of_the_gate():
    memory = BeliefMemory(6, 32, write_gate=True)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    reset = torch.zeros(4, 9, dtype=torch.bool)
    features, _ = memory(torch.randn(4, 9, 6), memory.initial_state(4), reset)
    features.square().sum().backward()
    for name, parameter in memory.gate.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
