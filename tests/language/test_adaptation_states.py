"""Tuned initial states and state offsets: what learns, what stays, and what they compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from language_cases import assert_same_tensors, random_model, small_config
from tolerances import SAME, STACKED, assert_close

from doxastic.language.adaptation import InitialState, add_state_offset, remove_state_offset
from doxastic.language.batches import DocumentRows, PackedDocuments
from doxastic.language.generation import generate
from doxastic.language.sampling import SamplingConfig
from doxastic.language.state_files import load_state
from doxastic.language.token_store import TokenStore
from doxastic.language.tokenizers import load_tokenizer
from doxastic.language.trainer import Trainer
from doxastic.language.training_config import TrainingConfig
from doxastic.memory.state import CoreState


def _model(vocab_size: int = 257):
    return random_model(small_config(vocab_size=vocab_size))


def _store() -> TokenStore:
    """Return documents of one word over and over, each of another length."""
    word = np.frombuffer(b"marmalade ", np.uint8)
    documents = [np.tile(word, 4)[: 12 + number] for number in range(12)]
    return TokenStore.from_documents(documents, vocab_size=257, end_of_document=256)


def _trainer(model, start=None, source=DocumentRows, **changes) -> Trainer:
    settings = {"learning_rate": 0.1, "final_learning_rate": 0.01, "clip_norm": 0.0, **changes}
    config = TrainingConfig(updates=30, warmup_updates=1, weight_decay=0.1, **settings)
    return Trainer(model, source(_store(), 4, 32), config, start_state=start)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(257, (3, 9), generator=torch.Generator().manual_seed(0))


def test_a_new_initial_state_is_zero_and_float32_whatever_the_model():
    model = _model().bfloat16()
    state = InitialState(model, shifts=True)(2)
    assert (state.batch_size, state.flat.dtype) == (2, torch.float32)
    assert state.layout == model.layout and not state.flat.any()


def test_every_row_begins_with_the_parameters_and_their_gradients_add_up(tokens):
    model = _model()
    start = InitialState(model, shifts=True)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    state = start(3)
    assert torch.equal(state["2.wkv"][1], start.wkv[2])
    assert torch.equal(state["1.time_shift"][0], start.shifts[1, 0])
    assert torch.equal(state["1.channel_shift"][2], start.shifts[1, 1])
    model(tokens, state)[0].square().mean().backward()
    given = CoreState(model.layout, state.flat.detach().clone().requires_grad_())
    model(tokens, given)[0].square().mean().backward()
    gradient = model.layout.split(given.flat.grad.sum(0, keepdim=True))
    for layer in range(3):
        expected = gradient[f"{layer}.wkv"][0]
        assert_close(f"{layer}.wkv", start.wkv.grad[layer], expected, STACKED[torch.float32])
        expected = gradient[f"{layer}.channel_shift"][0]
        assert_close("shift", start.shifts.grad[layer, 1], expected, STACKED[torch.float32])


def test_without_shifts_only_the_matrix_states_learn():
    start = InitialState(_model())
    assert [name for name, _ in start.named_parameters()] == ["wkv"]
    torch.nn.init.ones_(start.wkv)
    state = start(1)
    assert not state["0.time_shift"].any() and state["0.wkv"].all()


def test_training_a_state_lowers_the_loss_and_leaves_the_base_bit_for_bit():
    model = _model().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = InitialState(model)
    trainer = _trainer(model, start)
    assert trainer.trained == ["start_state.wkv"]
    losses = [trainer.update()["loss"] for _ in range(30)]
    assert losses[-1] < losses[0] - 0.5
    assert_same_tensors(model.state_dict(), before)


def test_training_a_state_refuses_rows_in_which_documents_begin():
    model = _model().requires_grad_(False)
    trainer = _trainer(model, InitialState(model), source=PackedDocuments)
    with pytest.raises(ValueError, match="use rows of one document each"):
        trainer.update()


def test_a_saved_state_is_what_generation_starts_from(tmp_path):
    model, tokenizer = _model().requires_grad_(False), load_tokenizer("bytes")
    start = InitialState(model, shifts=True)
    torch.nn.init.normal_(start.wkv)
    torch.nn.init.normal_(start.shifts)
    start.save(tmp_path / "state", model)
    file = load_state(tmp_path / "state", model)
    assert file.kind == "initial" and torch.equal(file.state.flat, start(1).flat)
    assert torch.equal(CoreState.load(tmp_path / "state", model.layout).flat, start(1).flat)
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=8)
    (tuned,) = generate(model, tokenizer, ["a"], sampling, state=file.state, opens=True)
    (plain,) = generate(model, tokenizer, ["a"], sampling)
    assert tuned.tokens != plain.tokens
    expected, _ = model(torch.tensor([[256, ord("a")]]), start(1))
    assert tuned.tokens[0] == int(expected[0, -1].argmax())


def test_a_state_is_refused_by_any_other_model(tmp_path):
    model = _model()
    InitialState(model).save(tmp_path / "state", model)
    torch.nn.init.normal_(model.head.weight)
    with pytest.raises(ValueError, match="a state of another model"):
        load_state(tmp_path / "state", model)


def test_a_state_can_be_tuned_on_from_a_file(tmp_path):
    model = _model()
    first, second = InitialState(model, shifts=True), InitialState(model, shifts=True)
    torch.nn.init.normal_(first.wkv)
    torch.nn.init.normal_(first.shifts)
    second.load(first(1))
    assert_same_tensors(second.state_dict(), first.state_dict())
    with pytest.raises(ValueError, match=r"shift' of the state is not zero.*shifts=True"):
        InitialState(model).load(first(1))
    with pytest.raises(ValueError, match="state has 2 rows"):
        second.load(first(2))


def test_an_offset_of_zero_changes_nothing_and_is_all_that_learns(tokens):
    model = _model()
    before = model(tokens)[0]
    add_state_offset(model)
    assert_close("logits", model(tokens)[0], before, SAME[torch.float32])
    learns = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learns == [f"blocks.{layer}.att.state_offset" for layer in range(3)]
    with pytest.raises(ValueError, match="has state offsets already"):
        add_state_offset(model)


def test_training_offsets_lowers_the_loss_and_removing_them_gives_the_base_back(tokens):
    model = _model()
    before, tensors = model(tokens)[0], {k: v.clone() for k, v in model.state_dict().items()}
    add_state_offset(model)
    trainer = _trainer(model, source=PackedDocuments, learning_rate=0.03)
    losses = [trainer.update()["loss"] for _ in range(30)]
    assert losses[-1] < losses[0] - 0.5
    assert not torch.allclose(model(tokens)[0], before)
    remove_state_offset(model)
    assert_same_tensors(model.state_dict(), tensors)
    assert torch.equal(model(tokens)[0], before)


def test_a_model_with_offsets_steps_as_it_reads(tokens):
    model = _model()
    add_state_offset(model)
    for block in model.blocks:
        torch.nn.init.normal_(block.att.state_offset)
    state = model(tokens[:, :-1])[1]
    logits, _ = model.step(tokens[:, -1], state)
    assert_close("logits", logits, model(tokens)[0][:, -1], STACKED[torch.float32])
