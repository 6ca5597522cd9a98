"""Reading prompts together equals reading each alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from language_cases import random_model, small_config
from tolerances import NORMALISED, assert_close

from doxastic.language.prefill import prefill

TOLERANCE = NORMALISED[torch.float32]
LENGTHS = (5, 1, 40, 17, 17, 2)


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


@pytest.fixture
def sequences():
    random = np.random.default_rng(0)
    return [random.integers(0, 37, length) for length in LENGTHS]


@pytest.mark.parametrize("piece_tokens", [1, 31, 64, 10_000])
@pytest.mark.parametrize("continues", [False, True])
def test_rows_of_different_lengths_equal_each_row_alone(
    model, sequences, piece_tokens, continues
) -> None:
    start = None
    if continues:
        random = torch.Generator().manual_seed(1)
        flat = torch.randn(len(LENGTHS), model.layout.size, generator=random)
        start = type(model.initial_state(1))(model.layout, flat)
    features, state = prefill(model, sequences, start, piece_tokens=piece_tokens)
    for row, sequence in enumerate(sequences):
        alone = None if start is None else start.index([row])
        expected, after = model.features(torch.from_numpy(sequence)[None], alone)
        assert_close(f"features {row}", features[row], expected[0, -1], TOLERANCE)
        assert_close(f"state {row}", state.flat[row], after.flat[0], TOLERANCE)


def test_no_call_reads_more_than_the_piece_allows(model, sequences, monkeypatch) -> None:
    read = []
    features = type(model).features

    def watch(self, tokens, state, reset):
        read.append(tuple(tokens.shape))
        return features(self, tokens, state, reset)

    monkeypatch.setattr(type(model), "features", watch)
    prefill(model, sequences, piece_tokens=60)
    assert max(rows * length for rows, length in read) <= 60
    # Rows join where they begin: much less is read than six times the longest.
    assert sum(rows * length for rows, length in read) < 0.7 * len(LENGTHS) * max(LENGTHS)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "no sequences"),
        ([[1], []], "sequence 1 is empty"),
        ([[1, 37]], "token id 37; expected 0 to 36"),
        ([[-1]], "token id -1; expected 0 to 36"),
    ],
)
def test_what_cannot_be_read_is_refused(model, sequences, message) -> None:
    with pytest.raises(ValueError, match=message):
        prefill(model, [np.array(sequence, np.int64) for sequence in sequences])


def test_a_state_of_other_sizes_or_rows_is_refused(model) -> None:
    other = random_model(small_config(layers=1)).initial_state(1)
    with pytest.raises(ValueError, match="a model of other sizes"):
        prefill(model, [np.array([1])], other)
    with pytest.raises(ValueError, match=r"state has 2 rows; .* each of the 1 sequences"):
        prefill(model, [np.array([1])], model.initial_state(2))
