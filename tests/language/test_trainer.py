"""The trainer: it learns, sums gradients rightly, carries states, and stops at a NaN."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tolerances import SAME, STACKED, assert_close
from torch import Tensor, nn

from doxastic.language.batches import Batch, DocumentRows, PackedDocuments, RandomWindows, Streams
from doxastic.language.config import LanguageConfig
from doxastic.language.model import LanguageModel
from doxastic.language.optimization import TrainingDiverged
from doxastic.language.token_store import TokenStore
from doxastic.language.trainer import Trainer
from doxastic.language.training_config import TrainingConfig
from doxastic.memory.state import CoreState

WORDS = ("the", "cat", "sat", "on", "mat", "and", "dog", "lay", "by", "door", "while", "rain")
VOCABULARY = 257


def _text(words=4000):
    chosen = np.random.default_rng(0).choice(WORDS, words)
    return np.frombuffer(" ".join(chosen).encode(), np.uint8)


def _store(*documents):
    return TokenStore.from_documents(
        documents or [_text()], vocab_size=VOCABULARY, end_of_document=256
    )


def _documents(count=12):
    random = np.random.default_rng(1)
    return [random.integers(0, 256, random.integers(5, 40)) for _ in range(count)]


def _model(dtype=torch.float32, **changes):
    torch.manual_seed(0)
    sizes = {"width": 32, "layers": 2, "head_size": 16, "low_ranks": (8, 8, 8, 8), **changes}
    model = LanguageModel(LanguageConfig(vocab_size=VOCABULARY, **sizes)).to(dtype)
    # As they are initialised, many parts are zero and have no gradient.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def _config(**changes):
    settings = {"updates": 50, "learning_rate": 1e-3, "final_learning_rate": 1e-4, **changes}
    return TrainingConfig(**settings)


class _Given:
    """Batches that a test made itself."""

    epoch = 0
    carried = False

    def __init__(self, *batches: Batch) -> None:
        self._batches, self._next = batches, 0

    def next_batch(self) -> Batch:
        self._next += 1
        return self._batches[(self._next - 1) % len(self._batches)]

    def state_dict(self):
        return {"next": self._next}

    def load_state_dict(self, state):
        self._next = state["next"]


def _batch(rows=4, length=6, carried=False):
    tokens = torch.randint(256, (rows, length + 1))
    return Batch(
        tokens[:, :-1],
        tokens[:, 1:],
        torch.zeros(rows, length, dtype=torch.bool),
        torch.rand(rows, length) < 0.7,
        carried,
    )


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.state_dict().weights.items()}


def _assert_same(ours, theirs, tolerance=0.0):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert_close(name, tensor, theirs[name], tolerance)


def test_it_learns_more_than_how_often_each_byte_comes():
    store = _store()
    train, held_out = store.split(0.1)
    torch.manual_seed(0)
    model = LanguageModel(LanguageConfig(vocab_size=VOCABULARY, width=32, layers=2, head_size=16))
    trainer = Trainer(
        model,
        RandomWindows(train, 8, 64),
        _config(updates=150, learning_rate=5e-3, evaluation_batches=8),
        held_out=RandomWindows(held_out, 8, 64, seed=1),
    )
    before = trainer.evaluate()
    for _ in range(150):
        measured = trainer.update()
    counts = np.bincount(_text(), minlength=256) / len(_text())
    unigram = -(counts[counts > 0] * np.log(counts[counts > 0])).sum()
    assert before == pytest.approx(math.log(VOCABULARY), abs=0.5)
    # Within a word every letter is known; what is left is which word comes.
    assert trainer.evaluate() < 0.5 * unigram
    assert measured["update"] == 150 and measured["tokens"] == 150 * 8 * 64


def test_accumulated_batches_equal_the_one_they_make_up():
    whole = _batch(rows=5)
    parts = [Batch(*(x[rows] for x in whole[:4]), False) for rows in (slice(0, 2), slice(2, 5))]
    assert parts[0].mask.sum() != parts[1].mask.sum()
    one = Trainer(_model(torch.float64), _Given(whole), _config())
    two = Trainer(_model(torch.float64), _Given(*parts), _config(accumulation=2))
    for _ in range(3):
        ours, theirs = one.update(), two.update()
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-12)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-12)
    # Rounding passes through Adam, which divides by the gradient itself.
    _assert_same(_weights(one), _weights(two), 1e-9)


def test_the_loss_is_the_mean_over_the_targets_that_count():
    batch = _batch()
    model = _model()
    trainer = Trainer(model, _Given(batch), _config())
    with torch.no_grad():
        logits, _ = model(batch.tokens)
    expected = nn.functional.cross_entropy(logits[batch.mask], batch.targets[batch.mask])
    assert trainer.update()["loss"] == pytest.approx(expected.item(), rel=SAME[torch.float32])


def _stream_gradient(length, windows, documents):
    """Return the first gradient of 2 rows over 24 tokens, in windows of a length."""
    model = _model(torch.float64)
    source = Streams(_store(*documents), 2, length)
    config = _config(backpropagate_windows=windows, accumulation=24 // (length * windows))
    trainer = Trainer(model, source, config)
    taken = {}
    trainer._optimizer.step = lambda factor, norm: taken.update(
        {name: p.grad.clone() for name, p in model.named_parameters()}
    )
    trainer.update()
    return taken


@pytest.mark.parametrize("documents", [[_text(60)], _documents()], ids=["one", "several"])
def test_the_gradient_through_carried_windows_is_that_of_one_long_window(documents):
    whole = _stream_gradient(24, 1, documents)
    # Carried states are float32, whatever the model.
    _assert_same(_stream_gradient(6, 4, documents), whole, STACKED[torch.float32])


def test_truncated_windows_carry_the_state_but_no_gradient():
    documents = [_text(60)]
    truncated, whole = _stream_gradient(6, 1, documents), _stream_gradient(24, 1, documents)
    # The head sees the same features: the state was carried.
    assert_close("head", truncated["head.weight"], whole["head.weight"], STACKED[torch.float32])
    different = (truncated["emb.weight"] - whole["emb.weight"]).norm()
    assert different > 1e-3 * whole["emb.weight"].norm()


def test_the_carried_state_is_that_of_reading_on():
    model = _model()
    source = Streams(_store(), 3, 8)
    trainer = Trainer(model, source, _config(learning_rate=1e-30, final_learning_rate=0.0))
    for _ in range(3):
        trainer.update()
    again, state = Streams(_store(), 3, 8), None
    with torch.no_grad():
        for _ in range(3):
            batch = again.next_batch()
            _, state = model.features(batch.tokens, state, batch.reset)
    carried = trainer.state_dict().tensors["carried"]
    assert carried.dtype is torch.float32
    assert_close("state", carried, state.flat, SAME[torch.float32])


class _Noise(nn.Module):
    """Draws from the global generator, as dropout does."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x) if self.training else x


