"""`doxastic lm convert` and `doxastic lm info`."""

from __future__ import annotations

import pytest
import torch
from language_cases import assert_same_tensors, random_checkpoint, small_config

from doxastic.configuration import ConfigError
from doxastic.disk import RunError
from doxastic.language.formats import read_checkpoint, write_checkpoint
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
