"""What the options of the model compute: doubled rates, state offsets, token tables."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import time_mix_inputs
from model_cases import FUSED, VOCABULARY, make, sample
from tolerances import SAME, assert_close
from torch import Tensor, nn
from torch.nn import functional as F

from doxastic.kernels.time_mix import time_mix
from doxastic.kernels.wkv7 import wkv7

F64 = torch.float64
SATURATED = 40.0


def transition(direction: Tensor, rate: Tensor, double: bool) -> Tensor:
    """Return the matrix that one step without decay and without a write multiplies a state by."""
    size = direction.numel()
    row, identity = direction.view(1, 1, -1), torch.eye(size, dtype=F64)
    zero, one = torch.zeros(1, 1, size, dtype=F64), torch.ones(size, dtype=F64)
    _, state = time_mix(
        zero, zero - SATURATED, row, zero, rate.view(1, 1, -1), zero,
        k_k=one, k_a=one, r_k=one.view(1, -1), norm_weight=one, norm_bias=one, norm_eps=1.0,
        state=identity[None, None], reset=torch.zeros(1, 1, dtype=torch.bool), double_rate=double,
    )  # fmt: skip
    return state[0, 0]


def test_a_doubled_rate_swaps_two_entries_of_the_state():
    direction = torch.tensor([1.0, -1.0, 0.0], dtype=F64)
    swap = torch.eye(3, dtype=F64)[[1, 0, 2]]
    actual = transition(direction, torch.full((3,), SATURATED, dtype=F64), True)
    assert_close("transition", actual, swap, 1e-12)
    assert_close("twice", actual @ actual, torch.eye(3, dtype=F64), 1e-12)


def test_a_doubled_rate_keeps_the_parity_of_what_it_saw():
    direction, rate = torch.tensor([1.0, 0.0], dtype=F64), torch.full((2,), SATURATED, dtype=F64)
    turn, stay = transition(direction, rate, True), transition(direction, -rate, True)
    state = torch.eye(2, dtype=F64)
    for bit in (1, 0, 1, 1, 0, 1, 1):
        state = state @ (turn if bit else stay)
    assert_close("parity", state, torch.diag(torch.tensor([-1.0, 1.0], dtype=F64)), 1e-12)


def test_a_plain_rate_turns_nothing_around():
    # Without decay the determinant is 1 - sum kk^2 alpha: never below 0 for alpha in (0, 1).
    torch.manual_seed(0)
    for _ in range(200):
        direction, rate = torch.randn(4, dtype=F64), 5.0 * torch.randn(4, dtype=F64)
        assert transition(direction, rate, False).det() > 0
        largest = torch.full((4,), SATURATED, dtype=F64)
        assert transition(direction, largest, False).det() > -1e-12
        assert transition(direction, largest, True).det() < -0.99


@pytest.mark.parametrize("doubled", [False, True])
def test_the_rate_of_the_written_key_is_never_doubled(doubled):
    inputs = time_mix_inputs()
    inputs["state"].zero_()
    reset = torch.zeros(2, 21, dtype=torch.bool)
    first = {name: x[:, :1] if x.ndim == 3 else x for name, x in inputs.items()}
    _, plain = time_mix(**first, norm_eps=0.1, reset=reset[:, :1])
    _, state = time_mix(**first, norm_eps=0.1, reset=reset[:, :1], double_rate=doubled)
    assert torch.equal(state, plain)


def test_a_state_offset_is_added_on_reading_and_never_carried():
    inputs, (heads, size) = time_mix_inputs(), (2, 16)
    reset = torch.zeros(2, 21, dtype=torch.bool)
    offset = torch.randn(heads, size, size, dtype=F64)
    actual, final = time_mix(**inputs, norm_eps=0.1, reset=reset, offset=offset)
    plain, expected_final = time_mix(**inputs, norm_eps=0.1, reset=reset)
    assert torch.equal(final, expected_final)
    r, k = (inputs[name].view(2, 21, heads, size) for name in ("r", "k"))
    alpha = inputs["rate"].sigmoid().view(r.shape)
    kk = F.normalize(k * inputs["k_k"].view(heads, size), dim=-1)
    key = k * (1 + (alpha - 1) * inputs["k_a"].view(heads, size))
    log_decay = -0.6065306597126334 * inputs["decay"].sigmoid().view(r.shape)
    v = inputs["v"].view(r.shape)
    y, _ = wkv7(r, log_decay, key, v, -kk, kk * alpha, state=inputs["state"])
    y = y + (offset @ r.unsqueeze(-1)).squeeze(-1)
    y = (y - y.mean(-1, True)) / (y.var(-1, correction=0, keepdim=True) + 0.1).sqrt()
    normal = y.flatten(2) * inputs["norm_weight"] + inputs["norm_bias"]
    bonus = ((r * key * inputs["r_k"]).sum(-1, True) * v).flatten(2)
    assert_close("output", actual, (normal + bonus) * inputs["gate"], 1e-12)
    assert (actual - plain).abs().max() > 0.1


def test_a_state_offset_of_zero_changes_nothing_and_learns():
    model, (tokens, reset) = make(), sample()
    expected, last = model(tokens, None, reset)
    for block in model.blocks:
        block.att.state_offset = nn.Parameter(torch.zeros(2, 32, 32))
    logits, state = model(tokens, None, reset)
    assert_close("logits", logits, expected, 10 * SAME[torch.float32])
    assert_close("state", state.flat, last.flat, 10 * SAME[torch.float32])
    logits.square().sum().backward()
    assert all(block.att.state_offset.grad.any() for block in model.blocks)


def test_a_state_offset_of_another_shape_is_an_error():
    model, (tokens, _) = make(), sample()
    model.blocks[0].att.state_offset = nn.Parameter(torch.zeros(32, 32))
    with pytest.raises(ValueError, match=r"offset has shape \[32, 32\]; expected \[H, V, K\]"):
        model(tokens)


def shifted(x: Tensor, ratio: Tensor) -> Tensor:
    """Return the token-shifted x `[T, C]`, from nothing before it."""
    return x + (F.pad(x, (0, 0, 1, -1)) - x) * ratio


def test_a_matrix_of_the_token_gates_the_hidden_layer():
    module = make(**FUSED, deep_embed="matrix").double().blocks[1].ffn
    tokens, x, embedded = torch.tensor([[4, 1, 4]]), *torch.randn(2, 1, 3, 64, dtype=F64)
    nothing, reset = torch.zeros(1, 64, dtype=F64), torch.zeros(1, 3, dtype=torch.bool)
    actual = module(x, nothing, reset, tokens, embedded)
    mixed = shifted(x[0], module.x_k)
    for t, token in enumerate(tokens[0]):
        matrix = module.s_emb.weight[token] + module.s_emb_x.weight @ embedded[0, t]
        gate = (x[0, t] @ module.s1) @ matrix.view(32, 32) @ module.s2 + module.s0
        hidden = (module.key.weight @ mixed[t]).relu() ** 2 * gate
        assert_close("output", actual[0, t], module.value.weight @ hidden, 1e-12)


def test_a_vector_of_the_token_scales_the_channel_mix():
    model = make(**FUSED, deep_embed="vector")
    module, tokens, x = model.blocks[0].ffn, torch.tensor([[2, 0, 2]]), torch.randn(1, 3, 64)
    nothing, reset = torch.zeros(1, 64), torch.zeros(1, 3, dtype=torch.bool)
    actual = module(x, nothing, reset, tokens, x)
    hidden = F.linear(shifted(x[0], module.x_k), module.key.weight).relu() ** 2
    expected = F.linear(hidden, module.value.weight) * module.enn.weight[tokens[0]]
    assert_close("output", actual[0], expected, 10 * SAME[torch.float32])


@pytest.mark.parametrize("kind", ["matrix", "vector"])
def test_token_tables_start_without_an_effect(kind):
    from doxastic.language.config import LanguageConfig
    from doxastic.language.model import LanguageModel

    torch.manual_seed(0)
    model = LanguageModel(LanguageConfig(vocab_size=VOCABULARY, width=64, deep_embed=kind))
    plain = LanguageModel(LanguageConfig(vocab_size=VOCABULARY, width=64))
    plain.load_state_dict(
        {name: x for name, x in model.state_dict().items() if name in plain.state_dict()}
    )
    for ours, theirs in zip(model.blocks, plain.blocks, strict=True):
        nn.init.orthogonal_(ours.ffn.value.weight)
        theirs.ffn.value.weight.data.copy_(ours.ffn.value.weight)
    tokens, _ = sample()
    assert_close("logits", model(tokens)[0], plain(tokens)[0], 10 * SAME[torch.float32])
