"""Run folders and checkpoints."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gymnasium import spaces

from doxastic import checkpoints
from doxastic.checkpoints import Checkpoint, CheckpointError
from doxastic.disk import RunError, write_atomically
from doxastic.runs import RunFolder


def _checkpoint(step: int, value: float = 0.0) -> Checkpoint:
    return Checkpoint(
        step=step,
        update=step,
        observation_space=spaces.Box(-1, 1, (3,)),
        action_space=spaces.Discrete(2),
        weights={"w": torch.full((2, 3), value)},
        trainer={"m": torch.arange(4, dtype=torch.float64)},
        data={"generator": 2**70, "returns": [1.0, 2.5]},
    )


@pytest.fixture
def run(tmp_path):
    with RunFolder.create({"seed": 1}, path=tmp_path / "run") as run:
        yield run


@pytest.fixture
def full_disk(monkeypatch):
    """Return a function after whose call every flush to the disk fails for lack of space."""

    def fill() -> None:
        def refuse(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", refuse)

    return fill


def test_a_derived_name_in_use_gets_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = []
    for _ in range(3):
        with RunFolder.create({}, name="agent") as run:
            paths.append(str(run.path))
    assert paths == ["runs/agent", "runs/agent-2", "runs/agent-3"]


def test_a_given_folder_with_content_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"is not empty; choose another --run-dir"):
        RunFolder.create({}, path=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_checkpoint_survives_the_disk(run):
    run.save(_checkpoint(64, 0.5), best=True)
    loaded = RunFolder(run.path).load("last", with_trainer=True)
    assert (loaded.step, loaded.update) == (64, 64)
    assert loaded.observation_space == spaces.Box(-1, 1, (3,))
    assert loaded.data == {"generator": 2**70, "returns": [1.0, 2.5]}
    assert torch.equal(loaded.weights["w"], torch.full((2, 3), 0.5))
    assert torch.equal(loaded.trainer["m"], torch.arange(4, dtype=torch.float64))


def test_a_language_models_checkpoint_has_no_spaces(run):
    checkpoint = Checkpoint(step=3, update=3, weights={}, trainer={}, data={})
    run.save(checkpoint, best=True)
    loaded = run.load("last")
    assert loaded.observation_space is None and loaded.action_space is None
    with pytest.raises(CheckpointError, match="is a language model's; expected an agent's"):
        _ = loaded.spaces
    run.save(_checkpoint(4), best=True)
    assert run.load("last").spaces == (spaces.Box(-1, 1, (3,)), spaces.Discrete(2))


def test_the_best_and_the_last_two_checkpoints_are_kept(run):
    for step in (1, 2, 3, 4, 10):
        run.save(_checkpoint(step), best=step == 2)
    kept = sorted(path.name for path in (run.path / "checkpoints").glob("step-*"))
    assert kept == ["step-10", "step-2", "step-4"]
    assert run.load("best").step == 2
    assert run.load("last").step == 10
    assert run.load("step-4").step == 4


def test_a_run_without_an_index_is_read_from_its_newest_checkpoint(run):
    for step in (1, 2):
        run.save(_checkpoint(step), best=True)
    (run.path / "checkpoints" / "index.json").unlink()
    assert run.load("best").step == run.load("last").step == 2


def test_a_copy_of_a_checkpoint_beside_the_others_is_none_of_the_runs(run):
    run.save(_checkpoint(1), best=True)
    shutil.copytree(run.checkpoint_path("last"), run.path / "checkpoints" / "step-1-copy")
    for step in (2, 3, 4):
        run.save(_checkpoint(step), best=True)
    run.rewind(3)
    assert run.load("last").step == 3
    left = sorted(path.name for path in (run.path / "checkpoints").glob("step-*"))
    assert left == ["step-1-copy", "step-3"]


def test_no_file_of_a_checkpoint_is_a_pickle(run):
    run.save(_checkpoint(1), best=True)
    names = {path.name for path in (run.path / "checkpoints" / "step-1").iterdir()}
    assert names == {"weights.safetensors", "trainer.safetensors", "manifest.json"}


def test_metrics_are_appended_and_rewound(run):
    for step in (10, 20, 30):
        run.log({"steps": step, "return": step / 10, "loss": float("nan")})
        run.save(_checkpoint(step), best=step == 30)
    assert [record["loss"] for record in run.metrics()] == [None] * 3
    run.close()
    run.rewind(20)
    assert [record["steps"] for record in run.metrics()] == [10, 20]
    assert run.load("last").step == 20
    assert run.load("best").step == 20
    assert list((run.path / "tensorboard").iterdir())


def test_files_of_results_may_stand_in_a_folder_of_their_own(run):
    path = run.write("samples/step-1.txt", b"text")
    assert path.read_bytes() == b"text"
    run.log_text("samples", "text", 1)
    assert list((run.path / "tensorboard").iterdir())


def test_a_metrics_line_cut_short_is_left_out(run):
    run.log({"steps": 1})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"steps": 2, "ret')
    assert run.metrics() == [{"steps": 1}]


def test_a_run_in_use_is_refused_and_named(run):
    code = (
        "import sys; from doxastic.disk import RunError; from doxastic.runs import RunFolder\n"
        "try: RunFolder(sys.argv[1]).lock()\n"
        "except RunError as error: sys.exit(str(error))"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert f"is in use by process {os.getpid()}; wait until it ends" in refused.stderr
    run.close()
    assert subprocess.run(command, check=False).returncode == 0


def test_a_folder_that_is_no_run_is_refused_with_the_runs_beside_it(run):
    with pytest.raises(RunError, match=r"does not exist; runs in .* are run$"):
        RunFolder(run.path.parent / "rnu")
    with pytest.raises(RunError, match=r"has no config\.yaml"):
        RunFolder(run.path / "checkpoints")


@pytest.mark.parametrize("name", ["weights.safetensors", "trainer.safetensors"])
def test_a_truncated_checkpoint_is_refused_and_the_intact_one_named(run, name):
    run.save(_checkpoint(1), best=True)
    run.save(_checkpoint(2), best=True)
    path = run.path / "checkpoints" / "step-2" / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"damaged: it has \d+ bytes of \d+; use .*step-1"):
        run.load("last", with_trainer=True)
    assert run.load("step-1").step == 1


def test_an_altered_checkpoint_is_refused(run):
    run.save(_checkpoint(1), best=True)
    path = run.path / "checkpoints" / "step-1" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged: its checksum"):
        run.load("last")


def test_a_missing_file_of_a_checkpoint_is_named(run):
    run.save(_checkpoint(1), best=True)
    (run.path / "checkpoints" / "step-1" / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"the file is missing; train again"):
        run.load()


def test_a_truncated_manifest_is_refused(run):
    run.save(_checkpoint(1), best=True)
    path = run.path / "checkpoints" / "step-1" / "manifest.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged: it is not valid JSON"):
        run.load()


def test_a_checkpoint_of_another_format_is_refused(run):
    run.save(_checkpoint(1), best=True)
    path = run.path / "checkpoints" / "step-1" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CheckpointError, match=r"has checkpoint format 99; .* reads format 1"):
        run.load()


def test_a_checkpoint_that_does_not_exist_is_refused(run):
    with pytest.raises(CheckpointError, match=r"has no checkpoint 'best'; it has: none"):
        run.load()


def test_a_full_disk_keeps_the_earlier_checkpoint(run, full_disk):
    run.save(_checkpoint(1), best=True)
    full_disk()
    with pytest.raises(RunError, match=r"cannot write .*: No space left on device; free some"):
        run.save(_checkpoint(2), best=True)
    assert [path.name for path in (run.path / "checkpoints").glob("*step-*")] == ["step-1"]
    assert run.load("last").step == 1


def test_a_full_disk_at_the_start_leaves_no_folder(tmp_path, full_disk):
    full_disk()
    with pytest.raises(RunError, match=r"No space left on device"):
        RunFolder.create({}, path=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_folder_without_a_checkpoint(run, monkeypatch):
    def interrupt(path: Path, content: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write_durably", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.save(_checkpoint(1), best=True)
    assert list((run.path / "checkpoints").iterdir()) == []


def test_no_permission_is_one_clear_line(tmp_path, monkeypatch):
    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=r"cannot write .*run: Permission denied; .* a folder"):
        RunFolder.create({}, path=tmp_path / "run")


def test_a_link_is_kept_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    reader, writer = os.pipe()
    write_atomically(Path(f"/dev/fd/{writer}"), b"through")
    assert os.read(reader, 7) == b"through"
    for end in (reader, writer):
        os.close(end)
