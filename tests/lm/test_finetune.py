"""Fine-tuning by every method: what a run leaves, that it resumes, and what then uses it."""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from doxastic.configuration import ConfigError
from doxastic.kernels import checks
from doxastic.language.adaptation import load_adapter
from doxastic.language.formats import load_model
from doxastic.language.state_files import load_state
from doxastic.lm.convert import convert, info
from doxastic.lm.evaluation import evaluate
from doxastic.lm.experiment import from_dict, load_preset, override
from doxastic.lm.generation import generate
from doxastic.lm.loading import LoadingOptions
from doxastic.lm.loading import load as load_for_use
from doxastic.lm.models import load
from doxastic.lm.training import train
from doxastic.lm.training_commands import finetune
from doxastic.runs import RunFolder

WORDS = ("the", "cat", "sat", "on", "mat", "and", "dog", "lay", "by", "door", "while", "rain")
METHODS = ("lora", "state", "state-offset")
OPTIONS = {"lora": {"lora": {"rank": 2, "dropout": 0.1}}}
TOKENS = torch.tensor([[256, 116, 104, 101]])


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS, random.integers(3, 9))) for _ in range(120)]
    path = tmp_path_factory.mktemp("text") / "sentences.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def base(text, tmp_path_factory) -> Path:
    """A run of pretraining, barely begun."""
    changes = {
        "threads": 1,
        "model": {"width": 32, "layers": 2, "head_size": 16, "low_ranks": [4, 4, 4, 4]},
        "data": {"path": str(text), "batch_size": 4, "block": 32},
        "training": {"updates": 20, "evaluation_updates": 20, "evaluation_batches": 2},
        "samples": {"updates": 0},
    }
    folder = tmp_path_factory.mktemp("runs") / "base"
    return train(override(load_preset("tiny"), changes), run_dir=folder, progress=False)


def _experiment(base: Path, text: Path, method: str, updates: int = 6, **changes: object):
    small = {
        "threads": 1,
        "checkpoint_updates": 2,
        "adaptation": {"base": str(base), "method": method, **OPTIONS.get(method, {})},
        "data": {"path": str(text), "batch_size": 4, "block": 32},
        "training": {"updates": updates, "evaluation_updates": 3, "evaluation_batches": 2},
    }
    return override(override(load_preset(f"finetune-{method}"), small), changes)


