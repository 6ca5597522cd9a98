"""Training language models end to end: run folder, kill and resume bit for bit, failures."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from doxastic.checkpoints import CheckpointError
from doxastic.configuration import ConfigError
from doxastic.disk import RunError
from doxastic.interruption import TrainingInterrupted
from doxastic.language.formats import load_model
from doxastic.language.trainer import Trainer
from doxastic.lm.experiment import from_dict, load_preset, override
from doxastic.lm.loop import TrainingStopped
from doxastic.lm.models import load
from doxastic.lm.training import train
from doxastic.runs import RunFolder

WORDS = ("the", "cat", "sat", "on", "mat", "and", "dog", "lay", "by", "door", "while", "rain")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A file of sentences, one a line of JSONL, so that there are documents."""
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS, random.integers(3, 9))) for _ in range(200)]
    path = tmp_path_factory.mktemp("text") / "sentences.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def _experiment(text: Path, updates: int = 6, **changes: object):
    small = {
        "threads": 1,
        "checkpoint_updates": 2,
        "model": {"width": 16, "layers": 2, "head_size": 8, "low_ranks": [4, 4, 4, 4]},
        "data": {"path": str(text), "batch_size": 4, "block": 16},
        "training": {"updates": updates, "evaluation_updates": 3, "evaluation_batches": 2},
        "samples": {"updates": 0},
    }
    return override(override(load_preset("tiny"), small), changes)


