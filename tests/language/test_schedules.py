"""Learning-rate schedules: where they begin, stay and end."""

from __future__ import annotations

import math

import pytest

from doxastic.language.schedules import learning_rate_factor


def _factors(updates, **settings):
    return [learning_rate_factor(i, updates, **settings) for i in range(updates)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_the_rate_rises_linearly_to_its_top(schedule):
    factors = _factors(100, schedule=schedule, warmup=4)
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(factors) == 1.0


def test_cosine_passes_the_middle_halfway_and_ends_at_the_final_rate():
    factors = _factors(101, schedule="cosine", final=0.2)
    assert factors[0] == 1.0
    assert factors[50] == pytest.approx(0.6)
    assert factors[100] == pytest.approx(0.2)
    assert factors == sorted(factors, reverse=True)


def test_cosine_after_warmup_is_that_of_nanogpt():
    factors = _factors(2000, schedule="cosine", warmup=100, final=0.1)
    for update in (100, 700, 1500):
        ratio = (update - 100) / (2000 - 100)
        expected = 0.1 + 0.5 * (1 + math.cos(math.pi * ratio)) * 0.9
        # Its rate would reach the final one an update after the last.
        assert factors[update] == pytest.approx(expected, abs=2e-3)


def test_wsd_stays_at_the_top_and_falls_in_its_last_part():
    factors = _factors(100, schedule="wsd", warmup=10, final=0.1, decay_fraction=0.2)
    assert set(factors[10:81]) == {1.0}
    assert factors[80:] == sorted(factors[80:], reverse=True)
    assert factors[99] == pytest.approx(0.1)
    # One minus a root: half of the fall is over after a quarter of the way.
    assert factors[81] < 0.85


def test_constant_stays():
    assert set(_factors(50, schedule="constant")) == {1.0}


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_after_the_last_update_the_final_rate_stays(schedule):
    for update in (99, 100, 5000):
        assert learning_rate_factor(update, 100, schedule=schedule, final=0.3) == pytest.approx(0.3)


@pytest.mark.parametrize("updates", [1, 2, 5])
@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_runs_shorter_than_their_warmup_have_finite_rates(schedule, updates):
    factors = _factors(updates, schedule=schedule, warmup=3)
    assert all(0.0 < factor <= 1.0 for factor in factors)
