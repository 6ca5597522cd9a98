"""The adapter answers the harness's requests as the model scores and writes the texts alone."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import numpy as np
import pytest
import torch
from language_cases import random_model, small_config

from doxastic.language.evaluation import score_documents
from doxastic.language.generation import generate
from doxastic.language.harness import HarnessAdapter, harness_model, sampling_from
from doxastic.language.sampling import SamplingConfig
from doxastic.language.tokenizers import ByteTokenizer

BYTES = ByteTokenizer()


class Request(NamedTuple):
    args: tuple


@pytest.fixture(scope="module")
def model():
    return random_model(small_config(vocab_size=257, layers=2))


def expected_likelihood(model, context: bytes, continuation: bytes) -> tuple[float, bool]:
    ids = torch.tensor([[256, *context, *continuation]])
    log_probability = model(ids)[0].detach().double().log_softmax(-1)[0, :-1]
    own = log_probability[-len(continuation) :]
    targets = ids[0, -len(continuation) :]
    return (
        own.gather(1, targets[:, None]).sum().item(),
        torch.equal(own.argmax(-1), targets),
    )


PAIRS = [
    ("Is it so?", " yes"),
    ("Is it so?", " no, it is not"),
    ("", "from nothing"),
    ("another context, longer than the first one", "!"),
    ("Is it so?", " perhaps"),
    ("ends in white space \n", "word"),
]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_continuation_scores_as_the_whole_text_read_at_once(model, batch_size) -> None:
    found = HarnessAdapter(model, BYTES, batch_size).loglikelihood([Request(p) for p in PAIRS])
    for pair, (likelihood, greedy) in zip(PAIRS, found, strict=True):
        # White space at the end of a context counts to the continuation.
        bare = pair[0].rstrip()
        rest = pair[0][len(bare) :] + pair[1]
        expected = expected_likelihood(model, bare.encode(), rest.encode())
        assert likelihood == pytest.approx(expected[0], rel=1e-5)
        assert greedy is expected[1]


def test_the_greedy_continuation_is_known_as_greedy(model) -> None:
    greedy = SamplingConfig(temperature=0, max_new_tokens=1)
    contexts = [chr(letter) for letter in range(97, 123)]
    written = generate(model, BYTES, contexts, greedy)
    # One whose next byte is a character of its own, so that it can be asked for.
    context, text = next(
        (context, done.text)
        for context, done in zip(contexts, written, strict=True)
        if done.text.isascii() and done.text.strip()
    )
    other = "a" if text != "a" else "b"
    requests = [Request((context, text)), Request((context, other)), Request((context, text + "é"))]
    found = HarnessAdapter(model, BYTES).loglikelihood(requests)
    assert [is_greedy for _, is_greedy in found] == [True, False, False]


def test_a_context_that_continuations_share_is_read_once(model, monkeypatch) -> None:
    read = []
    features = type(model).features

    def watch(self, tokens, *others):
        read.append(tokens.numel())
        return features(self, tokens, *others)

    monkeypatch.setattr(type(model), "features", watch)
    context = "a" * 100
    requests = [Request((context, letter)) for letter in "abcd"]
    HarnessAdapter(model, BYTES).loglikelihood(requests)
    assert sum(read) == 101


def test_whole_texts_score_as_in_evaluation(model) -> None:
    texts = ["one", "and another text", ""]
    found = HarnessAdapter(model, BYTES).loglikelihood_rolling([Request((t,)) for t in texts])
    documents = [np.array([256, *text.encode()]) for text in texts]
    assert found == pytest.approx(-score_documents(model, documents).nats, rel=1e-6)
    assert HarnessAdapter(model, BYTES).loglikelihood_rolling([]) == []


@pytest.mark.parametrize("batch_size", [1, 16])
def test_texts_are_written_up_to_their_stop_strings(model, batch_size) -> None:
    greedy = {"until": ["\n", "b"], "max_gen_toks": 12}
    drawn = {"until": "\n", "max_gen_toks": 5, "do_sample": True, "temperature": 0.9}
    requests = [Request(("one", greedy)), Request(("a longer two", drawn)), Request(("c", greedy))]
    found = HarnessAdapter(model, BYTES, batch_size).generate_until(requests)
    for number, (context, settings) in enumerate(request.args for request in requests):
        sampling = sampling_from(settings)
        (alone,) = generate(model, BYTES, [context], sampling, streams=[number])
        assert found[number] == alone.text


def test_settings_of_a_task_are_greedy_unless_it_asks_for_samples() -> None:
    assert sampling_from({"until": ["\n"], "temperature": 0.7}) == SamplingConfig(
        temperature=0, stop=("\n",)
    )
    asked = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 3}
    assert sampling_from(asked) == SamplingConfig(temperature=0.7, top_p=0.9, max_new_tokens=3)


def test_a_continuation_without_a_token_is_refused(model) -> None:
    with pytest.raises(ValueError, match="adds no token to its context"):
        HarnessAdapter(model, BYTES).loglikelihood([Request(("a", ""))])


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed here"
)
def test_without_the_harness_the_error_names_what_to_install(model) -> None:
    with pytest.raises(ImportError, match=r"pip install 'doxastic\[lm-eval\]'"):
        harness_model(model, BYTES)


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the harness needs the extra lm-eval"
)
def test_the_harness_takes_the_adapter_as_one_of_its_models(model) -> None:
    from lm_eval.api.model import LM

    adapter = harness_model(model, BYTES)
    assert isinstance(adapter, LM)
    assert (adapter.rank, adapter.world_size) == (0, 1)
    assert len(adapter.loglikelihood([Request(("a", "b"))])) == 1