def _noisy_model():
    model = _model()
    model.ln_out = nn.Sequential(model.ln_out, _Noise())
    return model


@pytest.mark.parametrize("source", [RandomWindows, PackedDocuments, DocumentRows, Streams])
def test_a_restored_trainer_goes_on_bit_for_bit(source):
    def make():
        store = _store(*_documents())
        config = _config(accumulation=2, schedule="wsd")
        return Trainer(_noisy_model(), source(store, 4, 16), config, seed=3)

    first = make()
    for _ in range(3):
        first.update()
    state = first.state_dict()
    # What is saved may share memory with what goes on learning.
    tensors = [{k: v.clone() for k, v in part.items()} for part in state[:2]]
    measured = [first.update() for _ in range(3)]
    second = make()
    second.load_state_dict(type(state)(*tensors, state.data))
    torch.manual_seed(99)
    assert [second.update() for _ in range(3)] == measured
    _assert_same(_weights(first), _weights(second))
    _assert_same(first.state_dict().tensors, second.state_dict().tensors)


def test_evaluation_is_repeatable_and_leaves_the_training_as_it_was():
    def make(held_out):
        store = _store(*_documents())
        return Trainer(
            _noisy_model(),
            PackedDocuments(store, 4, 16),
            _config(evaluation_batches=3),
            held_out=PackedDocuments(store, 4, 16, seed=5) if held_out else None,
        )

    judged, left = make(True), make(False)
    measured = []
    for _ in range(3):
        assert judged.evaluate() == judged.evaluate()
        torch.randn(3)
        measured.append((judged.update(), left.update()))
    assert all(ours == theirs for ours, theirs in measured)
    assert judged.model.training
    with pytest.raises(ValueError, match="there is no held-out text"):
        left.evaluate()


