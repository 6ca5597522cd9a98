"""`doxastic lm pretrain` and `finetune`: what is typed becomes the run it should."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tolerances import SAME

from doxastic.configuration import ConfigError
from doxastic.lm.experiment import from_dict
from doxastic.lm.models import load
from doxastic.lm.training import train
from doxastic.lm.training_commands import finetune, pretrain
from doxastic.runs import RunFolder

SMALL = [
    *("--model.width", "16", "--model.layers", "1", "--model.head-size", "8", "--threads", "1"),
    *("--model.low-ranks", "4", "4", "4", "4", "--data.batch-size", "4", "--data.block", "16"),
    *("--training.evaluation-batches", "2", "--samples.updates", "0"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on the mat while the dog lay by the door. " * 60)
    return path


@pytest.fixture(scope="module")
def run(text, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["tiny", "--data", str(text), *SMALL, "--training.updates", "3", "--quiet"]
    pretrain([*words, "--run-dir", str(folder)])
    return folder


def test_options_override_the_preset(run, text):
    experiment = from_dict(RunFolder(run).config)
    assert experiment.name == "tiny"
    assert (experiment.data.path, experiment.data.tokenizer) == (str(text), "bytes")
    assert (experiment.model.width, experiment.model.low_ranks) == (16, (4, 4, 4, 4))
    assert experiment.training.updates == 3
    assert experiment.training.learning_rate == 3e-3


def test_a_run_is_gone_on_with_by_the_command_its_message_names(run, text, tmp_path):
    folder = tmp_path / "run"
    words = ["--data", str(text), *SMALL, "--quiet", "--training.updates", "2"]
    pretrain([*words, "--run-dir", str(folder)])
    pretrain(["--resume", str(folder), "--quiet", "--training.updates", "3"])
    records = RunFolder(folder).metrics()
    assert [record["update"] for record in records] == [1, 2, 3]


def test_a_run_is_fine_tuned_with_its_own_tokenizer(run, text, tmp_path):
    folder = tmp_path / "tuned"
    words = ["--model", str(run), "--data", str(text), "--data.block", "16", "--method", "full"]
    finetune([*words, "--training.updates", "2", "--threads", "1", "--run-dir", str(folder)])
    experiment = from_dict(RunFolder(folder).config)
    assert (experiment.adaptation.base, experiment.data.tokenizer) == (str(run), "bytes")
    assert experiment.model.width == 16
    before, after = load(run).model, load(folder).model
    assert not torch.equal(before.head.weight, after.head.weight)


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (finetune, ["--data", "text.txt"], "no model is named; give one with --model"),
        (pretrain, ["--resume", "runs/nowhere"], "is not a run folder: it does not exist"),
        (pretrain, ["tinny", "--data", "x"], r"unknown preset 'tinny'; did you mean tiny\?"),
        (pretrain, ["--training.patienc", "3"], r"did you mean --training\.patience\?"),
        (pretrain, ["--training.updates", "many"], "many"),
        (pretrain, ["--model", "rwkv7.pth"], "--model"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(command, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ConfigError, RuntimeError), match=message) as raised:
        command(words)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_preset_and_a_run_to_resume_are_refused(run):
    with pytest.raises(ConfigError, match="the preset tiny and --resume are both given"):
        pretrain(["tiny", "--resume", str(run)])


@pytest.mark.parametrize("command", [pretrain, finetune])
def test_help_says_what_every_option_is(command, capsys):
    with pytest.raises(SystemExit):
        command(["--help"])
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "examples:" in shown and "--resume" in shown and "--data STR" in shown
    assert ("--model.width" in shown) == (command is pretrain)
    assert ("--adaptation.frozen" in shown) == (command is finetune)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _in_two_processes(words: list[str]) -> list[str]:
    """Run `doxastic` as torchrun does and return what each process printed."""
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    port = {"MASTER_PORT": str(_free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "doxastic", *words],
            env={**os.environ, **common, **port, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=170) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), outputs
    return [output for output, _ in outputs]


def test_the_same_command_trains_in_two_processes_and_one_goes_on(run, text, tmp_path):
    folder = tmp_path / "two"
    words = ["tiny", "--data", str(text), *SMALL, "--training.updates", "2"]
    shown = _in_two_processes(["lm", "pretrain", *words, "--run-dir", str(folder)])
    # Only the first process speaks.
    assert "wrote the model" in shown[0] and shown[1] == ""
    train(resume=folder, progress=False, training={"updates": 3})
    ours, theirs = RunFolder(folder).metrics(), RunFolder(run).metrics()
    assert [record["tokens"] for record in ours] == [record["tokens"] for record in theirs]
    # Up to the schedule of the second update, which the length of the run decides.
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=SAME[torch.float32])
    assert ours[0]["grad_norm"] == pytest.approx(theirs[0]["grad_norm"], rel=1e-5)


@pytest.mark.slow
def test_two_processes_refuse_as_one_does_and_leave_no_folder(tmp_path):
    words = ["lm", "pretrain", "--data", str(tmp_path / "no-such-text"), *SMALL]
    with pytest.raises(AssertionError, match="no-such-text does not exist"):
        _in_two_processes([*words, "--run-dir", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
