"""One token at a time: the compiled step equals the sequence, or says why it cannot serve."""

from __future__ import annotations

import logging

import pytest
import torch
from model_cases import COMPOSED, OPTIONS, make, sample
from tolerances import NORMALISED, assert_close
from torch import nn

from doxastic.kernels import checks
from doxastic.kernels.cpu.simd import LANES
from doxastic.language.config import LowRanks
from doxastic.memory.block import Block

TOLERANCE = NORMALISED[torch.float32]


@pytest.fixture
def compiled_only(monkeypatch):
    """The modules of a block run only where gradients are recorded."""
    forward = Block.forward

    def refuse(*args, **named):
        if not torch.is_grad_enabled():
            raise AssertionError("the modules ran")
        return forward(*args, **named)

    monkeypatch.setattr(Block, "forward", refuse)


def assert_steps_equal_the_sequence(model, rows=3, length=9):
    tokens, _ = sample(rows, length)
    expected, last = model(tokens)
    state, logits = model.initial_state(rows), []
    for t in range(length):
        one, state = model.step(tokens[:, t], state)
        assert not one.requires_grad
        logits.append(one)
    assert_close("logits", torch.stack(logits, 1), expected, TOLERANCE)
    assert_close("state", state.flat, last.flat, TOLERANCE)


@pytest.mark.parametrize("rows", [1, 2, 5, 17, 40])
def test_the_compiled_step_equals_the_sequence(compiled_only, rows):
    assert_steps_equal_the_sequence(make(3), rows)


@pytest.mark.parametrize(
    "sizes",
    [
        {"layers": 1},
        {"low_ranks": LowRanks(1, 32, 64, 33)},
        {"low_ranks": LowRanks(96, 64, 32, 96)},
        {"width": 128, "head_size": 64, "low_ranks": None},
        {"head_size": 16, "hidden_size": 112},
        {"group_norm_eps": 0.1, "norm_eps": 1e-2},
    ],
    ids=str,
)
def test_every_size_of_whole_vectors_is_compiled(compiled_only, sizes):
    assert_steps_equal_the_sequence(make(**sizes))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_steps_as_its_sequence(option):
    assert_steps_equal_the_sequence(make(**OPTIONS[option]))


def test_options_and_other_widths_run_the_modules(compiled_only):
    assert COMPOSED["head_size"] % LANES or LANES < 16
    for option in ("double_rate", "matrix", "vector"):
        model = make(**OPTIONS[option])
        with pytest.raises(AssertionError, match="the modules ran"):
            model.step(sample()[0][:, 0], model.initial_state(3))


def test_the_step_leaves_the_given_state_alone(compiled_only):
    model, (tokens, _) = make(), sample()
    _, state = model.step(tokens[:, 0], model.initial_state(3))
    before = state.clone()
    first, _ = model.step(tokens[:, 1], state)
    second, _ = model.step(tokens[:, 1], state)
    assert torch.equal(state.flat, before.flat)
    assert torch.equal(first, second)


@pytest.mark.parametrize("rows", [1, 2, 5, 17])
def test_a_state_offset_is_read_in_the_compiled_step(compiled_only, rows):
    model, (tokens, _) = make(3), sample(rows)
    before, _ = model.step(tokens[:, 0], model.initial_state(rows))
    for layer in (0, 2):
        model.blocks[layer].att.state_offset = nn.Parameter(torch.randn(2, 32, 32))
    after, _ = model.step(tokens[:, 0], model.initial_state(rows))
    assert (after - before).abs().max() > 1e-2
    assert_steps_equal_the_sequence(model, rows)
    for layer in (0, 2):
        model.blocks[layer].att.state_offset = None
    assert torch.equal(model.step(tokens[:, 0], model.initial_state(rows))[0], before)


def test_a_state_offset_of_another_shape_is_never_read_by_the_compiled_step():
    model, (tokens, _) = make(), sample()
    model.blocks[0].att.state_offset = nn.Parameter(torch.zeros(32, 32))
    with pytest.raises(ValueError, match=r"offset has shape \[32, 32\]"):
        model.step(tokens[:, 0], model.initial_state(3))


def strided(model):
    model.blocks[1].att.state_offset = nn.Parameter(torch.randn(2, 32, 32).mT)


def double(model):
    model.blocks[0].att.output = nn.Sequential(model.blocks[0].att.output, nn.Linear(64, 64))


REASONS = {strided: "a parameter is not contiguous", double: "a submodule was replaced"}


@pytest.mark.parametrize("change", REASONS, ids=lambda change: change.__name__)
def test_a_changed_model_runs_its_modules_and_says_so(change, caplog, monkeypatch):
    monkeypatch.setattr(checks, "_logged", set())
    model, (tokens, _) = make(), sample()
    before, _ = model.step(tokens[:, 0], model.initial_state(3))
    change(model)
    with caplog.at_level(logging.WARNING, "doxastic.kernels"):
        after, _ = model.step(tokens[:, 0], model.initial_state(3))
    assert (after - before).abs().max() > 1e-2
    assert REASONS[change] in "".join(caplog.messages)
    assert_steps_equal_the_sequence(model)


def test_a_changed_weight_is_seen_by_the_next_step(compiled_only):
    model, (tokens, _) = make(), sample()
    for name, parameter in model.named_parameters():
        start = model.initial_state(3)
        _, state = model.step(tokens[:, 0], start)
        before = model.step(tokens[:, 1], state)
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter))
        after = model.step(tokens[:, 1], state)
        changed = [
            not torch.equal(before[0], after[0]),
            not torch.equal(before[1].flat, after[1].flat),
        ]
        assert any(changed), name
