"""`doxastic lm generate` and `doxastic lm chat`, from files and scripts."""

from __future__ import annotations

import io
import json

import pytest
import torch
from language_cases import random_model, small_config
from tolerances import NORMALISED, assert_close

from doxastic.configuration import ConfigError
from doxastic.disk import RunError
from doxastic.language.formats import save_model
from doxastic.language.generation import generate as generate_texts
from doxastic.language.sampling import SamplingConfig
from doxastic.language.state_files import load_state, save_state
from doxastic.language.tokenizers import ByteTokenizer
from doxastic.lm.conversation import converse
from doxastic.lm.generation import chat, generate

MODEL = random_model(small_config(vocab_size=257, layers=2))


@pytest.fixture
def path(tmp_path) -> str:
    save_model(MODEL, tmp_path / "small")
    return str(tmp_path / "small")


def expected(prompts: list[str], **sampling) -> list[str]:
    found = generate_texts(MODEL, ByteTokenizer(), prompts, SamplingConfig(**sampling))
    return [done.text for done in found]


def test_one_prompt_is_printed_with_its_continuation(path, capsys) -> None:
    generate([path, "--prompt", "Once", "--max-new-tokens", "9", "--seed", "3"])
    out, err = capsys.readouterr()
    assert out == "Once" + expected(["Once"], max_new_tokens=9, seed=3)[0] + "\n"
    assert err.startswith("9 tokens in ")


def test_several_are_objects_of_json_in_the_order_they_end(path, capsys) -> None:
    options = ["--count", "2", "--json", "--max-new-tokens", "6"]
    generate([path, "--prompt", "one", "a second", *options])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    texts = expected(["one", "one", "a second", "a second"], max_new_tokens=6)
    assert {line["row"]: line["text"] for line in lines} == dict(enumerate(texts))
    assert [line["prompt_tokens"] for line in lines] == [4, 4, 9, 9]
    assert {line["reason"] for line in lines} == {"length"}


def test_a_file_is_continued_from_its_saved_state(path, tmp_path, capsys) -> None:
    (tmp_path / "text").write_text("a text, ", encoding="utf-8")
    state = str(tmp_path / "state")
    greedy = ["--temperature", "0"]
    first = ["--file", str(tmp_path / "text"), "--save-state", state, "--max-new-tokens", "1"]
    generate([path, *first, *greedy])
    start = capsys.readouterr().out.removesuffix("\n")
    generate([path, "--prompt", " on", "--state", state, "--max-new-tokens", "5", *greedy])
    text = capsys.readouterr().out
    (done,) = generate_texts(
        MODEL, ByteTokenizer(), ["a text, "], SamplingConfig(temperature=0, max_new_tokens=1)
    )
    whole = [*b"a text, ", *done.tokens, *b" on"]
    assert start == "a text, " + done.text
    assert text == " on" + expected([whole], temperature=0, max_new_tokens=5)[0] + "\n"


def test_a_cache_is_written_and_used_again(path, tmp_path, capsys) -> None:
    words = [
        path,
        "--prompt",
        "a",
        "b",
        "--cache",
        str(tmp_path / "cache"),
        "--max-new-tokens",
        "4",
    ]
    outputs = []
    for _ in range(2):
        generate(words)
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert (tmp_path / "cache").stat().st_size > 2 * 4 * MODEL.layout.size


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--file", "{empty}"], "is empty; expected the text to continue"),
        (["--file", "{binary}"], "is not UTF-8 at byte 1"),
        (["--count", "0"], "--count is 0"),
        (["--prompt", "a", "b", "--save-state", "x"], "--save-state is for one continuation"),
        (["--state", "{chat}"], "kind 'chat'"),
    ],
)
def test_what_cannot_be_continued_is_refused(path, tmp_path, words, message) -> None:
    save_state(tmp_path / "chat", MODEL.initial_state(1), MODEL, kind="chat")
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"a\xff")
    files = {name: tmp_path / name for name in ("empty", "binary", "chat")}
    with pytest.raises(ConfigError, match=message):
        generate([path, *(word.format(**files) for word in words)])


@pytest.mark.parametrize("option", ["--save-state", "--cache"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, option) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "x"):
        with pytest.raises(RunError, match=rf"cannot write {place}: .* \({option}\)"):
            generate(["no-such-model", option, str(place)])


