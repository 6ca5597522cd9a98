"""`doxastic lm convert` and `doxastic lm info`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from language_cases import (
    assert_same_tensors,
    random_checkpoint,
    random_tensors,
    small_config,
)

from doxastic.configuration import ConfigError
from doxastic.disk import RunError
from doxastic.language.adaptation import LoRAConfig, apply_lora, merge_lora, save_adapter
from doxastic.language.adaptation.lora import adapted_layers
from doxastic.language.formats import (
    ModelFileError,
    load_model,
    read_checkpoint,
    write_checkpoint,
)
from doxastic.language.model import LanguageModel
from doxastic.lm.convert import convert, info

CONFIG = small_config(64, width=128, vocab_size=257)


@pytest.fixture
def pth(tmp_path) -> str:
    """Return the path of a good .pth."""
    write_checkpoint(random_checkpoint(CONFIG), tmp_path / "model.pth")
    return str(tmp_path / "model.pth")


def test_convert_goes_there_and_back(tmp_path, pth, capsys) -> None:
    convert([pth, str(tmp_path / "theirs"), "--format", "hf"])
    convert([str(tmp_path / "theirs"), str(tmp_path / "back.pth")])
    assert f"wrote {tmp_path / 'back.pth'}: 379,136 parameters" in capsys.readouterr().out
    found = read_checkpoint(tmp_path / "back.pth")
    assert_same_tensors(dict(found.tensors), dict(read_checkpoint(pth).tensors))


def test_convert_rounds_to_the_dtype_it_is_given(tmp_path, pth) -> None:
    convert([pth, str(tmp_path / "ours"), "--dtype", "bfloat16"])
    assert read_checkpoint(tmp_path / "ours").dtypes == (torch.bfloat16,)


def _adapter(model: LanguageModel, folder: Path) -> Path:
    """Write an adapter of some of the model's projections and return its folder."""
    config = LoRAConfig(rank=2, alpha=4.0, targets=("blocks.*.att.key",))
    apply_lora(model, config, torch.Generator().manual_seed(0))
    for layer in adapted_layers(model).values():
        torch.nn.init.normal_(layer.lora_b, std=0.1, generator=torch.Generator().manual_seed(1))
    save_adapter(model, folder)
    return folder


def _is_adapted(name: str) -> bool:
    return name.endswith("att.key.weight")


def test_merging_changes_no_bit_of_what_the_adapter_leaves_alone(tmp_path) -> None:
    tensors = {
        name: tensor.double() * (1 + 1e-12) for name, tensor in random_tensors(CONFIG).items()
    }
    torch.save(tensors, tmp_path / "base.pth")
    model = load_model(tmp_path / "base.pth", dtype=torch.float64)
    adapter = _adapter(model, tmp_path / "adapter")
    convert([str(tmp_path / "base.pth"), str(tmp_path / "ours"), "--adapter", str(adapter)])
    found = dict(read_checkpoint(tmp_path / "ours").tensors)
    untouched = {name: tensor for name, tensor in tensors.items() if not _is_adapted(name)}
    assert_same_tensors({name: found[name] for name in untouched}, untouched)
    merge_lora(model)
    learnt = {name: t for name, t in model.state_dict().items() if _is_adapted(name)}
    assert_same_tensors({name: found[name] for name in learnt}, learnt)


def test_updates_are_added_before_the_weights_are_rounded(tmp_path) -> None:
    write_checkpoint(random_checkpoint(CONFIG).to(torch.bfloat16), tmp_path / "base.pth")
    model = load_model(tmp_path / "base.pth", dtype=torch.float32)
    adapter = str(_adapter(model, tmp_path / "adapter"))
    merge_lora(model)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        to = [] if dtype is torch.bfloat16 else ["--dtype", str(dtype).removeprefix("torch.")]
        words = [str(tmp_path / "base.pth"), str(tmp_path / "new.pth"), "--adapter", adapter]
        convert([*words, *to])
        found = dict(read_checkpoint(tmp_path / "new.pth").tensors)
        assert_same_tensors(found, {n: t.to(dtype) for n, t in model.state_dict().items()})


def test_merging_writes_no_infinity(tmp_path) -> None:
    checkpoint = random_checkpoint(CONFIG)
    checkpoint.tensors["emb.weight"][43, 0] = 1e5
    write_checkpoint(checkpoint, tmp_path / "base.pth")
    adapter = _adapter(load_model(tmp_path / "base.pth"), tmp_path / "adapter")
    words = [str(tmp_path / "base.pth"), str(tmp_path / "half.pth"), "--dtype", "float16"]
    with pytest.raises(ModelFileError, match=r"emb\.weight has numbers up to 100000"):
        convert([*words, "--adapter", str(adapter)])
    assert not (tmp_path / "half.pth").exists()


def test_a_training_run_stands_for_its_model(tmp_path, capsys) -> None:
    write_checkpoint(random_checkpoint(CONFIG), tmp_path / "run/model")
    (tmp_path / "run/config.yaml").touch()
    convert([str(tmp_path / "run"), str(tmp_path / "model.pth")])
    assert read_checkpoint(tmp_path / "model.pth").config == CONFIG
    info([str(tmp_path / "run")])
    assert "format         safetensors" in capsys.readouterr().out


def test_info_says_what_a_file_holds(pth, capsys) -> None:
    info([pth])
    lines = capsys.readouterr().out.splitlines()
    assert dict(line.split(maxsplit=1) for line in lines if not line.startswith("hidden")) == {
        "model": "RWKV-7 (x070)",
        "format": "pth of RWKV-LM",
        "parameters": "379,136",
        "dtype": "float32",
        "size": "1.4 MiB",
        "state": "99.0 KiB for each sequence, of any length",
        "layers": "3",
        "width": "128, 2 heads of 64",
        "ranks": "decay 12, rate 10, value 6, gate 20",
        "norm": "eps       1e-05, of the groups 0.00064",
        "vocabulary": "257 tokens; probably bytes (--tokenizer bytes)",
    }


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file/new.pth", r"cannot write .*file/new\.pth: Not a directory; .* \(DESTINATION\)"),
        ("file/new", r"cannot write .*model\.safetensors: Not a directory; .* \(DESTINATION\)"),
        ("file", "file is a file; expected the name of a folder"),
        ("folder.pth", "is a folder; expected the name of a file"),
    ],
)
def test_a_destination_that_cannot_be_is_refused_before_the_work(tmp_path, place, message) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises((RunError, ValueError), match=message):
        convert(["no-such-model", str(tmp_path / place)])


@pytest.mark.parametrize("command", [convert, info])
def test_help_teaches_by_examples(command, capsys) -> None:
    with pytest.raises(SystemExit):
        command(["--help"])
    assert f"doxastic lm {command.__name__} rwkv7-g1.pth" in capsys.readouterr().out


def test_a_misspelt_option_is_refused_in_one_line(pth) -> None:
    with pytest.raises(ConfigError, match="gguf"):
        convert([pth, "there", "--format", "gguf"])
