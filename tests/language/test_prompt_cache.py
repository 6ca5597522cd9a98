"""States of prompts: found, forked, kept within bounds, and of one model alone."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from language_cases import random_model, small_config
from tolerances import NORMALISED, assert_close

from doxastic.language.batches import RandomWindows
from doxastic.language.formats.files import read_safetensors
from doxastic.language.formats.replacing import write_safetensors
from doxastic.language.generation import generate
from doxastic.language.prefill import prefill
from doxastic.language.prompt_cache import PromptCache
from doxastic.language.sampling import SamplingConfig
from doxastic.language.state_files import load_state, save_state
from doxastic.language.token_store import TokenStore
from doxastic.language.tokenizers import ByteTokenizer
from doxastic.language.trainer import Trainer
from doxastic.language.training_config import TrainingConfig
from doxastic.memory.state import CoreState

TOLERANCE = NORMALISED[torch.float32]
RULES = list(range(1, 31))


@pytest.fixture
def model():
    return random_model(small_config())


def ids(*tokens: int) -> np.ndarray:
    return np.array([*RULES, *tokens])


def assert_equals_reading(cache: PromptCache, sequences: list[np.ndarray]) -> None:
    features, state = cache.prefill(sequences)
    expected, after = prefill(cache.model, sequences)
    assert_close("features", features, expected, TOLERANCE)
    assert_close("state", state.flat, after.flat, TOLERANCE)


def test_equal_prompts_are_read_once_and_longer_ones_go_on(model) -> None:
    cache = PromptCache(model)
    assert_equals_reading(cache, [ids(), ids(), ids(5, 6)])
    assert (cache.tokens_read, cache.tokens_found) == (32, 60)


def test_prompts_that_share_a_beginning_read_it_twice_at_most(model) -> None:
    cache = PromptCache(model)
    assert_equals_reading(cache, [ids(1), ids(2, 2), ids(3, 3, 3), ids(4)])
    # All of the first; of the second the rules again, where the two part; then what differs.
    assert cache.tokens_read == 31 + 32 + 3 + 1
    assert len(cache) == 5


def test_a_prompt_that_is_the_beginning_of_a_known_one_is_read(model) -> None:
    cache = PromptCache(model)
    assert_equals_reading(cache, [ids(1, 2, 3), ids(1)])
    assert (cache.tokens_read, len(cache)) == (33 + 31, 2)


def test_a_prompt_that_forks_leaves_the_state_it_forked_from(model) -> None:
    cache = PromptCache(model)
    before = cache.prefill([ids()])[1].flat.clone()
    cache.prefill([ids(7), ids(8)])
    assert torch.equal(cache.prefill([ids()])[1].flat, before)


def test_the_least_recently_used_go_first(model) -> None:
    cache = PromptCache(model)
    cache.prefill([np.array([1])])
    bounded = PromptCache(model, max_bytes=2 * cache.size_bytes)
    bounded.prefill([np.array([token]) for token in (1, 2, 1, 3)])
    assert len(bounded) == 2
    assert bounded.size_bytes <= 2 * cache.size_bytes
    bounded.prefill([np.array([1])])
    assert bounded.tokens_read == 3
    bounded.prefill([np.array([2])])
    assert bounded.tokens_read == 4


def test_nothing_is_found_once_the_weights_have_changed(model) -> None:
    cache = PromptCache(model)
    cache.prefill([ids()])
    with torch.no_grad():
        model.blocks[0].att.key.weight.mul_(1.5)
    assert_equals_reading(cache, [ids()])
    assert cache.tokens_found == 0


def test_nothing_is_found_once_a_trainer_has_made_an_update(model) -> None:
    model.requires_grad_(False)
    model.blocks[1].att.key.weight.requires_grad_(True)
    store = TokenStore.from_documents([RULES], vocab_size=37, end_of_document=0)
    config = TrainingConfig(updates=2, learning_rate=1e-2, warmup_updates=0)
    trainer = Trainer(model, RandomWindows(store, 2, 8), config)
    cache = PromptCache(model)
    cache.prefill([ids()])
    for _ in range(2):
        trainer.update()
        assert_equals_reading(cache, [ids()])
    assert cache.tokens_found == 0


def test_a_saved_cache_is_found_again(model, tmp_path) -> None:
    cache, loaded = PromptCache(model), PromptCache(random_model(small_config()))
    expected = cache.prefill([ids(1), ids(2, 2)])
    cache.save(tmp_path / "prompts")
    loaded.load(tmp_path / "prompts")
    features, state = loaded.prefill([ids(1), ids(2, 2)])
    assert torch.equal(features, expected[0])
    assert torch.equal(state.flat, expected[1].flat)
    assert loaded.tokens_read == 0


def test_generation_with_a_cache_equals_generation_without(tmp_path) -> None:
    model = random_model(small_config(vocab_size=257, layers=2))
    cache, tokenizer = PromptCache(model), ByteTokenizer()
    prompts = ["These are the rules of it. One", "These are the rules of it. Two"] * 2
    config = SamplingConfig(max_new_tokens=8)
    expected = generate(model, tokenizer, prompts, config)
    for _ in range(2):
        found = generate(model, tokenizer, prompts, config, cache=cache)
        assert [g.tokens for g in found] == [g.tokens for g in expected]
    assert cache.tokens_read < 100


@pytest.mark.parametrize(
    ("written", "read"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
)
def test_a_cache_of_one_precision_serves_the_same_model_in_another(tmp_path, written, read) -> None:
    rounded = random_model(small_config(vocab_size=257, layers=2)).bfloat16()
    cache = PromptCache(rounded.to(written))
    config = SamplingConfig(max_new_tokens=2)
    generate(rounded, ByteTokenizer(), ["the rules"], config, cache=cache)
    cache.save(tmp_path / "prompts")
    loaded = PromptCache(rounded.to(read))
    loaded.load(tmp_path / "prompts")
    prompts = ["the rules", "the rules of it"]
    found = generate(rounded, ByteTokenizer(), prompts, config, cache=loaded)
    assert [len(done.tokens) for done in found] == [2, 2]
    assert (loaded.tokens_found, loaded.tokens_read) == (2 * 10, 6)
    assert loaded.prefill([np.array([256, *b"the rules"])])[0].dtype == read


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"lengths": torch.tensor([30, 31, 31])}, r"lengths is \[3\] torch\.int64; .*\[2\]"),
        ({"lengths": torch.tensor([31.0, 32.0])}, r"prompts\.lengths is \[2\] torch\.float32"),
        ({"lengths": torch.tensor([31, 33])}, r"adds up to 64; expected 63, as many as"),
        ({"lengths": torch.tensor([0, 63])}, r"adds up to 63; .* no length below 1"),
        ({"tokens": torch.ones(63)}, r"prompts\.tokens is \[63\] torch\.float32; .*\[63\]"),
        ({"tokens": torch.ones(9, 7, dtype=torch.int64)}, r"prompts\.tokens is \[9, 7\]"),
        ({"features": torch.ones(1, 64)}, r"prompts\.features is \[1, 64\] .*\[2, 64\]"),
        ({"features": torch.ones(2, 63)}, r"prompts\.features is \[2, 63\] .*\[2, 64\]"),
    ],
)
def test_a_cache_whose_parts_disagree_is_refused(model, tmp_path, spoil, message) -> None:
    path, cache = tmp_path / "prompts", PromptCache(model)
    cache.prefill([ids(5), np.array([9, 9, *RULES])])
    cache.save(path)
    tensors, header = read_safetensors(path)
    write_safetensors(path, tensors | {f"prompts.{k}": t for k, t in spoil.items()}, header)
    loaded = PromptCache(model)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{message}.*is damaged"):
        loaded.load(path)
    assert len(loaded) == 0


def test_files_of_other_models_and_kinds_are_refused(model, tmp_path) -> None:
    path, cache = tmp_path / "prompts", PromptCache(model)
    with pytest.raises(ValueError, match="the prompt cache is empty"):
        cache.save(path)
    cache.prefill([ids()])
    cache.save(path)
    other = PromptCache(random_model(small_config(), seed=1))
    with pytest.raises(ValueError, match="holds a state of another model"):
        other.load(path)
    with pytest.raises(ValueError, match="holds a state of other sizes"):
        PromptCache(random_model(small_config(layers=1))).load(path)
    save_state(path, model.initial_state(1), model)
    with pytest.raises(ValueError, match="kind 'initial'; expected a saved prompt cache"):
        cache.load(path)
    save_state(path, model.initial_state(1), model, kind="prompts")
    with pytest.raises(
        ValueError, match=r"has no prompts\.features; expected a saved prompt cache"
    ):
        cache.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        cache.load(path)


@pytest.mark.parametrize("max_bytes", [0, -1])
def test_a_cache_that_could_hold_nothing_is_refused(model, max_bytes) -> None:
    with pytest.raises(ValueError, match="max_bytes is"):
        PromptCache(model, max_bytes)


def test_a_state_is_read_by_either_format_of_the_same_model(model, tmp_path) -> None:
    state = CoreState(model.layout, torch.randn(2, model.layout.size))
    save_state(tmp_path / "ours", state, model, kind="text", extra={"more": torch.ones(3)})
    assert torch.equal(CoreState.load(tmp_path / "ours", model.layout).flat, state.flat)
    file = load_state(tmp_path / "ours", model)
    assert torch.equal(file.state.flat, state.flat)
    assert (file.kind, file.extra["more"].tolist()) == ("text", [1, 1, 1])
    state.save(tmp_path / "plain")
    assert load_state(tmp_path / "plain", model).kind == "initial"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda part: None, r"the part 1\.wkv is missing; expected \[2, 4, 16, 16\] torch.float32"),
        (lambda part: part.half(), r"is \[2, 4, 16, 16\] torch.float16; expected"),
        (lambda part: part[:, :3].clone(), r"is \[2, 3, 16, 16\] torch.float32; expected"),
        (lambda part: part[:1].clone(), r"is \[1, 4, 16, 16\] torch.float32; expected \[2, 4, 16"),
    ],
)
def test_a_part_of_a_state_that_does_not_fit_is_named(model, tmp_path, spoil, message) -> None:
    path = tmp_path / "state"
    save_state(path, model.initial_state(2), model)
    tensors, header = read_safetensors(path)
    spoilt = spoil(tensors.pop("1.wkv"))
    write_safetensors(path, tensors if spoilt is None else {**tensors, "1.wkv": spoilt}, header)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*{message}"):
        load_state(path, model)


def test_the_identity_is_of_the_values_whatever_their_precision(model, tmp_path) -> None:
    half = random_model(small_config()).bfloat16()
    rounded = random_model(small_config()).bfloat16().float()
    save_state(tmp_path / "half", half.initial_state(1), half)
    load_state(tmp_path / "half", rounded)
    with pytest.raises(ValueError, match="of another model"):
        load_state(tmp_path / "half", model)