def test_a_model_whose_tokenizer_nothing_tells_needs_one(tmp_path) -> None:
    save_model(random_model(small_config()), tmp_path / "odd")
    with pytest.raises(ConfigError, match="37 token ids, which tells no tokenizer"):
        generate([str(tmp_path / "odd")])
    with pytest.raises(ValueError, match="bytes tokenizer has 257 ids, the model 37"):
        generate([str(tmp_path / "odd"), "--tokenizer", "bytes"])


def test_a_training_run_names_model_and_tokenizer(tmp_path, capsys) -> None:
    run = tmp_path / "run"
    save_model(random_model(small_config(vocab_size=300, layers=1)), run / "model")
    (run / "config.yaml").write_text("data:\n  tokenizer: bytes\n", encoding="utf-8")
    for named in (run, run / "model"):
        generate([str(named), "--prompt", "hi", "--max-new-tokens", "3"])
        assert capsys.readouterr().out.startswith("hi")


def run_chat(monkeypatch, capsys, words: list[str], script: str) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO(script))
    chat([*words, "--temperature", "0", "--max-new-tokens", "8"])
    return capsys.readouterr().out


def test_a_saved_conversation_goes_on_in_another_process(
    path, tmp_path, monkeypatch, capsys
) -> None:
    files = [tmp_path / name for name in ("early", "late", "resumed", "fresh")]
    early, late, resumed, fresh = files
    run_chat(monkeypatch, capsys, [path], f"hi\n/save {early}\nhow?\n/save {late}\n")
    run_chat(monkeypatch, capsys, [path, "--state", str(early)], f"how?\n/save {resumed}\n")
    run_chat(monkeypatch, capsys, [path], f"how?\n/save {fresh}\n")
    states = {file: load_state(file, MODEL).state.flat for file in files}
    assert torch.equal(states[resumed], states[late])
    assert not torch.equal(states[fresh], states[late])


@pytest.mark.parametrize(
    ("options", "before", "opening"),
    [
        ([], "", ""),
        (["--system", "Be kind."], "System: Be kind.\n\n", ""),
        (["--think", "on"], "", " <think"),
    ],
)
def test_what_was_said_is_what_was_read(
    path, tmp_path, monkeypatch, capsys, options, before, opening
) -> None:
    talk = tmp_path / "talk"
    out = run_chat(monkeypatch, capsys, [path, *options], f"hi\n/save {talk}\n")
    reply = out.removeprefix("User: hi\nAssistant:").split("\n\nUser: /save")[0]
    assert reply.startswith(opening)
    transcript = f"{before}User: hi\n\nAssistant:{reply.rstrip()}\n\n"
    expected = MODEL(torch.tensor([[256, *transcript.encode()]]))[1]
    found = load_state(talk, MODEL).state
    assert_close("state", found.flat, expected.flat, NORMALISED[torch.float32])


class Parrot:
    """Says what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, message):
        self.heard.append(message)
        if message == "stop":
            yield " as I was"
            raise KeyboardInterrupt
        yield " "
        yield message

    def undo(self):
        if not self.heard:
            raise ValueError("there is no turn to take back")
        return self.heard.pop()

    def retry(self):
        return self.say(self.undo())

    def reset(self):
        self.heard.clear()

    def save(self, path):
        raise OSError(28, "No space left on device", path)


def test_a_scripted_conversation_is_answered_line_by_line() -> None:
    script = (
        "/undo\nhello\n\n/retry\nstop\n/undo\n/reset\n/undo\n/save\n/save x\n/dance\n/quit\nno\n"
    )
    target = io.StringIO()
    converse(Parrot(), io.StringIO(script), target)
    assert target.getvalue() == (
        "User: /undo\n(there is no turn to take back)\n"
        "User: hello\nAssistant: hello\n\n"
        "User: \n"
        "User: /retry\nAssistant: hello\n\n"
        "User: stop\nAssistant: as I was (interrupted)\n\n"
        "User: /undo\n(took back: stop)\n"
        "User: /reset\n(forgot everything)\n"
        "User: /undo\n(there is no turn to take back)\n"
        "User: /save\n(/save needs a file: /save FILE)\n"
        "User: /save x\n([Errno 28] No space left on device: 'x')\n"
        "User: /dance\n(unknown command /dance; /help lists them)\n"
        "User: /quit\n"
    )


@pytest.mark.parametrize("command", [generate, chat])
def test_help_shows_examples_and_every_way_to_sample(command, capsys) -> None:
    with pytest.raises(SystemExit):
        command(["--help"])
    text = capsys.readouterr().out
    assert "examples:" in text
    for option in ("--temperature", "--top-k", "--top-p", "--min-p", "--repetition-penalty"):
        assert option in text
