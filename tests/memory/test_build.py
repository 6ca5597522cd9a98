"""Memories by name: what each configuration builds, and what is refused."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from doxastic.memory.baselines import GRUMemory, LSTMMemory, NoMemory, WindowMemory
from doxastic.memory.belief import BeliefMemory
from doxastic.memory.build import MemoryConfig, build_memory

KINDS = {
    "belief": BeliefMemory,
    "gru": GRUMemory,
    "lstm": LSTMMemory,
    "window": WindowMemory,
    "none": NoMemory,
}
BELIEF = MemoryConfig(width=32)


def parameters(config):
    return sum(p.numel() for p in build_memory(config, 6).parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_builds_its_memory_and_runs(kind):
    memory = build_memory(MemoryConfig(kind=kind, width=32), 6)
    assert type(memory) is KINDS[kind]
    assert memory.input_size == 6
    reset = torch.zeros(3, 5, dtype=torch.bool)
    features, state = memory(torch.randn(3, 5, 6), memory.initial_state(3), reset)
    assert features.shape == (3, 5, memory.feature_size)
    assert state.shape == (3, memory.state_size)


@pytest.mark.parametrize(
    ("readout", "features", "state"),
    [("moments", 64, 48), ("precision", 8, 96), ("learned", 64, 0), ("none", 0, 0)],
)
def test_every_readout_adds_its_features_and_its_state(readout, features, state):
    memory = build_memory(replace(BELIEF, readout=readout), 6)
    assert memory.feature_size == 32 + features
    assert memory.state_size == 32 + 2 * 16 * 16 + 32 + state


def test_every_size_reaches_the_belief_memory():
    core = build_memory(replace(BELIEF, layers=3, head_size=8, readout="none"), 6)
    assert core.state_size == 3 * (32 + 4 * 8 * 8 + 32)
    assert build_memory(replace(BELIEF, belief_size=5), 6).feature_size == 32 + 20
    per_rank = 2 * 32 * 3
    assert parameters(replace(BELIEF, low_rank=9)) - parameters(BELIEF) == per_rank
    per_hidden = 2 * 32 * 32
    assert parameters(replace(BELIEF, channel_ratio=3.0)) - parameters(BELIEF) == per_hidden


@pytest.mark.parametrize(("kind", "parts"), [("gru", 1), ("lstm", 2)])
def test_width_and_layers_reach_the_recurrent_baselines(kind, parts):
    memory = build_memory(MemoryConfig(kind=kind, width=10, layers=3), 6)
    assert memory.feature_size == 10
    assert memory.state_size == parts * 3 * 10


def test_width_and_window_reach_the_window():
    sizes = [
        build_memory(MemoryConfig(kind="window", width=10, window=w), 6).state_size for w in (4, 9)
    ]
    assert sizes[1] > sizes[0]
    assert build_memory(MemoryConfig(kind="window", width=10), 6).feature_size == 10
    assert build_memory(MemoryConfig(kind="none", width=10), 6).state_size == 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("kind", "rnn", "memory.kind is 'rnn'; expected one of belief, gru, lstm, window, none"),
        ("readout", "mean", "memory.readout is 'mean'; expected one of moments, precision"),
        ("width", 0, "memory.width is 0; expected at least 1"),
        ("layers", 0, "memory.layers is 0; expected at least 1"),
        ("head_size", -1, "memory.head_size is -1; expected at least 1"),
        ("low_rank", 0, "memory.low_rank is 0; expected at least 1"),
        ("belief_size", 0, "memory.belief_size is 0; expected at least 1"),
        ("window", 0, "memory.window is 0; expected at least 1"),
        ("channel_ratio", 0.0, "memory.channel_ratio is 0.0; expected a finite number"),
        ("channel_ratio", 0.01, "at least 1 / memory.width = 0.0312"),
        ("channel_ratio", float("nan"), "memory.channel_ratio is nan"),
        ("channel_ratio", float("inf"), "memory.channel_ratio is inf"),
        ("belief_decay", (-1.0, -7.0), "memory.belief_decay is [-1.0, -7.0]; expected two finite"),
        ("belief_decay", (-math.inf, 0.0), "memory.belief_decay is [-inf, 0.0]"),
        ("head_size", 24, "memory.width is 32; expected a multiple of memory.head_size = 24"),
    ],
)
def test_what_cannot_be_built_is_named(field, value, message):
    with pytest.raises(ValueError) as error:
        replace(BELIEF, **{field: value})
    assert message in str(error.value)


def test_a_window_of_one_input_is_no_window():
    with pytest.raises(ValueError, match=r"memory\.window is 1; expected at least 2.*kind to none"):
        MemoryConfig(kind="window", window=1)
    assert build_memory(MemoryConfig(kind="window", window=2), 6).state_size == 7
    assert MemoryConfig(kind="gru", window=1).window == 1


def test_surprise_needs_the_moments():
    with pytest.raises(ValueError, match=r"memory\.surprise is true but .* is 'learned'"):
        replace(BELIEF, readout="learned", surprise=True)


def test_every_option_of_the_belief_reaches_its_memory():
    gated = build_memory(replace(BELIEF, write_gate=True, belief_size=5), 6)
    assert gated.state_size == build_memory(replace(BELIEF, belief_size=5), 6).state_size + 15
    surprised = build_memory(replace(BELIEF, surprise=True, belief_decay=(-4.0, -2.0)), 6)
    assert surprised.feature_size == 32 + 5 * 16
    bias = surprised.readout.projection.bias[-16:]
    assert (bias[0].item(), bias[-1].item()) == (-4.0, -2.0)


def test_head_size_binds_the_core_alone():
    assert build_memory(MemoryConfig(kind="gru", width=10, head_size=16), 6).feature_size == 10


def test_a_configuration_does_not_change():
    with pytest.raises(FrozenInstanceError):
        BELIEF.width = 3
