"""Measures of calibration on predictions whose quality is known, and probes of known functions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from doxastic.agents.calibration.control import action_curve
from doxastic.agents.calibration.linear import fit_ridge, folds_of, principal_axes
from doxastic.agents.calibration.measures import (
    UNKNOWN,
    coverage,
    explained_variance,
    mean_estimate,
    quantile_reliability,
    rank_correlation,
    reliability,
)
from doxastic.agents.calibration.probes import fit_category, fit_gaussian

STEPS = 20_000
EPISODES = np.arange(STEPS) // 20


def _random() -> np.random.Generator:
    return np.random.default_rng(0)


def _gaussian() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return true values and the means and variances they were drawn with."""
    random = _random()
    mean, variance = random.normal(size=STEPS), np.exp(random.normal(size=STEPS))
    return mean + np.sqrt(variance) * random.normal(size=STEPS), mean, variance


def test_a_calibrated_gaussian_covers_954_and_has_no_calibration_error() -> None:
    y, mean, variance = _gaussian()
    covered = coverage(y, mean, variance, EPISODES)
    # Five deviations of a share of 20,000 independent steps.
    assert covered.value == pytest.approx(0.9545, abs=5 * np.sqrt(0.9545 * 0.0455 / STEPS))
    assert covered.low < 0.9545 < covered.high
    error, curve = quantile_reliability(y, mean, variance, EPISODES)
    assert error.value < 0.005 and error.low == 0
    assert np.abs(curve.observed - curve.predicted).max() < 0.02


def test_a_gaussian_that_is_too_sure_covers_less_and_is_found_out() -> None:
    y, mean, variance = _gaussian()
    covered = coverage(y, mean, variance / 4, EPISODES)
    assert covered.value == pytest.approx(stats.norm.cdf(1) - stats.norm.cdf(-1), abs=0.02)
    levels = np.arange(0.05, 0.96, 0.05)
    wrong = stats.norm.cdf(stats.norm.ppf(levels) / 2)
    error, curve = quantile_reliability(y, mean, variance / 4, EPISODES)
    assert error.value == pytest.approx(np.abs(wrong - levels).mean(), abs=0.01)
    np.testing.assert_allclose(curve.observed, wrong, atol=0.02)


def test_calibrated_probabilities_have_no_error_and_exaggerated_ones_have() -> None:
    random = _random()
    logit = 2 * random.normal(size=STEPS)
    p = 1 / (1 + np.exp(-logit))
    outcome = random.random(STEPS) < p
    error, curve = reliability(p, outcome, EPISODES)
    assert error.value < 0.01 and error.low == 0
    assert len(curve.predicted) == 15 and (np.diff(curve.predicted) > 0).all()
    exaggerated = 1 / (1 + np.exp(-3 * logit))
    worse, _ = reliability(exaggerated, outcome, EPISODES)
    assert worse.low > 0.05
    # The plain average over 20 bins of equal width, computed here.
    bins = (exaggerated * 20).astype(int)
    gaps = [np.abs((outcome - exaggerated)[bins == k].sum()) for k in range(20)]
    assert worse.value == pytest.approx(sum(gaps) / STEPS, abs=0.01)


def test_equal_probabilities_share_a_bin() -> None:
    # The outcomes come in order: bins by position would each hold but one of them.
    outcome = np.arange(1000) < 500
    error, curve = reliability(np.full(1000, 0.5), outcome, np.arange(1000) % 50)
    assert curve.predicted.tolist() == [0.5] and curve.observed.tolist() == [0.5]
    assert error.value == 0


def test_steps_of_one_episode_count_as_one() -> None:
    values = _random().normal(size=200)
    alone = mean_estimate(values, np.arange(200))
    repeated = mean_estimate(np.repeat(values, 50), np.repeat(np.arange(200), 50))
    assert repeated == pytest.approx(alone)
    assert alone.high - alone.low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.2)
    longer = np.repeat(values, np.where(values > 0, 3, 1))
    assert mean_estimate(longer, np.arange(len(longer))).value == pytest.approx(longer.mean())


def test_rank_correlations_are_spearmans() -> None:
    random = _random()
    a = random.normal(size=2000)
    b = np.round(a + random.normal(size=2000), 1)
    found = rank_correlation(a, b, np.arange(2000))
    assert found.value == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)
    assert found.low < found.value < found.high < found.low + 0.1
    assert rank_correlation(a, np.exp(3 * a), EPISODES[:2000]).value == pytest.approx(1)
    assert rank_correlation(a, np.ones(2000), EPISODES[:2000]) == UNKNOWN


def test_explained_variance_is_1_for_the_truth_0_for_the_mean_and_unknown_of_a_constant() -> None:
    y = _random().normal(size=(500, 2)) + 7
    episodes = np.arange(500)
    assert explained_variance(y, y, episodes) == pytest.approx((1, 1, 1))
    assert explained_variance(y, np.tile(y.mean(0), (500, 1)), episodes).value == pytest.approx(0)
    constant = np.full((500, 1), 0.1)
    assert np.isnan(explained_variance(constant, constant + 1, episodes).value)


