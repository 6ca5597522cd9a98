"""Adapters as folders: there and back, and refused by every model but their base."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from language_cases import assert_same_tensors, random_model, small_config
from torch import nn

from doxastic.language.adaptation import (
    LoRAConfig,
    add_state_offset,
    apply_lora,
    load_adapter,
    merge_lora,
    save_adapter,
    unmerge_lora,
)
from doxastic.language.adaptation.files import base_identity
from doxastic.language.formats import ModelFileError, load_model, save_model
from doxastic.language.model import LanguageModel
from doxastic.language.state_files import model_identity

TOKENS = torch.arange(12).view(2, 6)


def _base(seed: int = 0, **changes) -> LanguageModel:
    return random_model(small_config(**changes), seed)


def _adapted(
    model: LanguageModel | None = None, *, lora: bool = True, offset: bool = False
) -> LanguageModel:
    model = _base() if model is None else model
    if lora:
        config = LoRAConfig(rank=3, alpha=5.0, targets=("blocks.*.att.key", "head"))
        apply_lora(model, config, torch.Generator().manual_seed(0))
    if offset:
        add_state_offset(model)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize(("lora", "offset"), [(True, False), (False, True), (True, True)])
def test_an_adapter_comes_back_onto_its_base_bit_for_bit(tmp_path, lora, offset):
    model = _adapted(lora=lora, offset=offset)
    save_adapter(model, tmp_path / "adapter")
    again = _base()
    load_adapter(again, tmp_path / "adapter")
    assert_same_tensors(again.state_dict(), model.state_dict())
    assert torch.equal(again(TOKENS)[0], model(TOKENS)[0])
    names = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert names == ["adapter.json", "adapter.safetensors"]


def test_an_adapter_holds_its_updates_and_nothing_of_the_base(tmp_path):
    save_adapter(_adapted(), tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "adapter.safetensors")
    layers = [*(f"blocks.{layer}.att.key" for layer in range(3)), "head"]
    assert tensors.keys() == {f"{name}.lora_{x}" for name in layers for x in "ab"}
    about = json.loads((tmp_path / "adapter.json").read_text())
    assert (about["lora"]["rank"], about["lora"]["alpha"]) == (3, 5.0)
    assert about["base"]["identity"] == model_identity(_base())


def test_the_identity_is_the_bases_however_the_model_is_adapted():
    model = _adapted(offset=True)
    assert base_identity(model) == model_identity(_base())
    merge_lora(model)
    assert base_identity(model) == model_identity(_base())
    nn.init.normal_(model.emb.weight)
    assert base_identity(model) != model_identity(_base())


def test_a_merged_model_saves_the_same_adapter(tmp_path):
    model = _adapted()
    save_adapter(model, tmp_path / "before")
    merge_lora(model)
    save_adapter(model, tmp_path / "after")
    files = [(tmp_path / name / "adapter.safetensors") for name in ("before", "after")]
    assert_same_tensors(*map(safetensors.torch.load_file, files))


@pytest.mark.parametrize("name", ["merged.pth", "merged"])
def test_a_merged_model_is_exported_as_any_other(tmp_path, name):
    model = _adapted()
    save_adapter(model, tmp_path / "adapter")
    loaded = _base()
    load_adapter(loaded, tmp_path / "adapter" / "adapter.safetensors", merge=True)
    save_model(loaded, tmp_path / name)
    with pytest.raises(ValueError, match="no LoRA is merged"):
        unmerge_lora(loaded)
    logits = load_model(tmp_path / name)(TOKENS)[0]
    assert logits.sub(model(TOKENS)[0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: _base(width=128), "a base with width = 64; this model has 128"),
        (lambda: _base(layers=2), "a base with layers = 3; this model has 2"),
        (lambda: _base(1), "another base of the same sizes"),
    ],
)
def test_another_base_is_refused_and_left_alone(tmp_path, other, message):
    save_adapter(_adapted(offset=True), tmp_path)
    model = other()
    with pytest.raises(ModelFileError, match=message):
        load_adapter(model, tmp_path)
    assert_same_tensors(model.state_dict(), other().state_dict())


def test_a_base_in_half_precision_is_the_one_it_was_trained_on(tmp_path):
    model = _adapted(_base().bfloat16().float())
    save_adapter(model, tmp_path)
    half = _base().bfloat16()
    load_adapter(half, tmp_path)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {
        torch.bfloat16,
        torch.float32,
    }
    assert_same_tensors(half.float().state_dict(), model.state_dict())
    assert torch.equal(half(TOKENS)[0], model(TOKENS)[0])


def _rewritten(folder, change) -> None:
    """Write the adapter's file again after changing its tensors and header."""
    path = folder / "adapter.safetensors"
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(str(path), framework="pt") as file:
        header = dict(file.metadata())
    change(tensors, header)
    safetensors.torch.save_file(tensors, path, header)


def _version(tensors, header) -> None:
    about = json.loads(header["doxastic-adapter"])
    header["doxastic-adapter"] = json.dumps({**about, "version": 2})


def _without(key: str):
    """Return what takes a field out of the description of the base."""

    def change(tensors, header) -> None:
        about = json.loads(header["doxastic-adapter"])
        del about["base"][key]
        header["doxastic-adapter"] = json.dumps(about)

    return change


def _base_is(base: object):
    def change(tensors, header) -> None:
        about = json.loads(header["doxastic-adapter"])
        header["doxastic-adapter"] = json.dumps({**about, "base": base})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, header: header.clear(), "is no adapter"),
        (_without("config"), r"header 'doxastic-adapter' is damaged: KeyError\('config'\)"),
        (_without("identity"), r"header 'doxastic-adapter' is damaged: KeyError\('identity'\)"),
        (_base_is({"config": 3, "identity": ""}), "header 'doxastic-adapter' is damaged"),
        (_base_is([]), "header 'doxastic-adapter' is damaged"),
        (lambda tensors, header: header.update({"doxastic-adapter": "{"}), "is damaged"),
        (lambda tensors, header: header.update({"doxastic-adapter": "[]"}), "is damaged"),
        (_version, "in version 2; this doxastic reads version 1"),
        (lambda tensors, header: tensors.pop("head.lora_a"), r"head\.lora_a is missing"),
        (
            lambda tensors, header: tensors.update({"head.lora_b": torch.zeros(2, 2)}),
            r"head\.lora_b has shape \[2, 2\]; expected \[37, 3\]",
        ),
    ],
)
def test_a_damaged_adapter_is_refused_and_the_base_is_left_alone(tmp_path, change, message):
    save_adapter(_adapted(), tmp_path)
    _rewritten(tmp_path, change)
    model = _base()
    with pytest.raises(ModelFileError, match=message):
        load_adapter(model, tmp_path)
    assert_same_tensors(model.state_dict(), _base().state_dict())


def test_a_cut_file_a_missing_one_and_a_second_adapter_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no adapter at"):
        load_adapter(_base(), tmp_path)
    model = _adapted()
    save_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="has an adapter already"):
        load_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="nothing to save"):
        save_adapter(_base(), tmp_path)
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="not a whole safetensors file"):
        load_adapter(_base(), tmp_path)
