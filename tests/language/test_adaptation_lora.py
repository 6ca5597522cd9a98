"""Low-rank updates: what they compute, what they leave alone, merging there and back."""

from __future__ import annotations

import copy

import pytest
import torch
from language_cases import assert_same_tensors, random_model, small_config
from tolerances import SAME, STACKED, assert_close
from torch import nn

from doxastic.language.adaptation import (
    LoRAConfig,
    apply_lora,
    merge_lora,
    remove_lora,
    set_trainable,
    unmerge_lora,
)
from doxastic.language.adaptation.lora import LoRALinear
from doxastic.language.losses import cross_entropy_sum
from doxastic.language.model import LanguageModel
from doxastic.memory.linear import are_plain

EVERYWHERE = LoRAConfig(rank=4, targets=("blocks.*.att.*", "blocks.*.ffn.*", "head"))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(37, (3, 17), generator=torch.Generator().manual_seed(0))


def _adapted(config: LoRAConfig = EVERYWHERE, *, dtype=torch.float32, **changes) -> LanguageModel:
    """Return a model whose updates are as large as trained ones."""
    model = random_model(small_config(**changes)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    apply_lora(model, config, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def _base(**changes) -> LanguageModel:
    return random_model(small_config(**changes))


def _layers(model: LanguageModel) -> dict[str, LoRALinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}


def test_an_update_that_learnt_nothing_changes_nothing(tokens):
    model = _base()
    before = model(tokens)[0]
    apply_lora(model, EVERYWHERE)
    assert torch.equal(model(tokens)[0], before)


def test_the_projection_is_the_base_plus_the_scaled_product(tokens):
    layer = _layers(_adapted(LoRAConfig(rank=4, alpha=6.0)))["blocks.1.ffn.key"]
    x = torch.randn(5, 64)
    a, b, base = layer.lora_a, layer.lora_b, layer.base.weight
    expected = x @ base.T + 6.0 / 4 * (x @ a.T @ b.T)
    assert_close("called", layer(x), expected, SAME[torch.float32])
    assert_close("weight", x @ layer.weight.T, expected, SAME[torch.float32])


def test_a_starts_as_a_new_linear_layer_and_follows_the_generator():
    layers = [_layers(_adapted())["head"] for _ in range(2)]
    assert torch.equal(layers[0].lora_a, layers[1].lora_a)
    bound = 64**-0.5
    assert 0.9 * bound < layers[0].lora_a.abs().max() <= bound


def test_only_the_updates_learn_and_every_one_of_them_does(tokens):
    model = _adapted()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    # Four projections of the time mix and two of the channel mix in three layers, and the head.
    assert len(trained) == 2 * (3 * 6 + 1)
    assert all(name.endswith((".lora_a", ".lora_b")) for name in trained)
    model(tokens)[0].square().sum().backward()
    for name, parameter in model.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.any())
        assert has_gradient == (name in trained), name


@pytest.mark.parametrize("targets", [("head",), ("blocks.1.att.key", "blocks.*.ffn.value")])
def test_patterns_choose_the_projections(targets):
    names = set(_layers(_adapted(LoRAConfig(targets=targets))))
    ffn = {f"blocks.{layer}.ffn.value" for layer in range(3)}
    assert names == ({"head"} if targets == ("head",) else {"blocks.1.att.key", *ffn})


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("emb",), "'emb' matches no projection; there is head"),
        (("blocks.*.att.kye",), r"matches no projection; there is .*att\.key"),
        (("blocks.*.att.w1",), "matches no projection"),
    ],
)
def test_a_pattern_without_a_projection_is_refused_and_nothing_is_changed(targets, message):
    model = _base()
    with pytest.raises(ValueError, match=message):
        apply_lora(model, LoRAConfig(targets=targets))
    assert _layers(model) == {}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_fused_layers_stay_in_use_unless_there_is_dropout():
    block = _adapted().blocks[1]
    assert are_plain(block.att.receptance, block.att.output, block.ffn.key)
    dropping = _adapted(LoRAConfig(dropout=0.5)).blocks[1]
    assert not are_plain(dropping.att.key)
    assert are_plain(dropping.eval().att.key)
    block.att.key.base.register_forward_hook(lambda *_: None)
    assert not are_plain(block.att.key)


def test_fused_and_composed_layers_give_the_same_loss_and_gradients(tokens):
    fused, composed = _adapted(), _adapted()
    for layer in _layers(composed).values():
        # A hook that does nothing: the layer is called, and adds its two products apart.
        layer.register_forward_hook(lambda *_: None)
    losses = []
    for model in (fused, composed):
        losses.append(model(tokens)[0].square().mean())
        losses[-1].backward()
    assert_close("loss", losses[0], losses[1], SAME[torch.float32])
    others = dict(composed.named_parameters())
    for name, parameter in fused.named_parameters():
        if parameter.requires_grad:
            assert_close(name, parameter.grad, others[name].grad, STACKED[torch.float32])


def test_the_loss_over_an_adapted_head_is_that_of_its_logits(tokens):
    model = _adapted()
    features, targets = torch.randn(9, 64), torch.arange(9)
    loss = cross_entropy_sum(features, model.head, targets)
    loss.total.backward()
    gradient = model.head.lora_b.grad.clone()
    model.zero_grad()
    logits = model.head(features)
    expected = nn.functional.cross_entropy(logits, targets, reduction="sum")
    expected.backward()
    assert_close("loss", loss.total, expected, SAME[torch.float32])
    assert_close("gradient", gradient, model.head.lora_b.grad, SAME[torch.float32])