def test_a_loss_that_is_not_finite_stops_before_the_weights_take_it():
    model = _model()
    trainer = Trainer(model, PackedDocuments(_store(*_documents()), 4, 16), _config())
    trainer.update()
    before, position = _weights(trainer), trainer.source.state_dict()
    random = trainer._random.tensors["cpu"]
    spoilt = model.blocks[1].ffn.value.weight
    spoilt.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingDiverged, match=r"update 2 is not finite: .*blocks\.1\.ffn\.value"):
        trainer.update()
    _assert_same(_weights(trainer), before)
    assert trainer.updates == 1 and trainer.source.state_dict() == position
    assert torch.equal(trainer._random.tensors["cpu"], random)
    assert spoilt.grad is None


def test_an_update_that_fails_can_be_made_again(monkeypatch):
    def make():
        return Trainer(_model(), Streams(_store(), 2, 8), _config(accumulation=3))

    trainer, untouched = make(), make()
    trainer.update()
    counter, features = itertools.count(), LanguageModel.features

    def interrupted(self, *arguments):
        if next(counter) == 2:
            raise KeyboardInterrupt
        return features(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "features", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.update()
    untouched.update()
    assert trainer.update() == untouched.update()
    _assert_same(_weights(trainer), _weights(untouched))


def test_an_update_cut_off_while_the_weights_change_is_not_saved():
    trainer = Trainer(_model(), _Given(_batch()), _config())

    def interrupt(factor, norm):
        raise KeyboardInterrupt

    trainer._optimizer.step = interrupt
    with pytest.raises(KeyboardInterrupt):
        trainer.update()
    assert trainer.is_torn
    with pytest.raises(RuntimeError, match="cut off halfway"):
        trainer.state_dict()


class _LearntStart(nn.Module):
    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self._layout = model.layout
        self.flat = nn.Parameter(torch.zeros(model.layout.size))

    def forward(self, rows: int) -> CoreState:
        return CoreState(self._layout, self.flat.expand(rows, -1))


def _with_learnt_start(source):
    model = _model().requires_grad_(False)
    config = _config(learning_rate=0.1, weight_decay=0.0)
    return Trainer(model, source, config, start_state=_LearntStart(model))


def test_a_learnt_start_state_alone_lowers_the_loss_and_is_saved():
    trainer = _with_learnt_start(DocumentRows(_store(*[_text(6)] * 8), 4, 32))
    before = _weights(trainer)
    losses = [trainer.update()["loss"] for _ in range(20)]
    assert trainer.trained == ["start_state.flat"]
    assert losses[-1] < losses[0] - 0.05
    changed = [name for name, x in _weights(trainer).items() if not torch.equal(x, before[name])]
    assert changed == ["start_state.flat"]


@pytest.mark.parametrize("source", [PackedDocuments, Streams])
def test_a_learnt_start_state_needs_a_document_a_row(source):
    trainer = _with_learnt_start(source(_store(*_documents()), 4, 32))
    with pytest.raises(ValueError, match="use rows of one document each"):
        trainer.update()


def test_a_reset_at_the_first_token_does_not_clear_the_learnt_start():
    batch = _batch()
    batch.reset[:, 0] = True
    trainer = _with_learnt_start(_Given(batch))
    trainer.update()
    assert trainer.state_dict().weights["start_state.flat"].any()


def test_frozen_parameters_stay_and_have_no_state():
    model = _model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".att." in name)
    trainer = Trainer(model, _Given(_batch()), _config())
    before = _weights(trainer)
    trainer.update()
    state = trainer.state_dict()
    for name, tensor in state.weights.items():
        assert torch.equal(tensor, before[name]) == (".att." not in name), name
    adam = [name for name in state.tensors if name.startswith("optimizer/")]
    assert adam and all(".att." in name for name in adam)


