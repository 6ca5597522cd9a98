"""Statistics of a study: scores, bootstrap intervals, comparisons in pairs, references."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from doxastic.agents.study import references
from doxastic.agents.study.efficiency import TaskRuns, efficiency_curve, steps_to, suite_curve
from doxastic.agents.study.resampling import interval, resampled_means
from doxastic.agents.study.returns import TaskReturns
from doxastic.agents.study.statistics import (
    Comparison,
    improvement,
    interquartile_mean,
    optimality_gap,
)
from doxastic.envs.make import EnvConfig

RANDOM = np.random.default_rng(0)


def equal(runs: int) -> np.ndarray:
    return np.full(runs, 1 / runs)


def task_of(returns: np.ndarray, **changes: object) -> TaskReturns:
    memories, seeds, levels, _ = returns.shape
    arguments: dict[str, object] = {
        "task": "task",
        "memories": tuple("abcdef"[:memories]),
        "seeds": tuple(range(seeds)),
        "levels": tuple(float(i) for i in range(levels)),
        "trained": tuple(float(i) for i in range(levels)),
        "returns": returns.astype(np.float32),
        "random": 0.0,
        "best": (1.0,) * levels,
        "best_mixture": 1.0,
    }
    return TaskReturns(**{**arguments, **changes})


def with_noise(means: np.ndarray, episodes: int = 400, deviation: float = 0.0) -> np.ndarray:
    """Return returns `[memories, seeds, 1, episodes]` around means `[memories, seeds]`."""
    noise = deviation * RANDOM.standard_normal(episodes)
    return means[:, :, None, None] + noise


def test_iqm_is_the_trimmed_mean_where_a_quarter_of_the_runs_is_whole():
    scores = RANDOM.standard_normal((5, 8))
    expected = stats.trim_mean(scores, 0.25, axis=1)
    np.testing.assert_allclose(interquartile_mean(scores, equal(8)), expected, rtol=1e-12)


def test_iqm_of_three_runs_counts_the_outer_ones_with_what_lies_in_the_middle_half():
    # Each has a third; of the outer ones 1/3 - 1/4 = 1/12 lies inside.
    assert interquartile_mean(np.array([9.0, 0.0, 3.0]), equal(3)) == pytest.approx(
        (0 + 4 * 3 + 9) / 6
    )


def test_gap_does_not_let_runs_above_the_best_make_up_for_others():
    assert optimality_gap(np.array([0.5, 1.5]), equal(2)) == pytest.approx(0.25)


def test_improvement_counts_pairs_and_half_of_the_ties():
    first, second = np.array([1.0, 2.0]), np.array([0.0, 2.0])
    assert improvement(first, second) == pytest.approx((1 + 0 + 1 + 0.5) / 4)


def test_values_agree_with_rliable():
    metrics = pytest.importorskip("rliable.metrics")
    means = RANDOM.uniform(0.2, 1.3, size=(2, 8, 2))
    tasks = [
        task_of(with_noise(means[:, :, i], episodes=4), task=f"task{i}", memories=("a", "b"))
        for i in range(2)
    ]
    comparison = Comparison(tasks, resamples=10)
    first, second = means[0], means[1]  # [runs, tasks]
    score, gap = comparison.score("mixture", "a"), comparison.gap("mixture", "a")
    better = comparison.improvement("mixture", "a", "b")
    assert score is not None and gap is not None and better is not None
    assert score.value == pytest.approx(metrics.aggregate_iqm(first), abs=1e-6)
    assert gap.value == pytest.approx(metrics.aggregate_optimality_gap(first), abs=1e-6)
    expected = metrics.probability_of_improvement(first, second)
    assert better.value == pytest.approx(float(np.asarray(expected)), abs=1e-6)


def test_samples_vary_with_the_seeds_as_a_bootstrap_does():
    means = RANDOM.standard_normal((1, 10))
    samples = resampled_means(task_of(with_noise(means)), 4000, np.random.default_rng(1))
    found = samples.mean(axis=2).std()
    # The variance of a mean of n draws from n values, divided by n and not by n - 1.
    assert found == pytest.approx(means.std() / np.sqrt(10), rel=0.05)


def test_samples_vary_with_the_episodes_too():
    returns = with_noise(np.zeros((1, 5)), episodes=900, deviation=3.0)
    samples = resampled_means(task_of(returns), 4000, np.random.default_rng(1))
    # The seeds meet the same episodes: their mean is no more certain than one of them.
    assert samples.mean(axis=2).std() == pytest.approx(returns[0, 0, 0].std() / 30, rel=0.05)


def test_samples_are_paired_over_memories_and_levels():
    returns = RANDOM.standard_normal((1, 4, 2, 50))
    pair = np.concatenate((returns, returns + 0.5), axis=0)
    pair[:, :, 1] = pair[:, :, 0] - 1.0
    samples = resampled_means(task_of(pair), 50, np.random.default_rng(0))
    np.testing.assert_allclose(samples[:, 1] - samples[:, 0], 0.5, atol=1e-5)
    np.testing.assert_allclose(samples[..., 0] - samples[..., 1], 1.0, atol=1e-5)


def test_interval_of_many_seeds_is_that_of_the_plain_percentiles():
    samples = RANDOM.standard_normal(20_000)
    plain = np.quantile(samples, [0.025, 0.975])
    np.testing.assert_allclose(interval(samples, 5000), plain, atol=0.02)


def test_interval_of_three_seeds_is_the_range_of_the_samples():
    samples = RANDOM.standard_normal(2000)
    # Some hundredths of a deviation: the quantile is interpolated between the outermost two.
    np.testing.assert_allclose(interval(samples, 3), [samples.min(), samples.max()], atol=1e-3)


def test_intervals_of_ten_seeds_cover_what_they_should():
    random, hits, trials = np.random.default_rng(5), 0, 300
    for _ in range(trials):
        sample = random.standard_normal(10)
        drawn = sample[random.integers(10, size=(1000, 10))].mean(1)
        low, high = interval(drawn, 10)
        hits += low <= 0 <= high
    # Three binomial deviations below 95 %; plain percentiles cover 90 %.
    assert hits / trials >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / trials)


def test_difference_of_a_memory_to_its_equal_shifted_by_a_constant_is_certain():
    means = RANDOM.uniform(size=(1, 6))
    returns = with_noise(np.concatenate((means, means + 0.1)), deviation=0.5)
    comparison = Comparison([task_of(returns)], resamples=200)
    found = comparison.difference("mixture", "b", "a")
    assert found is not None
    np.testing.assert_allclose([found.value, found.low, found.high], 0.1, atol=1e-5)
    assert found.excludes_zero


def test_of_fewer_than_five_runs_an_interval_excludes_nothing():
    means = RANDOM.uniform(size=(1, 4))
    returns = with_noise(np.concatenate((means, means + 0.1)))
    one = task_of(returns)
    found = Comparison([one], resamples=50).difference("mixture", "b", "a")
    assert found is not None and found.low > 0 and not found.excludes_zero
    # Over two tasks there are eight.
    two = Comparison([one, task_of(returns, task="other")], resamples=50)
    over_both = two.difference("mixture", "b", "a")
    assert over_both is not None and over_both.excludes_zero


def test_without_a_best_under_that_noise_there_are_differences_and_no_scores():
    returns = RANDOM.uniform(size=(2, 5, 3, 4))
    changes = {"trained": (0.0, 1.0), "has_best_levels": False}
    comparison = Comparison([task_of(returns, **changes)], resamples=20)
    for measure in ("hardest", "held-out"):
        assert comparison.score(measure, "a") is None and comparison.gap(measure, "a") is None
        assert comparison.profile(measure, "a", np.zeros(1)) is None
        assert comparison.difference(measure, "a", "b") is not None
        assert comparison.improvement(measure, "a", "b") is not None
    assert comparison.score("mixture", "a") is not None


def test_scores_are_one_for_the_best_known_and_zero_for_random_actions():
    returns = np.zeros((2, 3, 2, 5))
    returns[0] = np.array([4.0, 2.0])[:, None]
    returns[1] = -1.0
    task = task_of(returns, random=-1.0, best=(4.0, 2.0), best_mixture=3.0)
    np.testing.assert_allclose(task.normalized(task.means, "mixture"), [[1] * 3, [0] * 3])
    np.testing.assert_allclose(task.normalized(task.means, "hardest")[0], 1.0)


def test_measures_take_their_levels():
    task = task_of(
        np.zeros((1, 3, 4, 5)), levels=(0.0, 0.5, 1.0, 2.0), trained=(0.0, 1.0), best=(1, 1, 1, 0.5)
    )
    assert task.weights("mixture").tolist() == [0.5, 0, 0.5, 0]
    assert task.weights("hardest").tolist() == [0, 0, 1, 0]
    assert task.weights("held-out").tolist() == [0, 0, 0, 1]
    assert task.best_of("held-out") == 0.5


def test_own_noise_has_only_the_mixture():
    task = task_of(np.zeros((1, 3, 1, 5)), levels=(None,), trained=())
    assert task.weights("mixture").tolist() == [1.0]
    assert task.weights("hardest") is None and task.weights("held-out") is None
    assert Comparison([task], resamples=5).score("held-out", "a") is None


def test_tasks_weigh_alike_whatever_their_number_of_seeds():
    few = task_of(with_noise(np.full((1, 3), 0.2)), task="few")
    many = task_of(with_noise(np.full((1, 9), 0.8)), task="many")
    found = Comparison([few, many], resamples=20).score("mixture", "a")
    assert found is not None and found.value == pytest.approx(0.5, abs=1e-6)


def test_profile_falls_from_one_to_zero():
    task = task_of(with_noise(RANDOM.uniform(0.2, 0.8, size=(1, 5))))
    found = Comparison([task], resamples=50).profile("mixture", "a", np.linspace(0, 1, 11))
    assert found is not None
    share, low, high = found
    assert share[0] == 1 and share[-1] == 0 and (np.diff(share) <= 0).all()
    assert (low <= share).all() and (share <= high).all()


def test_returns_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"has shape \[1, 3, 2, 4\]; expected"):
        task_of(np.zeros((1, 3, 2, 4)), seeds=(0, 1))


def test_a_best_return_below_random_actions_is_refused():
    with pytest.raises(ValueError, match="is not above that of random actions"):
        task_of(np.zeros((1, 3, 1, 4)), random=2.0)


def test_curve_is_interpolated_to_the_steps_all_runs_have():
    steps = np.array([0.0, 100.0, 200.0])
    runs = [(steps + 10 * i, np.array([np.nan, 1.0, 2.0])) for i in range(3)]
    curve = efficiency_curve("a", runs)
    assert (curve.steps[0], curve.steps[-1]) == (120, 200)
    assert (curve.low <= curve.value).all() and (curve.value <= curve.high).all()
    assert steps_to(curve, 1.5) == pytest.approx(160, abs=2)
    assert steps_to(curve, 5.0) is None


def test_curve_over_tasks_is_of_scores_and_shares_of_the_steps():
    short = [(np.array([50.0, 100.0]), np.array([0.0, 1.0]))] * 3
    long = [(np.array([500.0, 1000.0]), np.array([-10.0, 0.0]))] * 3
    tasks = [TaskRuns(short, best=1.0, scale=1.0), TaskRuns(long, best=0.0, scale=10.0)]
    curve = suite_curve("a", tasks)
    assert (curve.steps[0], curve.steps[-1]) == (0.5, 1.0)
    # Half way, every run has scored half of the best.
    np.testing.assert_allclose(curve.value, 2 * curve.steps - 1, atol=1e-12)
    np.testing.assert_allclose([curve.low, curve.high], [curve.value] * 2, atol=1e-12)


def test_every_task_weighs_alike_in_the_curve_over_tasks():
    def runs(value: float, count: int) -> TaskRuns:
        return TaskRuns([(np.array([1.0, 2.0]), np.full(2, value))] * count, best=1.0, scale=1.0)

    # The middle half of the weight is half of each task's, whatever their numbers of runs.
    curve = suite_curve("a", [runs(0.0, 9), runs(1.0, 3)])
    np.testing.assert_allclose(curve.value, 0.5, atol=1e-12)


def test_reference_of_the_sequential_test_is_its_optimum(monkeypatch):
    monkeypatch.setattr(references, "_EPISODES", 2000)
    config = EnvConfig(
        id="doxastic/SequentialTest-v0", noise=(0.5, 1.0, 2.0), kwargs={"variant": "easy"}
    )
    levels, mixture = references.reference_returns(config, (0.5, 2.0), seed=0)
    assert mixture == pytest.approx(0.897, abs=0.001)  # docs/envs/confidence.md
    # Three standard errors of 2,000 episodes at the noisier level.
    np.testing.assert_allclose(levels, [0.959, 0.804], atol=0.04)


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (EnvConfig(id="doxastic/Tiger-v0", noise=(0.2,)), True),
        (EnvConfig(id="doxastic/Tiger-v0", noise=(0.0, 0.2)), False),
        (EnvConfig(id="doxastic/CartPole-v0", noise=(0.1,)), True),
        (EnvConfig(id="doxastic/CartPole-v0", noise=(0.1,), noise_kind="flicker"), False),
        (EnvConfig(id="doxastic/Pendulum-v0", noise=(0.1,)), False),
        (EnvConfig(id="CartPole-v1"), False),
    ],
)
def test_references_are_known_where_a_policy_is(config, known):
    assert references.has_reference(config) is known


def test_random_return_is_that_of_the_documentation():
    config = EnvConfig(id="doxastic/CartPole-v0", noise=(0.0,))
    # docs/envs/control.md: 0.110; a standard error of .001.
    assert references.random_return(config, seed=0) == pytest.approx(0.110, abs=0.005)


def test_reference_of_an_unsolved_environment_is_refused():
    with pytest.raises(ValueError, match="No best policy is known for CartPole-v1"):
        references.reference_returns(EnvConfig(id="CartPole-v1"), (0.0,), seed=0)