def test_dropout_is_of_the_update_alone_and_of_training_alone():
    layer = _layers(_adapted(LoRAConfig(rank=4, dropout=0.5)))["blocks.0.att.key"]
    x = torch.randn(200, 64)
    base, whole = x @ layer.base.weight.T, layer.eval()(x)
    torch.manual_seed(0)
    dropped = layer.train()(x)
    assert not torch.equal(dropped, whole)
    # Inverted dropout keeps the mean: over 200 rows its noise is well below the update itself.
    error = (dropped - whole).mean(0).norm() / (whole - base).norm(dim=1).mean()
    assert error < 0.2


def test_merging_changes_logits_by_less_than_rounding_and_unmerging_returns_every_bit(tokens):
    model = _adapted()
    before, tensors = model(tokens)[0], copy.deepcopy(model.state_dict())
    merge_lora(model)
    merged = model(tokens)[0]
    assert merged.sub(before).abs().max() < 1e-5
    assert model.state_dict().keys() == _base().state_dict().keys()
    unmerge_lora(model)
    assert_same_tensors(model.state_dict(), tensors)
    assert torch.equal(model(tokens)[0], before)


def test_a_merged_model_decodes_with_the_compiled_step(tokens, caplog):
    model = _adapted()
    expected = model(tokens)[0][:, -1]
    merge_lora(model)
    state = model(tokens[:, :-1])[1]
    with caplog.at_level("INFO", logger="doxastic.kernels"):
        logits, _ = model.step(tokens[:, -1], state)
    assert caplog.records == []
    assert_close("logits", logits, expected, STACKED[torch.float32])


def test_a_step_of_an_adapted_model_sees_its_updates(tokens):
    model = _adapted()
    state = model(tokens[:, :-1])[1]
    logits, _ = model.step(tokens[:, -1], state)
    assert_close("logits", logits, model(tokens)[0][:, -1], STACKED[torch.float32])


def test_removing_gives_the_base_back_bit_for_bit_also_when_merged(tokens):
    for merge in (False, True):
        model = _adapted()
        if merge:
            merge_lora(model)
        remove_lora(model)
        assert_same_tensors(model.state_dict(), _base().state_dict())
        assert torch.equal(model(tokens)[0], _base()(tokens)[0])


def test_a_copy_of_a_merged_model_is_unmerged_by_itself(tokens):
    model = _adapted()
    before = model(tokens)[0]
    merge_lora(model)
    copied = copy.deepcopy(model)
    unmerge_lora(copied)
    assert torch.equal(copied(tokens)[0], before)
    assert _layers(model) == {}


def test_half_precision_weights_keep_float32_updates(tokens):
    model = _adapted(dtype=torch.bfloat16)
    layer = _layers(model)["blocks.0.att.key"]
    assert (layer.lora_a.dtype, layer.weight.dtype) == (torch.float32, torch.bfloat16)
    expected = layer.base.weight.float() + layer.scale * layer.lora_b @ layer.lora_a
    assert torch.equal(layer.weight, expected.bfloat16())
    assert model(tokens)[0].isfinite().all()


def test_autocast_forms_the_weight_in_float32():
    layer = _layers(_adapted())["head"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, _layers(_adapted())["head"].weight)


def test_double_rate_and_token_tables_are_adapted_too(tokens):
    for changes in ({"double_rate": True}, {"deep_embed": "matrix"}):
        model = _adapted(**changes)
        before = model(tokens)[0]
        merge_lora(model)
        assert_close("logits", model(tokens)[0], before, STACKED[torch.float32])


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda model: apply_lora(model, EVERYWHERE), "has LoRA already; call remove_lora"),
        (lambda model: unmerge_lora(model), "no LoRA is merged"),
        (lambda model: [merge_lora(model), merge_lora(model)], "merged already"),
        (lambda model: [remove_lora(model), merge_lora(model)], "the model has no LoRA"),
    ],
)
def test_what_makes_no_sense_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act(_adapted())


@pytest.mark.parametrize(
    "changes", [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}]
)
def test_settings_that_no_update_can_have_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        LoRAConfig(**changes)


def test_any_part_of_a_model_can_be_chosen_to_learn():
    model = _base()
    set_trainable(model, ["blocks.*.att.*", "head.weight"], ["*.w0"])
    for name, parameter in model.named_parameters():
        learns = (".att." in name and not name.endswith(".w0")) or name == "head.weight"
        assert parameter.requires_grad == learns, name


@pytest.mark.parametrize(
    ("patterns", "frozen", "message"),
    [
        (["blocks.*.atn.*"], [], r"'blocks\.\*\.atn\.\*' matches no parameter; there is blocks"),
        (["*"], ["head"], "'head' matches no parameter; there is head.weight"),
        (["head.*"], ["*"], "nothing is left to learn"),
    ],
)
def test_patterns_that_choose_nothing_are_refused_and_change_nothing(patterns, frozen, message):
    model = _base()
    with pytest.raises(ValueError, match=message):
        set_trainable(model, patterns, frozen)
    assert all(parameter.requires_grad for parameter in model.parameters())
