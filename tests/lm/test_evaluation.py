"""`doxastic lm evaluate`: measures printed and written, from files of every kind."""

from __future__ import annotations

import json

import pytest
import torch
from language_cases import random_model, small_config

from doxastic.configuration import ConfigError
from doxastic.disk import RunError
from doxastic.language.evaluation import evaluate as evaluate_model
from doxastic.language.formats import save_model
from doxastic.language.state_files import save_state
from doxastic.language.token_store import TokenStore, build_store
from doxastic.language.tokenizers import ByteTokenizer
from doxastic.lm.evaluation import evaluate
from doxastic.memory.state import CoreState

MODEL = random_model(small_config(vocab_size=257, layers=2))
TEXT = "Some text that is to be predicted, né?\n" * 20


@pytest.fixture
def path(tmp_path) -> str:
    save_model(MODEL, tmp_path / "small")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return str(tmp_path / "small")


def expected(texts: list[bytes], masks=None, state=None) -> dict[str, float]:
    store = TokenStore.from_documents(
        [list(text) for text in texts], vocab_size=257, end_of_document=256, masks=masks
    )
    return evaluate_model(MODEL, ByteTokenizer(), store, state=state).to_dict()


def test_a_text_is_measured_printed_and_written(path, tmp_path, capsys) -> None:
    text, output = tmp_path / "text.txt", tmp_path / "score.json"
    evaluate([path, "--data", str(text), "--output", str(output), "--quiet"])
    result = json.loads(output.read_text(encoding="utf-8"))
    assert result == pytest.approx(
        {
            "model": path,
            "data": str(text),
            **expected([TEXT.encode()]),
            "tokens_per_second": result["tokens_per_second"],
        }
    )
    assert result["bytes"] == len(TEXT.encode())
    out, err = capsys.readouterr()
    assert f"bits_per_byte      {result['bits_per_byte']:.4f}\n" in out
    assert err == ""


def test_completions_alone_count_where_there_are_prompts(path, tmp_path, capsys) -> None:
    lines = [{"prompt": "2+2=", "completion": "4."}, {"prompt": "", "completion": "yes"}]
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    evaluate([path, "--data", str(data), "--output", str(tmp_path / "score.json")])
    result = json.loads((tmp_path / "score.json").read_text(encoding="utf-8"))
    masks = [[False] * 4 + [True] * 2, [True] * 3]
    assert result["nats_per_token"] == pytest.approx(
        expected([b"2+2=4.", b"yes"], masks)["nats_per_token"]
    )
    assert (result["tokens"], result["documents"]) == (5, 2)


def test_a_token_store_is_read_where_it_lies(path, tmp_path, capsys) -> None:
    build_store(tmp_path / "text.txt", ByteTokenizer(), tmp_path / "store")
    evaluate([path, "--data", str(tmp_path / "store"), "--batch-size", "1", "--window", "100"])
    nats = expected([TEXT.encode()])["nats_per_token"]
    assert f"nats_per_token     {nats:.4f}\n" in capsys.readouterr().out


def test_documents_start_from_a_tuned_state(path, tmp_path, capsys) -> None:
    state = CoreState(MODEL.layout, torch.randn(1, MODEL.layout.size))
    save_state(tmp_path / "tuned", state, MODEL)
    # Short: what a random model was told it soon forgets.
    (tmp_path / "word.txt").write_text("word", encoding="utf-8")
    evaluate([path, "--data", str(tmp_path / "word.txt"), "--state", str(tmp_path / "tuned")])
    nats = expected([b"word"], state=state)["nats_per_token"]
    assert nats != pytest.approx(expected([b"word"])["nats_per_token"], rel=1e-3)
    assert f"nats_per_token     {nats:.4f}\n" in capsys.readouterr().out


def test_progress_tells_the_speed(path, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("doxastic.lm.evaluation.PLAIN_SECONDS", 0.0)
    evaluate([path, "--data", str(tmp_path / "text.txt")])
    last = capsys.readouterr().err.splitlines()[-1]
    # The end of the document is read as well, and what opens it.
    assert last.startswith(f"{len(TEXT.encode()) + 1:,} of {len(TEXT.encode()) + 1:,} tokens")
    assert "tokens/s   0:00 left" in last


@pytest.mark.parametrize("output", ["{folder}", "{folder}/text.txt/x"])
def test_a_result_that_cannot_be_written_is_refused_before_the_work(path, tmp_path, output) -> None:
    words = ["no-such-model", "--data", "x", "--output", output.format(folder=tmp_path)]
    with pytest.raises(RunError, match=r"cannot write .* \(--output\)"):
        evaluate(words)


def test_folders_on_the_way_to_the_result_are_made(path, tmp_path) -> None:
    output = tmp_path / "results" / "today" / "score.json"
    evaluate([path, "--data", str(tmp_path / "text.txt"), "--output", str(output), "--quiet"])
    assert json.loads(output.read_text(encoding="utf-8"))["model"] == path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either --data or --tasks"),
        (["--data", "x", "--tasks", "y"], "give either --data or --tasks"),
        (["--data", "{text}", "--state", "{chat}"], "kind 'chat'; expected a tuned"),
        (["--data", "{empty}"], "empty"),
        (["--data", "{missing}"], "missing"),
        (["--data", "{text}", "--window", "0"], "window is 0; expected 1 or more"),
        (["--data", "{text}", "--state", "{two}"], "holds 2 states of the kind 'initial'"),
        (["--tasks", "x", "--state", "{chat}"], "--state is for --data, and --tasks is given"),
        (["--data", "{text}", "--limit", "5"], "--limit is for --tasks, and --data is given"),
        (["--data", "{text}", "--device", "cuda:77"], "which this machine does not have"),
    ],
)
def test_what_cannot_be_measured_is_refused(path, tmp_path, words, message) -> None:
    save_state(tmp_path / "chat", MODEL.initial_state(1), MODEL, kind="chat")
    save_state(tmp_path / "two", MODEL.initial_state(2), MODEL)
    (tmp_path / "empty").touch()
    names = {name: tmp_path / name for name in ("chat", "two", "empty", "missing")}
    with pytest.raises((ConfigError, ValueError, OSError), match=message):
        evaluate([path, *(word.format(text=tmp_path / "text.txt", **names) for word in words)])
