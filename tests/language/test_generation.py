"""Continuations: a row is what it would be alone, its text appears whole, its end has a reason."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from language_cases import random_model, small_config
from tolerances import NORMALISED, assert_close

from doxastic.language.generation import decode, generate, stream
from doxastic.language.prompt_cache import PromptCache
from doxastic.language.sampling import SamplingConfig
from doxastic.language.tokenizers import ByteTokenizer
from doxastic.language.tokenizers.base import Tokenizer
from doxastic.memory.state import CoreState, StateLayout

TOLERANCE = NORMALISED[torch.float32]
BYTES = ByteTokenizer()
PROMPTS = ["", "a", "the quick brown fox jumps over the lazy dog", "né"]


@pytest.fixture(scope="module")
def model():
    return random_model(small_config(vocab_size=257, layers=2))


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"top_k": 30, "repetition_penalty": 1.2, "presence_penalty": 0.3},
    ],
)
def test_a_batch_of_prompts_of_different_lengths_equals_each_alone(model, sampling) -> None:
    config = SamplingConfig(max_new_tokens=12, seed=3, **sampling)
    together = generate(model, BYTES, PROMPTS, config)
    for row, prompt in enumerate(PROMPTS):
        (alone,) = generate(model, BYTES, [prompt], config, streams=[row])
        assert (alone.tokens, alone.text) == (together[row].tokens, together[row].text)
        assert_close("state", together[row].state.flat, alone.state.flat, TOLERANCE)


def test_the_state_is_that_of_having_read_prompt_and_tokens(model) -> None:
    written = generate(model, BYTES, PROMPTS, SamplingConfig(max_new_tokens=9))
    for prompt, done in zip(PROMPTS, written, strict=True):
        read = [256, *BYTES.encode(prompt)]
        assert (done.reason, len(done.tokens), done.prompt_tokens) == ("length", 9, len(read))
        expected = model(torch.tensor([[*read, *done.tokens]]))[1]
        assert_close(f"state after {prompt!r}", done.state.flat, expected.flat, TOLERANCE)


def test_going_on_from_a_state_equals_reading_all_at_once(model) -> None:
    greedy = SamplingConfig(temperature=0, max_new_tokens=6)
    (first,) = generate(model, BYTES, ["one two"], greedy)
    (second,) = generate(model, BYTES, [" three"], greedy, state=first.state)
    (whole,) = generate(model, BYTES, [[*b"one two", *first.tokens, *b" three"]], greedy)
    assert second.tokens == whole.tokens
    assert (second.prompt_tokens, whole.prompt_tokens) == (6, 20)


def test_a_tuned_initial_state_opens_a_document(model) -> None:
    random = torch.Generator().manual_seed(0)
    start = CoreState(model.layout, torch.randn(1, model.layout.size, generator=random))
    greedy = SamplingConfig(temperature=0, max_new_tokens=5)
    found = generate(model, BYTES, ["a", "bc"], greedy, state=start, opens=True)
    by_ids = generate(model, BYTES, [[256, 97], [256, 98, 99]], greedy, state=start)
    assert [g.tokens for g in found] == [g.tokens for g in by_ids]
    assert [g.prompt_tokens for g in found] == [2, 3]


def test_pieces_are_the_text_and_leave_the_callers_gradients_alone(model) -> None:
    pieces: dict[int, str] = {}
    config, last = SamplingConfig(max_new_tokens=20), {}
    for piece in stream(model, BYTES, PROMPTS, config):
        assert torch.is_grad_enabled()
        pieces[piece.row] = pieces.get(piece.row, "") + piece.text
        if piece.generation:
            assert piece.row not in last
            last[piece.row] = piece.generation
    assert {row: g.text for row, g in last.items()} == pieces
    assert [BYTES.decode(last[row].tokens) for row in range(4)] == [pieces[row] for row in range(4)]
    assert not last[0].state.flat.requires_grad


LAYOUT = StateLayout({"row": (1,), "position": (1,)})


def scripted(*texts: bytes | list[int], **sampling):
    """Return the pieces of a model that writes the given bytes, one a row."""
    scripts = [[*text, 256] for text in texts]

    def logits(state: CoreState) -> torch.Tensor:
        rows = torch.full((state.batch_size, 257), -50.0)
        for row, (number, position) in enumerate(state.flat.int().tolist()):
            rows[row, scripts[number][min(position, len(scripts[number]) - 1)]] = 50.0
        return rows

    def step(tokens, state):
        after = CoreState(LAYOUT, state.flat + torch.tensor([0.0, 1.0]))
        return logits(after), after

    model = types.SimpleNamespace(
        config=types.SimpleNamespace(vocab_size=257), head=lambda features: features, step=step
    )
    state = CoreState(
        LAYOUT, torch.stack((torch.arange(float(len(texts))), torch.zeros(len(texts))), 1)
    )
    config = SamplingConfig(**{"max_new_tokens": 100, **sampling})
    sequences = [np.array([256])] * len(texts)
    return list(decode(model, BYTES, logits(state), state, config, sequences))


def summary(pieces, row: int = 0):
    own = [piece for piece in pieces if piece.row == row]
    return [piece.text for piece in own if piece.text], own[-1].generation


def test_a_character_appears_once_its_last_byte_is_there() -> None:
    texts, done = summary(scripted("aé€😀z".encode()))
    assert texts == ["a", "é", "€", "😀", "z"]
    assert (done.text, done.reason) == ("aé€😀z", "end_of_document")
    assert done.tokens == list("aé€😀z".encode())


@pytest.mark.parametrize(
    ("written", "stop", "text", "reason"),
    [
        (b"hello\n\nUser: x", ("\n\nUser:",), "hello", "stop"),
        (b"a\n\nUse b", ("\n\nUser:",), "a\n\nUse b", "end_of_document"),
        (b"aaab", ("aab",), "a", "stop"),
        (b"xabcd", ("abcde", "bc"), "xa", "stop"),
        (b"abab", ("abc", "ba"), "a", "stop"),
        ("né€!".encode(), ("€",), "né", "stop"),
        (b"stop", ("stop",), "", "stop"),
        (b"x\n", ("\n\n",), "x\n", "end_of_document"),
        (b"cut \xe2\x82", ("€",), "cut �", "end_of_document"),
    ],
)
def test_nothing_of_a_stop_string_is_ever_shown(written, stop, text, reason) -> None:
    texts, done = summary(scripted(written, stop=stop))
    assert ("".join(texts), done.text, done.reason) == (text, text, reason)


def test_text_is_held_back_no_longer_than_it_may_be_a_stop_string() -> None:
    texts, _ = summary(scripted(b"a\nb\n\nc", stop=("\n\n\n",)))
    assert texts == ["a", "\nb", "\n\nc"]


def test_the_length_ends_a_row_with_all_its_text() -> None:
    texts, done = summary(scripted("ab\n\n€".encode(), max_new_tokens=4, stop=("\n\n\n",)))
    assert ("".join(texts), done.text, done.reason) == ("ab\n\n", "ab\n\n", "length")
    _, done = summary(scripted("ab€".encode(), max_new_tokens=3))
    assert (done.text, done.tokens) == ("ab�", [97, 98, 0xE2])


def test_rows_that_end_leave_the_others_as_they_were() -> None:
    pieces = scripted(b"one", b"", b"three\nfour", b"a longer text", stop=("\n",), max_new_tokens=8)
    ends = [summary(pieces, row)[1] for row in range(4)]
    assert [end.text for end in ends] == ["one", "", "three", "a longer"]
    assert [end.reason for end in ends] == ["end_of_document", "end_of_document", "stop", "length"]
    # Each state has read the row's own tokens; one that ended a document, not its end.
    assert [end.state["position"].item() for end in ends] == [3, 0, 6, 8]


class Sparse(Tokenizer):
    """Four ids, of which 1 stands for no token."""

    def __init__(self) -> None:
        super().__init__("sparse", "sparse", [b"a", None, b"c", b""], 3, "sparse")

    def encode(self, text):
        return np.array([{"a": 0, "c": 2}[letter] for letter in text], np.int64)

    def encode_stream(self, pieces):
        return map(self.encode, pieces)


def test_ids_that_stand_for_no_token_are_never_chosen() -> None:
    model = random_model(small_config())
    with torch.no_grad():
        model.head.weight[3] = 0
    written = generate(model, Sparse(), ["ac"] * 8, SamplingConfig(max_new_tokens=30))
    assert {token for g in written for token in g.tokens} == {0, 2}


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ("text", TypeError, r"Write \[prompt\]"),
        ([], ValueError, "no prompts"),
        ([[1, 300]], ValueError, "token id 300; expected 0 to 256"),
        ([[0.5]], ValueError, "float64; expected a text, or integer ids"),
        ([[[1]]], ValueError, "expected a text, or integer ids"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(model, prompts, error, message) -> None:
    with pytest.raises(error, match=message):
        stream(model, BYTES, prompts)


def test_an_empty_prompt_cannot_continue_a_state(model) -> None:
    with pytest.raises(ValueError, match="prompt 1 is empty and continues a state"):
        generate(model, BYTES, ["a", ""], state=model.initial_state(1))


def test_what_belongs_to_another_model_is_refused(model) -> None:
    small = random_model(small_config())
    with pytest.raises(ValueError, match="bytes tokenizer has 257 ids, the model 37"):
        generate(small, BYTES, ["a"])
    with pytest.raises(ValueError, match="a model of other sizes"):
        generate(model, BYTES, ["a"], state=small.initial_state(1))
    with pytest.raises(ValueError, match="the prompt cache is another model's"):
        generate(model, BYTES, ["a"], cache=PromptCache(small))
    with pytest.raises(ValueError, match="cache and state are both given"):
        generate(model, BYTES, ["a"], cache=PromptCache(model), state=model.initial_state(1))


@pytest.mark.parametrize("config", [{"temperature": 0}, {}, {"top_p": 0.5}, {"top_k": 3}])
@pytest.mark.parametrize("place", ["blocks.1.ffn.value.weight", "head.weight"])
def test_a_model_that_is_broken_says_so(config, place) -> None:
    broken = random_model(small_config(vocab_size=257))
    with torch.no_grad():
        # In the head a single logit is spoilt.
        broken.get_parameter(place)[5, 0] = torch.nan
    with pytest.raises(ValueError, match="logits are not finite"):
        generate(broken, BYTES, ["ab"], SamplingConfig(**config))