def test_what_is_not_saved_is_not_asked_for():
    model = _model()
    trainer = Trainer(model, _Given(_batch()), _config(), saves=lambda name: name == "head.weight")
    state = trainer.state_dict()
    assert list(state.weights) == ["head.weight"]
    trainer.load_state_dict(state)


def test_gradients_through_windows_need_batches_that_carry_the_state():
    with pytest.raises(ValueError, match=r"is 2, but these batches carry no state .* use packed"):
        Trainer(_model(), _Given(_batch()), _config(backpropagate_windows=2))


@pytest.mark.parametrize("token", [VOCABULARY, -1])
@pytest.mark.parametrize("field", ["tokens", "targets"])
def test_an_id_out_of_range_is_named_before_it_is_read(field, token):
    batch = _batch()
    batch = batch._replace(**{field: getattr(batch, field).clone()})
    getattr(batch, field)[1, 3] = token
    trainer = Trainer(_model(), _Given(batch), _config(), held_out=_Given(batch))
    for attempt in (trainer.update, trainer.evaluate):
        with pytest.raises(ValueError, match=f"a batch holds the token id {token}; expected 0 to"):
            attempt()


def test_half_precision_weights_are_refused():
    with pytest.raises(ValueError, match=r"emb\.weight and \d+ other .* dtype=torch\.float32"):
        Trainer(_model(torch.bfloat16), _Given(_batch()), _config())


def test_a_state_of_another_model_is_refused():
    state = Trainer(_model(width=64), _Given(_batch()), _config()).state_dict()
    trainer = Trainer(_model(), _Given(_batch()), _config())
    with pytest.raises(ValueError, match=r"emb\.weight has shape .*257, 64.* expected \[257, 32"):
        trainer.load_state_dict(state)
    weights = {**_weights(trainer), "other": torch.zeros(1)}
    with pytest.raises(ValueError, match="other is in only one of"):
        trainer.load_state_dict(state._replace(weights=weights))


def test_recomputed_blocks_give_the_same_update():
    batch = _batch()
    kept = Trainer(_model(), _Given(batch), _config())
    again = Trainer(_model(), _Given(batch), _config(checkpoint_blocks=True))
    assert kept.update() == again.update()
    _assert_same(_weights(kept), _weights(again))


def test_in_bfloat16_weights_state_and_loss_stay_float32_and_it_learns():
    source = Streams(_store(), 4, 32)
    trainer = Trainer(_model(), source, _config(precision="bfloat16", learning_rate=3e-3))
    exact = Trainer(_model(), Streams(_store(), 4, 32), _config(learning_rate=3e-3))
    first, other = trainer.update(), exact.update()
    assert first["loss"] == pytest.approx(other["loss"], rel=0.01)
    assert first["loss"] != other["loss"]
    for _ in range(30):
        last = trainer.update()
    assert last["loss"] < 0.8 * first["loss"]
    state = trainer.state_dict()
    tensors = (*state.weights.values(), *state.tensors.values())
    assert {x.dtype for x in tensors if x.is_floating_point()} == {torch.float32}


def test_gradients_are_clipped_to_the_norm():
    # Adam alone would not care about the scale of the gradients: it is its first average that does.
    batch = _batch()
    trainer = Trainer(_model(), _Given(batch), _config(clip_norm=0.01))
    norm = trainer.update()["grad_norm"]
    average = {
        name: x for name, x in trainer.state_dict().tensors.items() if name.endswith("exp_avg")
    }
    total = torch.stack([x.norm() for x in average.values()]).norm()
    assert norm > 0.1
    assert total.item() == pytest.approx((1 - 0.9) * 0.01, rel=1e-3)


def test_rates_follow_the_schedule_and_the_decay_bias_learns_twice_as_fast():
    config = _config(updates=4, warmup_updates=1, learning_rate=1e-2, final_learning_rate=1e-3)
    trainer = Trainer(_model(), _Given(_batch()), replace(config, schedule="cosine"))
    rates = [trainer.update()["learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([5e-3, 1e-2, 5.5e-3, 1e-3])
    groups = trainer._optimizer._adam.param_groups
    assert {group["lr"] for group in groups} == {rates[-1], 2 * rates[-1]}