@pytest.fixture(scope="module")
def run(text, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return train(_experiment(text), run_dir=folder, progress=False)


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = RunFolder(run).load("last", with_trainer=True)
    return {**checkpoint.weights, **checkpoint.trainer}


def _metrics(run: Path) -> list[dict[str, object]]:
    """Return all metrics but those that measure time."""
    return [
        {key: value for key, value in record.items() if "second" not in key}
        for record in RunFolder(run).metrics()
    ]


def _updates(run: Path) -> list[int]:
    return [record["update"] for record in RunFolder(run).metrics()]


def _assert_same_run(first: Path, second: Path) -> None:
    ours, theirs = _tensors(first), _tensors(second)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert _metrics(first) == _metrics(second)


def test_a_run_leaves_its_folder_complete(run, text):
    names = {path.name for path in run.iterdir()}
    expected = {"config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "model", "tokens"}
    assert names >= expected
    assert _updates(run) == list(range(1, 7))
    resolved = from_dict(RunFolder(run).config)
    assert resolved.training == _experiment(text).training
    assert (resolved.model.vocab_size, resolved.model.hidden_size) == (257, 64)
    records = RunFolder(run).metrics()
    assert [("held_out_loss" in record) for record in records] == [False, False, True] * 2
    assert records[-1]["tokens_per_second"] > 0


def test_the_exported_model_is_the_best_checkpoint(run):
    best, exported = load(run, "best").model, load_model(run / "model")
    assert exported.config == best.config
    for name, tensor in exported.state_dict().items():
        assert torch.equal(tensor, best.state_dict()[name]), name


def test_the_same_experiment_gives_the_same_run(run, text, tmp_path):
    again = train(_experiment(text), run_dir=tmp_path / "again", progress=False)
    _assert_same_run(run, again)


def test_the_callers_random_numbers_and_threads_are_left_alone(text, tmp_path):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train(_experiment(text, 2), run_dir=tmp_path / "run", progress=False)
    assert torch.equal(torch.randn(3), expected)
    assert torch.get_num_threads() == threads


# What a killed process runs: the experiment in a file, into a folder, slowly enough to be hit.
SLOW = """
import os, signal, sys, time
from doxastic.language.trainer import Trainer
from doxastic.lm.training import train
update = Trainer.update
def slow(self):
    time.sleep(0.03)
    return update(self)
Trainer.update = slow
{patch}
train(sys.argv[1], run_dir=sys.argv[2], progress=False)
"""
# Killed with the weights of a checkpoint on the disk and the rest of it missing.
IN_A_CHECKPOINT = """
from doxastic import checkpoints
write = checkpoints.write_durably
def write_and_die(path, content):
    write(path, content)
    if ".step-6." in str(path): os.kill(os.getpid(), signal.SIGKILL)
checkpoints.write_durably = write_and_die
"""


def _start(patch: str, config: Path, folder: Path) -> subprocess.Popen[bytes]:
    code = SLOW.format(patch=patch)
    return subprocess.Popen([sys.executable, "-c", code, str(config), str(folder)])


def _killed_after(lines: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Send SIGKILL once so many updates are logged."""
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_a_killed_run_goes_on_bit_for_bit(text, tmp_path):
    # Streams: the carried states go on, too.
    data = {"path": str(text), "batch_size": 4, "block": 16, "batches": "streams"}
    experiment = _experiment(text, 16, data=data, training={"updates": 16, "accumulation": 2})
    whole = train(experiment, run_dir=tmp_path / "whole", progress=False)
    folder = tmp_path / "killed"
    process = _start("", whole / "config.yaml", folder)
    # Not where a checkpoint is: what came after the last one is made again.
    _killed_after(9, process, folder)
    assert 9 <= len(_updates(folder)) < 16
    train(resume=folder, progress=False)
    _assert_same_run(whole, folder)


def test_a_run_killed_within_a_checkpoint_goes_on_from_the_one_before(text, tmp_path):
    whole = train(_experiment(text, 8), run_dir=tmp_path / "whole", progress=False)
    folder = tmp_path / "killed"
    process = _start(IN_A_CHECKPOINT, whole / "config.yaml", folder)
    assert process.wait(timeout=120) == -signal.SIGKILL
    assert list((folder / "checkpoints").glob(".step-6.*"))
    assert RunFolder(folder).load("last", with_trainer=True).update == 4
    train(resume=folder, progress=False)
    assert not list((folder / "checkpoints").glob(".step-*"))
    _assert_same_run(whole, folder)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(run, tmp_path):
    folder = tmp_path / "killed"
    (folder / "checkpoints" / ".step-0.123").mkdir(parents=True)
    (folder / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    train(resume=folder, progress=False)
    _assert_same_run(run, folder)
    assert not list((folder / "checkpoints").glob(".step-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_update_and_the_run_goes_on(
    number, run, text, tmp_path, monkeypatch
):
    folder, update = tmp_path / "run", Trainer.update

    def update_and_signal(self):
        if self.updates == 2:
            os.kill(os.getpid(), number)
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", update_and_signal)
        with pytest.raises(
            TrainingInterrupted, match=r"saved after update 3; .* doxastic lm pretrain --resume"
        ) as raised:
            train(_experiment(text), run_dir=folder, progress=False)
    assert raised.value.signal_number == number
    assert RunFolder(folder).load("last").update == 3
    train(resume=folder, progress=False)
    _assert_same_run(run, folder)


def test_a_second_signal_stops_at_once_and_the_run_goes_on(run, text, tmp_path, monkeypatch):
    folder, backward = tmp_path / "run", Trainer._backward

    def backward_and_signal(self, batches, scale):
        if self.updates == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(self, batches, scale)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_backward", backward_and_signal)
        with pytest.raises(TrainingInterrupted, match=r"SIGTERM: saved after update 3; continue"):
            train(_experiment(text), run_dir=folder, progress=False)
    train(resume=folder, progress=False)
    _assert_same_run(run, folder)


@pytest.mark.parametrize("method", ["update", "evaluate"])
def test_a_defect_anywhere_loses_nothing_that_is_exact(method, run, text, tmp_path, monkeypatch):
    original = getattr(Trainer, method)

    def fail(self):
        if self.updates == 3:
            raise ZeroDivisionError
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, method, fail)
        with pytest.raises(ZeroDivisionError):
            train(_experiment(text), run_dir=tmp_path / "run", progress=False)
    # An update that was not evaluated yet is made again.
    expected = 3 if method == "update" else 2
    assert RunFolder(tmp_path / "run").load("last").update == expected
    train(resume=tmp_path / "run", progress=False)
    _assert_same_run(run, tmp_path / "run")


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_good(run, text, tmp_path, monkeypatch):
    backward = Trainer._backward

    def spoilt(self, batches, scale):
        summed = backward(self, batches, scale)
        return summed * math.nan if self.updates == 4 else summed

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_backward", spoilt)
        with pytest.raises(
            TrainingStopped, match=r"update 5 is not finite: loss nan.*saved after update 4"
        ):
            train(_experiment(text), run_dir=tmp_path / "run", progress=False)
    train(resume=tmp_path / "run", progress=False)
    _assert_same_run(run, tmp_path / "run")


def test_a_full_disk_stops_and_keeps_the_old_checkpoint(run, text, tmp_path, monkeypatch):
    fsync, folder = os.fsync, tmp_path / "run"

    def full_after_two(descriptor):
        index = folder / "checkpoints" / "index.json"
        if index.exists() and "step-2" in index.read_text():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_after_two)
        with pytest.raises(RunError, match=r"No space left on device; .*; saved after update 2"):
            train(_experiment(text), run_dir=folder, progress=False)
    assert RunFolder(folder).load("step-2", with_trainer=True).update == 2
    train(resume=folder, progress=False)
    _assert_same_run(run, folder)


def _judged_by(losses, monkeypatch):
    given = iter(losses)
    monkeypatch.setattr(Trainer, "evaluate", lambda self: next(given))


def test_the_best_checkpoint_has_the_lowest_loss_on_held_out_text(text, tmp_path, monkeypatch):
    _judged_by([4.0, 2.0, 3.0, 2.5], monkeypatch)
    training = {"updates": 8, "evaluation_updates": 2}
    folder = train(_experiment(text, training=training), run_dir=tmp_path / "run", progress=False)
    assert RunFolder(folder).checkpoint_path("best").name == "step-4"
    assert RunFolder(folder).checkpoint_path("last").name == "step-8"


def test_training_stops_where_the_loss_stays_up_and_does_not_go_on(text, tmp_path, monkeypatch):
    _judged_by([4.0, 2.0, 3.0, 2.0, 9.0], monkeypatch)
    training = {"updates": 100, "evaluation_updates": 1, "patience": 2}
    folder = train(_experiment(text, training=training), run_dir=tmp_path / "run", progress=False)
    assert _updates(folder) == [1, 2, 3, 4]
    train(resume=folder, progress=False)
    assert _updates(folder) == [1, 2, 3, 4]
    assert RunFolder(folder).checkpoint_path("best").name == "step-2"


def test_without_held_out_text_the_best_is_the_last(text, tmp_path):
    data = {"path": str(text), "batch_size": 4, "block": 16, "held_out_fraction": 0.0}
    folder = train(_experiment(text, data=data), run_dir=tmp_path / "run", progress=False)
    assert RunFolder(folder).checkpoint_path("best").name == "step-6"
    assert not any("held_out_loss" in record for record in RunFolder(folder).metrics())


def test_a_finished_run_can_be_prolonged_without_its_text(text, tmp_path):
    copy = tmp_path / text.name
    copy.write_bytes(text.read_bytes())
    folder = train(_experiment(copy, 2), run_dir=tmp_path / "run", progress=False)
    copy.unlink()
    train(resume=folder, progress=False, training={"updates": 4})
    assert _updates(folder) == [1, 2, 3, 4]
    assert from_dict(RunFolder(folder).config).training.updates == 4


def test_samples_are_written_on_the_way_and_change_nothing(run, text, tmp_path):
    samples = {"updates": 2, "prompts": ["the ", "a"], "tokens": 5}
    folder = train(_experiment(text, samples=samples), run_dir=tmp_path / "run", progress=False)
    written = sorted(path.name for path in (folder / "samples").iterdir())
    assert written == ["step-2.txt", "step-4.txt", "step-6.txt"]
    assert (folder / "samples" / "step-2.txt").read_text().startswith("the ")
    _assert_same_run(run, folder)


def test_fine_tuning_begins_with_the_given_model_and_freezes_by_pattern(run, text, tmp_path):
    adaptation = {"base": str(run / "model"), "trainable": ["*.att.*"], "frozen": ["*.w0"]}
    experiment = _experiment(text, 2, adaptation=adaptation, model={"width": 64})
    folder = train(experiment, run_dir=tmp_path / "run", progress=False)
    base, tuned = load_model(run / "model").state_dict(), load_model(folder / "model").state_dict()
    for name, tensor in tuned.items():
        learns = ".att." in name and not name.endswith(".w0")
        assert torch.equal(tensor, base[name]) != learns, name
    # What was given for a new model gives way to what the model is made of.
    assert from_dict(RunFolder(folder).config).model.width == 16


def test_a_resumed_run_may_not_become_another_experiment(run):
    with pytest.raises(ConfigError, match=r"model differs from .* may change only device, threads"):
        train(resume=run, progress=False, model={"layers": 3})


def test_a_checkpoint_of_another_model_is_refused(run, tmp_path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = (copy / "config.yaml").read_text().replace("hidden_size: 64", "hidden_size: 32")
    (copy / "config.yaml").write_text(config)
    for attempt in (lambda: train(resume=copy, progress=False), lambda: load(copy)):
        with pytest.raises(CheckpointError, match=r"does not fit .*ffn\.key\.weight"):
            attempt()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"path": ""}}, ConfigError, "name a text file, a folder or a .jsonl with --data"),
        ({"data": {"path": "no-such-text"}}, ValueError, "no-such-text does not exist"),
        ({"model": {"vocab_size": 100}}, ValueError, "vocabulary has the ids 0 to 99"),
        (
            {"data": {"block": 6000, "batches": "windows"}},
            ConfigError,
            r"data has 4,\d{3} tokens, and windows of data\.block = 6,000 tokens need 6,001; give "
            r"more text with --data, --data\.block 4\d{3} or less, or --data\.batches packed",
        ),
        (
            {"data": {"block": 2000, "batches": "windows"}},
            ConfigError,
            r"the held-out text has 4\d\d tokens, and windows of data\.block = 2,000 tokens need "
            r"2,001; name a longer text with --data\.held-out, give --data\.block 4\d\d or less",
        ),
        (
            {"data": {"held_out_fraction": 1e-5}},
            ConfigError,
            r"tokens has no 1e-05 to hold out.* --data\.held-out, or .*--data\.held-out-fraction 0",
        ),
        ({"adaptation": {"method": "ful"}}, ConfigError, r"method is 'ful'; did you mean full\?"),
        (
            {"adaptation": {"trainable": ["blocks.*.atn.*"]}},
            ConfigError,
            r"'blocks\.\*\.atn\.\*' matches no parameter; there is blocks",
        ),
        ({"adaptation": {"frozen": ["*"]}}, ConfigError, "nothing is left to learn"),
        ({"adaptation": {"lora": {"alpha": 4.0}}}, ConfigError, r"lora\.alpha is 4\.0, .* 'full'"),
        ({"adaptation": {"base": "no-such-model"}}, OSError, "there is no model at no-such-model"),
        ({"device": "cuda:77"}, ConfigError, "which this machine does not have"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_no_folder(
    changes, error, message, text, tmp_path
):
    with pytest.raises(error, match=message):
        train(_experiment(text, **changes), run_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_shows_its_progress_and_where_the_model_is(text, tmp_path, capsys):
    train(_experiment(text, 2), run_dir=tmp_path / "run")
    shown = capsys.readouterr().out
    assert "parameters into" in shown and "tokens/s" in shown and "loss" in shown
    assert shown.splitlines()[-1].startswith(f"wrote the model: {tmp_path / 'run' / 'model'}")
