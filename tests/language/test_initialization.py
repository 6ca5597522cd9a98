"""The language model starts as RWKV-LM's: tables and gains computed here by the formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from doxastic.language.config import LanguageConfig, LowRanks, official_ranks
from doxastic.language.model import LanguageModel
from doxastic.language.optimizer_groups import parameter_groups

WIDTH, HEAD, LAYERS, VOCABULARY = 64, 16, 3, 100
CHANNEL = np.arange(WIDTH)
LINEAR = CHANNEL / (WIDTH - 1) - 0.5
CENTRED = (CHANNEL % HEAD - (HEAD - 1) / 2) / ((HEAD - 1) / 2)
ZIGZAG = CENTRED * np.abs(CENTRED)


def make(layers=LAYERS, **sizes):
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "width": WIDTH, "head_size": HEAD, **sizes}
    return LanguageModel(LanguageConfig(layers=layers, **sizes))


def official(layer, layers):
    """Return the initial values of `blocks.<layer>.` that are no random matrices."""
    p, q, u = 1 - layer / layers, layer / max(layers - 1, 1), CHANNEL / WIDTH
    powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
    values = {f"att.x_{name}": 1 - u ** (power * p) for name, power in powers.items()}
    values |= {
        "att.w0": -6 + 6 * (CHANNEL / (WIDTH - 1)) ** (1 + q**0.3) + 0.5 + 2.5 * ZIGZAG,
        "att.a0": -0.19 + 0.3 * ZIGZAG + 0.4 * LINEAR,
        "att.k_k": 0.71 - 0.1 * LINEAR,
        "att.k_a": 1.02,
        "att.r_k": -0.04,
        "att.ln_x.weight": ((1 + layer) / layers) ** 0.7,
        "ffn.x_k": 1 - u ** (p**4),
        "ln1.weight": 1.0,
        "ln2.weight": 1.0,
    }
    zeros = ["att.ln_x.bias", "ln1.bias", "ln2.bias", "att.w1", "att.a1", "att.g1"]
    zeros += ["att.output.weight", "ffn.value.weight"]
    if layer:
        values["att.v0"] = 0.73 - 0.4 * LINEAR
        zeros.append("att.v1")
    else:
        values["ln0.weight"] = 1.0
        zeros.append("ln0.bias")
    return values | dict.fromkeys(zeros, 0.0)


@pytest.mark.parametrize(("layer", "layers"), [(0, 3), (1, 3), (2, 3), (0, 1), (1, 2)])
def test_vectors_are_those_of_the_tables(layer, layers):
    block = make(layers).blocks[layer]
    for name, expected in official(layer, layers).items():
        actual = block.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    matrices = {"att.w2", "att.a2", "att.g2", "att.receptance.weight", "att.key.weight"}
    matrices |= {"att.value.weight", "ffn.key.weight"} | ({"att.v2"} if layer else set())
    names = {name for name, _ in block.named_parameters()}
    assert names == matrices | official(layer, layers).keys()


def assert_orthogonal(name, matrix, gain):
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    expected = gain**2 * torch.eye(len(short))
    torch.testing.assert_close(short @ short.T, expected, rtol=0.0, atol=1e-5, msg=name)


@pytest.mark.parametrize("ranks", [LowRanks(8, 16, 24, 32), LowRanks(96, 80, 64, 128)])
def test_matrices_are_orthogonal_with_the_gains_of_the_tables(ranks):
    att, ffn = make(low_ranks=ranks).blocks[1].att, make().blocks[1].ffn
    for name, rank in zip(("w2", "a2", "v2", "g2"), ranks, strict=True):
        assert getattr(att, name).shape == (rank, WIDTH)
        assert_orthogonal(name, getattr(att, name), 0.1 * max(1.0, math.sqrt(rank / WIDTH)))
    for name, gain in (("receptance", 1.0), ("key", 0.1), ("value", 1.0)):
        assert_orthogonal(name, getattr(att, name).weight, gain)
    assert_orthogonal("ffn.key", ffn.key.weight, 1.0)


@pytest.mark.parametrize("vocabulary", [20, 64, 400])
def test_the_head_is_orthogonal_and_larger_for_more_tokens_than_channels(vocabulary):
    gain = 0.5 * math.sqrt(vocabulary / WIDTH) if vocabulary > WIDTH else 0.5
    assert_orthogonal("head", make(vocab_size=vocabulary).head.weight, gain)


def test_embeddings_are_uniform_and_tiny():
    weight = make(vocab_size=500).emb.weight
    assert weight.abs().max() <= 1e-4
    assert weight.abs().mean().item() == pytest.approx(5e-5, rel=0.02)
    assert weight.mean().abs() < 2e-6


def test_the_group_norm_has_one_eps_whatever_the_head():
    for head in (16, 32, 64):
        model = make(head_size=head)
        assert {block.att.ln_x.eps for block in model.blocks} == {64e-5}
    model = make(norm_eps=1e-3)
    norms = [block.get_submodule(name) for block in model.blocks for name in ("ln1", "ln2")]
    assert {norm.eps for norm in (*norms, model.ln_out, model.blocks[0].ln0)} == {1e-3}


@pytest.mark.parametrize("layers", [1, 2, 12])
def test_a_fresh_model_is_its_embedding_behind_the_norms(layers):
    model, tokens = make(layers), torch.randint(0, VOCABULARY, (2, 5))
    expected = model.head(model.ln_out(model.blocks[0].ln0(model.emb(tokens))))
    torch.testing.assert_close(model(tokens)[0], expected)


def test_names_are_those_of_a_checkpoint():
    names = set(make().state_dict())
    assert len(names) == 102
    assert {name for name in names if not name.startswith("blocks.")} == {
        "emb.weight", "head.weight", "ln_out.weight", "ln_out.bias",
    }  # fmt: skip
    assert {name.split(".")[1] for name in names if "ln0" in name} == {"0"}
    assert not names & {f"blocks.0.att.{name}" for name in ("v0", "v1", "v2")}


@pytest.mark.parametrize("layers", [1, 3])
def test_the_number_of_parameters_is_that_of_the_formula(layers):
    ranks, C, V = LowRanks(32, 16, 8, 48), WIDTH, VOCABULARY
    model = make(layers, low_ranks=ranks)
    block = 19 * C + 12 * C**2 + 2 * C * sum(ranks)
    expected = 2 * V * C + 4 * C + layers * block - C - 2 * C * ranks.value
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize(
    ("width", "ranks"),
    [
        (64, (32, 32, 32, 32)), (128, (32, 32, 32, 64)), (768, (64, 64, 32, 128)),
        (1024, (64, 64, 64, 160)), (2560, (128, 128, 96, 256)),
    ],
)  # fmt: skip
def test_ranks_follow_from_the_width(width, ranks):
    assert official_ranks(width) == ranks
    assert LanguageConfig(vocab_size=5, width=width).low_ranks == LowRanks(*ranks)


def test_a_configuration_survives_json():
    import json

    config = LanguageConfig(vocab_size=7, width=96, low_ranks=LowRanks(1, 2, 3, 4))
    assert LanguageConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    listed = LanguageConfig.from_dict({**config.to_dict(), "low_ranks": [1, 2, 3, 4]})
    assert listed == config


WRONG = {
    r"unknown keys \['dept', 'wide'\]; expected some of": {"wide": 1, "dept": 2},
    "width is 60; expected a multiple of head_size = 32": {"width": 60},
    r"layers is 0; expected an integer >= 1": {"layers": 0},
    r"vocab_size is 2\.0; expected an integer": {"vocab_size": 2.0},
    r"hidden_size is True": {"hidden_size": True},
    r"norm_eps is 0; expected a finite number above 0": {"norm_eps": 0},
    r"group_norm_eps is nan": {"group_norm_eps": math.nan},
    r"low_ranks is \[1, 2\]; expected four ranks: decay, rate, value, gate": {"low_ranks": [1, 2]},
    r"low_ranks is 8; expected four ranks": {"low_ranks": 8},
    r"low_ranks\.value is 0": {"low_ranks": [1, 1, 0, 1]},
    r"double_rate is 'yes'; expected true or false": {"double_rate": "yes"},
    r"deep_embed is 'v7a'; expected one of none, matrix, vector": {"deep_embed": "v7a"},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_configuration_that_does_not_fit_is_refused(message):
    with pytest.raises(ValueError, match=message):
        LanguageConfig.from_dict({"vocab_size": 7, **WRONG[message]})


def test_a_configuration_without_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="has no vocab_size"):
        LanguageConfig.from_dict({"width": 32})


def test_only_matrices_decay_and_the_decay_bias_learns_twice_as_fast():
    model = make()
    groups = parameter_groups(model, learning_rate=0.5, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}
    projections = ("att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value")
    decayed = {f"blocks.{i}.{name}.weight" for i in range(LAYERS) for name in projections}
    assert found["decayed"] == decayed | {"emb.weight", "head.weight"}
    assert found["fast"] == {f"blocks.{i}.att.w0" for i in range(LAYERS)}
    assert found["plain"] == set(names.values()) - found["decayed"] - found["fast"]
    rates = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert rates == {"decayed": (0.5, 0.1), "plain": (0.5, 0.0), "fast": (1.0, 0.0)}


def test_what_is_frozen_is_in_no_group():
    model = make().requires_grad_(False)
    model.blocks[0].att.w0.requires_grad_()
    (group,) = parameter_groups(model, learning_rate=0.5, weight_decay=0.1)
    assert group["name"] == "fast"
    assert group["params"] == [model.blocks[0].att.w0]
