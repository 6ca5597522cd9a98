"""Resuming a run: what was trained stays what it is, and a refusal changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from doxastic.checkpoints import CheckpointError
from doxastic.language.formats import save_model
from doxastic.language.trainer import Trainer
from doxastic.lm.experiment import from_dict, load_preset, override
from doxastic.lm.models import load
from doxastic.lm.training import train
from doxastic.runs import RunFolder

WORDS = ("the", "cat", "sat", "on", "mat", "and", "dog", "lay", "by", "door", "while", "rain")


@pytest.fixture
def text(tmp_path) -> Path:
    """A folder with a file of sentences, one a line of JSONL."""
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS, random.integers(3, 9))) for _ in range(80)]
    path = tmp_path / "text" / "sentences.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def _train(text: Path, run: Path, updates: int = 4, **changes: object) -> Path:
    small = {
        "threads": 1,
        "checkpoint_updates": 2,
        "model": {"width": 16, "layers": 2, "head_size": 8, "low_ranks": [4, 4, 4, 4]},
        "data": {"path": str(text), "batch_size": 4, "block": 16},
        "training": {"updates": updates, "evaluation_updates": 2, "evaluation_batches": 1},
        "samples": {"updates": 0},
    }
    experiment = override(override(load_preset("tiny"), small), changes)
    return train(experiment, run_dir=run, progress=False)


def _content(run: Path) -> dict[str, bytes]:
    """Return what is in a run folder, but for the number of the process that had it last."""
    paths = [path for path in run.rglob("*") if path.is_file() and path.name != "run.lock"]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}


def _losses(run: Path) -> list[object]:
    return [(record["loss"], record.get("held_out_loss")) for record in RunFolder(run).metrics()]


def test_a_run_goes_on_with_the_tokens_it_began_with(text, tmp_path):
    changed = _train(text, tmp_path / "changed", 2)
    kept = shutil.copytree(changed, tmp_path / "kept")
    train(resume=kept, progress=False, training={"updates": 4})
    text.write_text(text.read_text().replace("cat", "cow") + '{"text": "more"}\n')
    train(resume=changed, progress=False, training={"updates": 4})
    assert len(_losses(changed)) == 4 and _losses(changed) == _losses(kept)
    assert _content(changed / "tokens") == _content(kept / "tokens")


def test_tokens_that_are_gone_are_made_again_from_the_same_text_alone(text, tmp_path):
    run, original = _train(text, tmp_path / "run"), text.read_bytes()
    text.write_bytes(original.replace(b"cat", b"cow"))
    shutil.rmtree(run / "tokens")
    # The second time, the tokens of the other text are there.
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"holds other tokens .* remove .*tokens, and"):
            train(resume=run, progress=False, training={"updates": 6})
    text.write_bytes(original)
    shutil.rmtree(run / "tokens")
    train(resume=run, progress=False, training={"updates": 6})
    assert len(_losses(run)) == 6


def test_a_refused_resume_changes_nothing(text, tmp_path):
    run = _train(text, tmp_path / "run", 6)
    shutil.move(run / "tokens", tmp_path / "elsewhere")
    text.unlink()
    before = _content(run)
    with pytest.raises(ValueError, match=r"sentences\.jsonl does not exist"):
        train(resume=run / "checkpoints" / "step-4", progress=False, training={"updates": 8})
    assert _content(run) == before
    shutil.move(tmp_path / "elsewhere", run / "tokens")
    train(resume=run / "checkpoints" / "step-4", progress=False)
    assert len(_losses(run)) == 6


def test_settings_that_do_not_fit_the_batches_are_refused_before_they_are_written(text, tmp_path):
    data = {"path": str(text), "batch_size": 4, "block": 16, "batches": "windows"}
    run = _train(text, tmp_path / "run", 2, data=data)
    before = _content(run)
    changes = {"updates": 4, "backpropagate_windows": 4}
    with pytest.raises(ValueError, match="backpropagate_windows is 4, but these batches carry no"):
        train(resume=run, progress=False, training=changes)
    assert _content(run) == before
    train(resume=run, progress=False, training={"updates": 4})
    assert from_dict(RunFolder(run).config).training.backpropagate_windows == 1
    with pytest.raises(ValueError, match="backpropagate_windows is 4"):
        _train(text, tmp_path / "new", data=data, training=changes)
    assert not (tmp_path / "new").exists()


def test_the_best_is_never_a_checkpoint_that_did_not_reach_the_lowest_loss(
    text, tmp_path, monkeypatch
):
    # Update 2 reaches 2.0; 4 is worse; 6 is the best, and its checkpoint pushes that of 2 out.
    losses = iter([2.0, 3.0, 1.0, 2.5, 2.75])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: next(losses))
    run = _train(text, tmp_path / "run", 6)
    folder = RunFolder(run)
    assert not folder.keeps(2) and folder.keeps(4)
    train(resume=run / "checkpoints" / "step-4", progress=False)
    # Update 6 again, judged 2.5 now: better than 4, of which 2.0 says nothing.
    assert folder.checkpoint_path("best").name == "step-6"
    assert folder.load("best").data["lowest"] == 2.5
    # Where the best is still there, its loss holds.
    train(resume=run, progress=False, training={"updates": 8})
    assert folder.checkpoint_path("best").name == "step-6"
    assert folder.load("last").data["lowest"] == 2.5


def test_a_best_that_was_lost_stays_lost_when_a_run_is_resumed_twice(text, tmp_path, monkeypatch):
    losses = iter([2.0, 3.0, 1.0, 2.5])
    monkeypatch.setattr(Trainer, "evaluate", lambda self: next(losses))
    run = _train(text, tmp_path / "run", 6)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(resume=run / "checkpoints" / "step-4", progress=False)
    assert RunFolder(run).checkpoint_path("best").name == "step-4"
    train(resume=run, progress=False)
    assert RunFolder(run).checkpoint_path("best").name == "step-6"
    assert RunFolder(run).load("best").data["lowest"] == 2.5


def test_text_around_the_run_is_read_without_it(text, tmp_path, monkeypatch):
    monkeypatch.chdir(text.parent)
    samples = {"updates": 1, "prompts": ["a"], "tokens": 4}
    data = {"path": ".", "suffixes": [".jsonl", ".txt"], "batch_size": 4, "block": 16}
    names = []
    for name in ("one", "two"):
        run = _train(Path("."), Path("runs") / name, 2, data=data, samples=samples)
        about = json.loads((run / "tokens" / "store.json").read_text())
        names += [source["name"] for source in about["sources"]]
    assert (Path("runs") / "one" / "samples" / "step-1.txt").is_file()
    assert names == ["sentences.jsonl"] * 2
    train(resume=Path("runs/two"), progress=False, training={"updates": 4})
    assert len(_losses(Path("runs/two"))) == 4


@pytest.mark.parametrize("method", ["lora", "state", "state-offset", "full"])
def test_what_was_learnt_beside_a_model_does_not_go_on_beside_another(method, text, tmp_path):
    base = _train(text, tmp_path / "base", 2)
    small = {
        "threads": 1,
        "checkpoint_updates": 2,
        "adaptation": {"base": str(base), "method": method},
        "data": {"path": str(text), "batch_size": 4, "block": 16},
        "training": {"updates": 2, "evaluation_updates": 2, "evaluation_batches": 1},
    }
    preset = "finetune" if method == "full" else f"finetune-{method}"
    experiment = override(load_preset(preset), small)
    run = train(experiment, run_dir=tmp_path / "run", progress=False)
    train(resume=run, progress=False, training={"updates": 3})
    other = load(base).model
    with torch.no_grad():
        other.emb.weight[5] += 1.0
    save_model(other, base / "model")
    before = _content(run)
    if method == "full":
        # Its checkpoints hold the whole model.
        train(resume=run, progress=False, training={"updates": 4})
        return
    for attempt in (lambda: train(resume=run, progress=False), lambda: load(run)):
        with pytest.raises(CheckpointError, match=r"was trained on other weights than .*base has"):
            attempt()
    assert _content(run) == before