@pytest.fixture(scope="module")
def runs(base, text, tmp_path_factory) -> dict[str, Path]:
    """A run of every method that leaves the model as it is."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        method: train(_experiment(base, text, method), run_dir=folder / method, progress=False)
        for method in METHODS
    }


def _records(run: Path) -> list[dict[str, object]]:
    """Return all metrics but those that measure time."""
    return [
        {key: value for key, value in record.items() if "second" not in key}
        for record in RunFolder(run).metrics()
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_holds_what_was_learnt_and_nothing_of_the_base(method, runs):
    names = set(RunFolder(runs[method]).load("last").weights)
    if method == "state":
        assert names == {"start_state.wkv"}
    elif method == "state-offset":
        assert names == {f"blocks.{layer}.att.state_offset" for layer in range(2)}
    else:
        assert len(names) == 2 * 2 * 6 and all(".lora_" in name for name in names)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_whole_one_bit_for_bit(method, runs, base, text, tmp_path):
    # As a run stands that was stopped after the fourth of six updates.
    folder = train(_experiment(base, text, method), run_dir=tmp_path / "run", progress=False)
    train(resume=folder / "checkpoints" / "step-4", progress=False)
    ours, theirs = (
        RunFolder(run).load("last", with_trainer=True) for run in (folder, runs[method])
    )
    for own, other in ((ours.weights, theirs.weights), (ours.trainer, theirs.trainer)):
        assert own.keys() == other.keys()
        assert [name for name in own if not torch.equal(own[name], other[name])] == []
    assert _records(folder) == _records(runs[method])


def test_what_is_exported_is_the_best_checkpoint_over_the_untouched_base(runs, base):
    plain = load_model(base / "model")
    for method in ("lora", "state-offset"):
        model = load_model(base / "model")
        load_adapter(model, runs[method] / "adapter")
        best = load(runs[method]).model
        assert torch.equal(model.eval()(TOKENS)[0], best.eval()(TOKENS)[0])
        assert not torch.equal(model(TOKENS)[0], plain(TOKENS)[0])
    state = load_state(runs["state"] / "state.safetensors", plain).state
    start = load(runs["state"]).start_state
    assert start is not None and torch.equal(state.flat, start(1).flat) and state.flat.any()


@pytest.mark.parametrize("named", ["run", "adapter", "as the model"])
def test_an_adapter_is_loaded_onto_its_base_and_merged(named, runs, base):
    run = runs["lora"]
    path = {"run": run, "adapter": run / "adapter", "as the model": None}[named]
    options = LoadingOptions(adapter=path)
    model, tokenizer = load_for_use(run if path is None else base, options)
    assert tokenizer.spec == "bytes"
    assert model.state_dict().keys() == load_model(base / "model").state_dict().keys()
    expected = load(run).model.eval()(TOKENS)[0]
    assert model(TOKENS)[0].sub(expected).abs().max() < 1e-5


def test_an_adapter_is_merged_before_the_weights_are_rounded(runs, base):
    options = LoadingOptions(adapter=runs["lora"], dtype="bfloat16")
    model, _ = load_for_use(base, options)
    whole, _ = load_for_use(base, LoadingOptions(adapter=runs["lora"]))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name].bfloat16()), name


def test_the_commands_use_what_was_learnt(runs, base, text, capsys, caplog, monkeypatch):
    monkeypatch.setattr(checks, "_logged", set())
    words = ["--prompt", "the", "--max-new-tokens", "4", "--temperature", "0"]
    with caplog.at_level(logging.WARNING):
        for method in ("lora", "state-offset"):
            generate([str(base), *words, "--adapter", str(runs[method])])
        generate([str(base), *words, "--state", str(runs["state"] / "state.safetensors")])
    assert capsys.readouterr().out.count("the") >= 3
    # Python writes a warning to the terminal at once, into the middle of a text.
    assert caplog.messages == []
    losses = []
    for extra in ([], ["--adapter", str(runs["lora"])]):
        evaluate([str(base), "--data", str(text), "--quiet", *extra])
        shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        losses.append(float(shown["nats_per_token"]))
    assert losses[1] < losses[0]


def test_convert_writes_the_base_with_the_updates_merged(runs, base, tmp_path, capsys):
    convert([str(base), str(tmp_path / "one.pth"), "--adapter", str(runs["lora"])])
    convert([str(runs["lora"]), str(tmp_path / "two")])
    expected = load(runs["lora"]).model.eval()(TOKENS)[0]
    for name in ("one.pth", "two"):
        logits = load_model(tmp_path / name)(TOKENS)[0]
        assert logits.sub(expected).abs().max() < 1e-5
    convert([str(runs["lora"]), str(tmp_path / "half"), "--dtype", "bfloat16"])
    assert load_model(tmp_path / "half").head.weight.dtype == torch.bfloat16
    with pytest.raises(ConfigError, match=r"state_offset, which no weight can take in"):
        convert([str(runs["state-offset"]), str(tmp_path / "three")])
    assert not (tmp_path / "three").exists()


def test_a_run_that_tuned_a_state_says_how_it_is_used(runs, base):
    run = runs["state"]
    with pytest.raises(ConfigError, match=rf"{base}, and give --state {run}/state\.safetensors"):
        load_for_use(run, LoadingOptions())


@pytest.mark.parametrize("part", ["", "adapter", "adapter/adapter.safetensors"])
def test_fine_tuning_an_adapter_names_the_command_that_merges_it(part, runs, text, tmp_path):
    run = shutil.copytree(runs["lora"], tmp_path / "a run")
    words = ["--data", str(text), "--run-dir", str(tmp_path / "next"), "--quiet"]
    small = ["--training.updates", "1", "--training.evaluation-batches", "1", "--data.block", "16"]
    with pytest.raises(ConfigError, match="holds a LoRA adapter and no model; merge it") as raised:
        finetune(["--model", str(run / part), *words])
    command = re.search(r"with (doxastic lm convert .*), and give --model (.*)", str(raised.value))
    assert command is not None and not (tmp_path / "next").exists()
    convert(shlex.split(command[1])[3:])
    finetune(["--model", command[2], *words, *small])
    assert (tmp_path / "next" / "model").is_dir()


def test_fine_tuning_an_adapter_without_its_run_asks_for_the_base(runs, base, text, tmp_path):
    adapter = shutil.copytree(runs["lora"] / "adapter", tmp_path / "mine")
    with pytest.raises(ConfigError, match="where BASE is the model it was learnt on") as raised:
        finetune(["--model", str(adapter), "--data", str(text)])
    command = re.search(r"with doxastic lm (convert .*), where", str(raised.value))
    assert command is not None
    convert([str(base) if word == "BASE" else word for word in shlex.split(command[1])[1:]])
    assert load_model(tmp_path / "mine-merged").config == load_model(base / "model").config


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("state", "a state"),
        ("state/state.safetensors", "a state"),
        ("state-offset", "state offsets"),
        ("state-offset/adapter", "state offsets"),
    ],
)
def test_fine_tuning_what_no_weight_takes_in_names_its_base(path, what, runs, base, text):
    message = f"{path} holds {what} and no model; .* the model it was learnt on, --model {base}$"
    with pytest.raises(ConfigError, match=message):
        finetune(["--model", str(runs["lora"].parent / path), "--data", str(text)])


def test_info_on_an_adapter_says_what_it_is(runs):
    with pytest.raises(ConfigError, match="holds a LoRA adapter and no model; merge it"):
        info([str(runs["lora"])])


def test_a_method_brings_its_own_preset(base, text, tmp_path):
    words = ["--model", str(base), "--data", str(text), "--method", "state", "--threads", "1"]
    changes = ["--training.updates", "1", "--training.evaluation-batches", "1", "--quiet"]
    finetune([*words, *changes, "--data.block", "16", "--run-dir", str(tmp_path / "run")])
    experiment = from_dict(RunFolder(tmp_path / "run").config)
    preset = load_preset("finetune-state")
    assert experiment.name == "finetune-state"
    assert experiment.training.learning_rate == preset.training.learning_rate
    assert preset.training.learning_rate > 10 * load_preset("finetune").training.learning_rate


def test_one_long_text_tunes_a_state_in_windows_from_anywhere(base, tmp_path):
    (tmp_path / "text.txt").write_text(" ".join(WORDS) * 20)
    data = {"path": str(tmp_path / "text.txt"), "batch_size": 4, "block": 32}
    experiment = _experiment(base, tmp_path, "state", 2, data=data)
    folder = train(experiment, run_dir=tmp_path / "run", progress=False)
    assert (folder / "state.safetensors").is_file()


def _answers(path: Path, *prompts: int) -> Path:
    lines = [{"prompt": "x" * length, "completion": " yes"} for length in prompts]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_what_long_documents_lose_is_said(base, tmp_path, capsys):
    text = _answers(tmp_path / "answers.jsonl", *[5, 40] * 10)
    experiment = _experiment(base, text, "state", 1)
    train(experiment, run_dir=tmp_path / "run")
    shown = capsys.readouterr().out
    # A prompt, its completion of four bytes and the id that opens the document: 45 for 32.
    assert (
        "data: 9 of 18 documents are longer than data.block = 32 and lose their end, 117" in shown
    )
    assert "the held-out text: 1 of 2 documents are longer" in shown
    train(experiment, run_dir=tmp_path / "quiet", progress=False)
    assert "longer" not in capsys.readouterr().out


def test_documents_that_lose_all_they_teach_are_refused(base, tmp_path):
    text = _answers(tmp_path / "long.jsonl", *[100] * 20)
    short = _answers(tmp_path / "short.jsonl", *[5] * 20)
    message = r"no target counts in the first block = 32 .*--data\.block\): with 105 no "
    for which, train_on, held_out in (("data", text, short), ("the held-out text", short, text)):
        data = {"path": str(train_on), "held_out": str(held_out), "block": 32, "batch_size": 4}
        experiment = _experiment(base, text, "state", 1, data=data)
        with pytest.raises(ConfigError, match=f"^{which}: {message}"):
            train(experiment, run_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_samples_on_the_way_are_written_with_what_was_learnt_so_far(base, text, tmp_path):
    samples = {"updates": 1, "prompts": ["the"], "tokens": 4}
    for method in METHODS:
        experiment = _experiment(base, text, method, 1, samples=samples)
        folder = train(experiment, run_dir=tmp_path / method, progress=False)
        assert (folder / "samples" / "step-1.txt").read_text().startswith("the")


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("state", {"data": {"batches": "packed"}}, "'packed'.*a reset clears.*Choose documents"),
        ("state", {"data": {"batches": "windows"}}, "'windows'.*Choose documents"),
        ("lora", {"adaptation": {"base": ""}}, "'lora', which leaves the model as it is"),
        ("lora", {"adaptation": {"lora": {"targets": ["emb"]}}}, "'emb' matches no projection"),
        ("lora", {"adaptation": {"frozen": ["*.w0"]}}, r"frozen is \['\*\.w0'\], .* method full"),
        (
            "state",
            {"adaptation": {"lora": {"rank": 4}}},
            r"adaptation\.lora\.rank is 4, .* 'state'",
        ),
        ("lora", {"adaptation": {"state_shifts": True}}, "state_shifts is True, .* method state "),
        ("state-offset", {"adaptation": {"trainable": ["emb*"]}}, r"\['emb\*'\], .*state-offset"),
    ],
)
def test_what_a_method_cannot_do_is_refused_and_leaves_no_folder(
    method, changes, message, base, text, tmp_path
):
    with pytest.raises(ConfigError, match=message):
        train(_experiment(base, text, method, **changes), run_dir=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