def test_actions_are_averaged_over_steps_of_like_belief() -> None:
    x = _random().uniform(-1, 1, size=STEPS)
    action = np.stack([x > 0.5, x <= 0.5], axis=1).astype(float)
    curve = action_curve(x, action, EPISODES)
    assert curve.mean.shape == curve.low.shape == (2, 12)
    np.testing.assert_allclose(curve.mean.sum(0), 1)
    assert curve.mean[0, :8].max() == 0 and curve.mean[0, -3:].min() == 1
    assert ((curve.low <= curve.mean) & (curve.mean <= curve.high)).all()


def test_a_linear_function_is_recovered_exactly() -> None:
    random = _random()
    # Inputs of very different sizes, two of which say the same.
    x = random.normal(size=(3000, 4)) * [1, 100, 0.01, 1] + [0, 5, 0, -3]
    x[:, 3] = x[:, 0] + 2
    weight = np.array([[1.0, 0], [0.02, -0.01], [30, 5], [0, 0]])
    y = x @ weight + [3, -1]
    probe = fit_ridge(x, y, np.arange(3000) // 10)
    other = random.normal(size=(100, 4))
    other[:, 3] = other[:, 0] + 2
    np.testing.assert_allclose(probe(other), other @ weight + [3, -1], rtol=1e-4, atol=1e-4)


def test_ridge_solves_the_penalised_normal_equations() -> None:
    random = _random()
    x, y = random.normal(size=(300, 5)), random.normal(size=(300, 1))
    z = (x - x.mean(0)) / x.std(0)
    expected = np.linalg.solve(z.T @ z / 300 + 0.5 * np.eye(5), z.T @ (y - y.mean(0)) / 300)
    probe = fit_ridge(x, y, np.arange(300), penalties=[0.5])
    np.testing.assert_allclose(probe.weight * x.std(0)[:, None], expected, atol=1e-12)
    np.testing.assert_allclose(probe(x.mean(0)[None]), y.mean(0)[None], atol=1e-12)


def test_a_probe_of_nothing_learns_nothing() -> None:
    random = _random()
    x, y = random.normal(size=(2, 150, 60)), random.normal(size=(2, 150, 1))
    probe = fit_ridge(x[0], y[0], np.arange(150))
    # Least squares would be off by as much again.
    assert ((y[1] - probe(x[1])) ** 2).mean() < 1.15 * y[1].var()


def test_logistic_regression_finds_the_probabilities_behind_the_labels() -> None:
    random = _random()
    x = random.normal(size=(STEPS, 3)) * [1, 50, 1]
    logits = np.stack([np.zeros(STEPS), x[:, 0] + 1, 0.02 * x[:, 1] - x[:, 2]], axis=1)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (random.random(STEPS)[:, None] > p.cumsum(1)).sum(1)
    probe = fit_category(x, labels, 3, EPISODES)
    assert np.abs(probe(x) - p).max() < 0.06
    assert np.abs(probe(x) - p).mean() < 0.01


def test_a_gaussian_probe_finds_mean_and_variance() -> None:
    random = _random()
    x = random.normal(size=(STEPS, 3))
    mean, variance = 5 + 3 * x[:, 0], np.exp(1 + x[:, 1])
    y = mean + np.sqrt(variance) * random.normal(size=STEPS)
    found = fit_gaussian(x, y, EPISODES)(x)
    assert np.abs(found[0] - mean).mean() < 0.05
    assert np.abs(np.log(found[1] / variance)).mean() < 0.05
    assert coverage(y, *found, EPISODES).value == pytest.approx(0.9545, abs=0.01)


@pytest.mark.parametrize("noise", [1e-2, 10.0])
def test_a_gaussian_probe_is_as_sure_as_it_may_be(noise: float) -> None:
    random = _random()
    x = random.normal(size=(STEPS, 4)) @ random.normal(size=(4, 12))
    y = 5 * x[:, 0] + noise * random.normal(size=STEPS)
    found = fit_gaussian(x, y, EPISODES)(x)
    assert coverage(y, *found, EPISODES).value == pytest.approx(0.9545, abs=0.01)
    np.testing.assert_allclose(found[1], noise**2, rtol=0.2)


def test_principal_axes_are_uncorrelated() -> None:
    x = _random().normal(size=(500, 3)) @ [[1, 5, 0], [0, 1, 0], [0, 2, 1]] + 4
    z = principal_axes(x)(x)
    covariance = np.cov(z.T, bias=True)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-10)
    assert np.trace(covariance) == pytest.approx(3)


def test_folds_hold_whole_episodes_and_need_three_of_them() -> None:
    episodes = np.repeat([4, 8, 10, 12], [1, 5, 2, 3])
    folds = folds_of(episodes)
    assert sum(fold.astype(int) for fold in folds).tolist() == [1] * 11
    assert [np.unique(episodes[fold]).tolist() for fold in folds] == [[4, 12], [8], [10]]
    with pytest.raises(ValueError, match="fitted to 2 episodes; expected at least 3"):
        folds_of(np.array([1, 1, 2]))


def test_the_interval_of_calibrated_probabilities_begins_at_zero() -> None:
    random, hits, trials = np.random.default_rng(3), 0, 40
    episodes = np.arange(2000)
    for _ in range(trials):
        p = random.uniform(size=2000)
        error, _ = reliability(p, random.uniform(size=2000) < p, episodes)
        hits += error.low == 0
    # Three binomial deviations below 95 %.
    assert hits / trials >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / trials)
