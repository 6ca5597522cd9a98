"""Conversations: the state is that of the transcript, and turns can be taken back."""

from __future__ import annotations

import pytest
import torch
from language_cases import random_model, small_config
from tolerances import NORMALISED, assert_close

from doxastic.language import chat as chat_module
from doxastic.language.chat import Chat, clean
from doxastic.language.generation import Piece
from doxastic.language.sampling import SamplingConfig
from doxastic.language.state_files import save_state
from doxastic.language.tokenizers import ByteTokenizer

TOLERANCE = NORMALISED[torch.float32]
BYTES = ByteTokenizer()


@pytest.fixture(scope="module")
def model():
    return random_model(small_config(vocab_size=257, layers=2))


class Script:
    """Speaks in the model's place, and keeps what it was given to read."""

    def __init__(self) -> None:
        self.replies: list[str] = []
        self.prompts: list[bytes] = []
        self.streams: list[int] = []

    def decode(self, model, tokenizer, features, state, sampling, sequences, streams):
        assert "\n\nUser:" in sampling.stop
        self.prompts.append(tokenizer.decode_bytes(sequences[0]))
        self.streams += streams
        for letter in self.replies.pop(0):
            yield Piece(0, letter, None)


@pytest.fixture
def script(monkeypatch) -> Script:
    script = Script()
    monkeypatch.setattr(chat_module, "decode", script.decode)
    return script


def assert_state_is_of(chat: Chat, model, transcript: str) -> None:
    ids = torch.tensor([[256, *transcript.encode()]])
    assert_close("state", chat.state.flat, model(ids)[1].flat, TOLERANCE)


def test_the_state_is_that_of_the_transcript(model, script) -> None:
    chat = Chat(model, BYTES, system="Be\n\n\nbrief.")
    script.replies = [" Hello.", " Two\n"]
    assert "".join(chat.say("hi\r\n\r\nthere ")) == " Hello."
    assert "".join(chat.say("1+1?")) == " Two\n"
    assert script.prompts == [
        b"System: Be\nbrief.\n\nUser: hi\nthere\n\nAssistant:",
        b"User: 1+1?\n\nAssistant:",
    ]
    assert_state_is_of(
        chat,
        model,
        "System: Be\nbrief.\n\nUser: hi\nthere\n\nAssistant: Hello.\n\n"
        "User: 1+1?\n\nAssistant: Two\n\n",
    )


@pytest.mark.parametrize(
    ("think", "hint", "opening"),
    [
        ("on", "", " <think"),
        ("brief", " (think a bit)", " <think"),
        ("long", " (think a lot)", " <think"),
        ("skip", "", " <think>\n</think"),
    ],
)
def test_thoughts_are_opened_as_the_model_was_trained(model, script, think, hint, opening) -> None:
    chat = Chat(model, BYTES, think=think)
    script.replies = [">yes"]
    assert "".join(chat.say("hi")) == f"{opening}>yes"
    assert script.prompts == [f"User: hi{hint}\n\nAssistant:{opening}".encode()]
    assert_state_is_of(chat, model, f"User: hi{hint}\n\nAssistant:{opening}>yes\n\n")


def test_a_reply_that_nobody_reads_to_the_end_is_history(model, script) -> None:
    chat = Chat(model, BYTES)
    script.replies = ["abcdef"]
    reply = chat.say("hi")
    assert next(reply) + next(reply) == "ab"
    reply.close()
    assert_state_is_of(chat, model, "User: hi\n\nAssistant:ab\n\n")


def test_undo_and_retry_go_back_before_the_turn(model, script) -> None:
    chat = Chat(model, BYTES)
    script.replies = ["one", "two", "three"]
    list(chat.say("a"))
    list(chat.say("b"))
    assert "".join(chat.retry()) == "three"
    assert_state_is_of(chat, model, "User: a\n\nAssistant:one\n\nUser: b\n\nAssistant:three\n\n")
    # Another random stream each time: a retry is another reply.
    assert script.streams == [1, 2, 3]
    assert (chat.undo(), chat.undo(), chat.state) == ("b", "a", None)
    with pytest.raises(ValueError, match="no turn to take back"):
        chat.undo()


def test_only_the_last_turns_are_kept(model, script) -> None:
    chat = Chat(model, BYTES, undo_turns=2)
    script.replies = ["x"] * 3
    for message in "abc":
        list(chat.say(message))
    assert (chat.undo(), chat.undo()) == ("c", "b")
    with pytest.raises(ValueError, match="the last 2 are kept"):
        chat.undo()


def test_reset_begins_a_new_conversation(model, script) -> None:
    chat = Chat(model, BYTES, system="S")
    script.replies = ["x", "y"]
    list(chat.say("a"))
    chat.reset()
    list(chat.say("b"))
    assert_state_is_of(chat, model, "System: S\n\nUser: b\n\nAssistant:y\n\n")


def test_a_saved_conversation_goes_on_where_it_was(model, tmp_path) -> None:
    sampling = SamplingConfig(temperature=0, max_new_tokens=6)
    chat, loaded = Chat(model, BYTES, sampling), Chat(model, BYTES, sampling)
    list(chat.say("hi"))
    chat.save(tmp_path / "talk")
    loaded.load(tmp_path / "talk")
    assert "".join(loaded.say("and?")) == "".join(chat.say("and?"))
    assert torch.equal(loaded.state.flat, chat.state.flat)


def test_a_tuned_state_is_where_every_conversation_begins(model, script) -> None:
    start = model(torch.tensor([[7, 8, 9]]))[1]
    chat = Chat(model, BYTES, state=start)
    script.replies = ["x", "x"]
    ids = torch.tensor([[256, *b"User: a\n\nAssistant:x\n\n"]])
    for _ in range(2):
        list(chat.say("a"))
        assert_close("state", chat.state.flat, model(ids, start)[1].flat, TOLERANCE)
        chat.reset()


def test_what_cannot_be_said_saved_or_loaded_is_refused(model, tmp_path) -> None:
    chat = Chat(model, BYTES)
    with pytest.raises(ValueError, match="the message is empty"):
        list(chat.say(" \n "))
    with pytest.raises(ValueError, match="nothing was said yet"):
        chat.save(tmp_path / "talk")
    save_state(tmp_path / "text", model.initial_state(1), model, kind="text")
    with pytest.raises(ValueError, match="kind 'text'; expected a conversation"):
        chat.load(tmp_path / "text")
    with pytest.raises(ValueError, match="think is 'hard'; expected one of off, on"):
        Chat(model, BYTES, think="hard")


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\n\n\n\nb\n", "a\nb"),
        ("a\r\n\r\nb", "a\nb"),
        ("a\n  \n\nb", "a\nb"),
        ("  a\nb ", "a\nb"),
    ],
)
def test_no_empty_line_is_left_in_a_message(text, cleaned) -> None:
    assert clean(text) == cleaned
