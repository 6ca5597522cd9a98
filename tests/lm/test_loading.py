"""A model and its tokenizer from what a user names: refused clearly, found where documented."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from language_cases import random_model, small_config

from doxastic.configuration import ConfigError, to_dict
from doxastic.language.adaptation import LoRAConfig, apply_lora, save_adapter
from doxastic.language.formats import ModelFileError, save_model
from doxastic.lm.convert import convert, info
from doxastic.lm.experiment import load_preset
from doxastic.lm.loading import LoadingOptions, load, tokenizer_spec
from doxastic.lm.training_commands import finetune
from doxastic.runs import RunFolder

CONFIG = small_config(vocab_size=257, layers=2)


def _begun(folder: Path, base: str = "") -> Path:
    """Return the folder of a run that has only begun."""
    experiment = load_preset("tiny")
    adaptation = dataclasses.replace(experiment.adaptation, base=base)
    config = to_dict(dataclasses.replace(experiment, adaptation=adaptation))
    with RunFolder.create(config, path=folder) as run:
        return run.path


@pytest.mark.parametrize(("base", "command"), [("", "pretrain"), ("base.pth", "finetune")])
def test_a_run_that_has_not_finished_is_told_how_it_goes_on(tmp_path, base, command) -> None:
    run = str(_begun(tmp_path / "a run", base))
    message = f"has not finished.*: doxastic lm {command} --resume '{run}'$"
    for use in (
        lambda: load(Path(run), LoadingOptions()),
        lambda: info([run]),
        lambda: convert([run, str(tmp_path / "model.pth")]),
        lambda: finetune(["--model", run, "--data", str(tmp_path)]),
        lambda: load(tmp_path / "base.pth", LoadingOptions(adapter=Path(run))),
    ):
        with pytest.raises(ConfigError, match=message):
            use()


def test_a_folder_that_is_no_run_of_a_language_model_is_not_called_one(tmp_path) -> None:
    with RunFolder.create({"env": "CartPole"}, path=tmp_path / "run"):
        pass
    with pytest.raises(ModelFileError, match=r"has neither model\.safetensors nor"):
        load(tmp_path / "run", LoadingOptions())
    save_model(random_model(CONFIG), tmp_path / "model")
    (tmp_path / "model/config.yaml").write_text("- of another program\n", encoding="utf-8")
    assert load(tmp_path / "model", LoadingOptions())[1].spec == "bytes"


@pytest.mark.parametrize("name", ["model", "model/model.safetensors", "model/other.pth"])
def test_a_tokenizer_beside_the_model_is_taken_however_the_model_is_named(tmp_path, name) -> None:
    (tmp_path / "model").mkdir()
    save_model(random_model(CONFIG), tmp_path / name)
    assert tokenizer_spec(tmp_path / name, None, 257) == "bytes"
    beside = tmp_path / "model" / "tokenizer.json"
    beside.touch()
    assert tokenizer_spec(tmp_path / name, None, 257) == str(beside)


def test_an_adapted_model_is_not_rounded_to_infinity(tmp_path) -> None:
    model = random_model(CONFIG)
    with torch.no_grad():
        model.emb.weight[43, 0] = 1e5
    save_model(model, tmp_path / "base.pth")
    apply_lora(model, LoRAConfig(targets=("blocks.*.att.key",)))
    save_adapter(model, tmp_path / "adapter")
    options = LoadingOptions(adapter=tmp_path / "adapter", dtype="float16")
    with pytest.raises(ModelFileError, match=r"emb\.weight has numbers up to 100000"):
        load(tmp_path / "base.pth", options)
    wide, _ = load(tmp_path / "base.pth", dataclasses.replace(options, dtype="bfloat16"))
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.bfloat16}


def test_an_adapted_model_of_wide_numbers_loses_none(tmp_path) -> None:
    model = random_model(CONFIG).double()
    with torch.no_grad():
        model.emb.weight[43, 0] = 1e39
    save_model(model, tmp_path / "base.pth")
    apply_lora(model, LoRAConfig(targets=("blocks.*.att.key",)))
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ModelFileError, match=r"emb\.weight has numbers up to 1e\+39"):
        load(tmp_path / "base.pth", LoadingOptions(adapter=tmp_path / "adapter"))
