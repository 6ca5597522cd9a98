"""Bootstrap samples of a study: seeds and episodes drawn again, the same for all memories."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from doxastic.agents.study.returns import TaskReturns

RESAMPLES = 2000
CONFIDENCE = 0.95
# Resamples whose weights are held at once: 200 x 50,000 episodes are 40 MB.
_BATCH = 200


def resampled_means(
    task: TaskReturns, resamples: int, random: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Return mean returns of bootstrap samples, `[resamples, memories, seeds, levels]`.

    Seeds and episodes are crossed: every agent is tested on the same episodes, and memories share
    their seeds. Each sample therefore draws seeds and, independently, episodes, with replacement,
    and takes both for all memories and levels at once. Differences between memories are then
    paired in both, and the noise of a test of finitely many episodes is part of every interval
    (Owen and Eckles, "Bootstrapping data arrays of arbitrary order", 2012). Tasks are the strata:
    each is resampled for itself.

    Args:
        task: Returns of all memories on the task.
        resamples: Number of samples.
        random: Source of the draws.
    """
    memories, seeds, levels, episodes = task.returns.shape
    flat = np.ascontiguousarray(task.returns.reshape(-1, episodes).T)  # [episodes, agents]
    means = np.empty((resamples, memories, seeds, levels), np.float32)
    for start in range(0, resamples, _BATCH):
        count = min(_BATCH, resamples - start)
        weights = _counts(count, episodes, random) / np.float32(episodes)
        again = (weights @ flat).reshape(count, memories, seeds, levels)
        drawn = random.integers(seeds, size=(count, 1, seeds, 1))
        means[start : start + count] = np.take_along_axis(again, drawn, axis=2)
    return means


def interval(samples: npt.NDArray[np.floating], seeds: int, tasks: int = 1) -> tuple[float, float]:
    """Return the 95 % interval of a statistic from its bootstrap samples `[resamples]`.

    Percentiles, moved outwards for the narrowness of the bootstrap of a few runs: drawing again
    from n seeds gives a variance too small by (n - 1) / n, and a normal quantile where Student's is
    due (Hesterberg, "What teachers should know about the bootstrap", The American Statistician
    69, 2015, expanded percentile interval). Of three seeds that is the whole range of the samples.

    Args:
        samples: The statistic of every bootstrap sample.
        seeds: Number of seeds of each task, the least of them.
        tasks: Number of tasks that the statistic is over.
    """
    tail = tail_share(seeds, tasks)
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def tail_share(seeds: int, tasks: int = 1) -> float:
    """Return the share of the samples to be left out on each side; see `interval`."""
    quantile = stats.t.ppf((1 - CONFIDENCE) / 2, tasks * (seeds - 1))
    return float(stats.norm.cdf(quantile * math.sqrt(seeds / (seeds - 1))))


def _counts(samples: int, episodes: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return how often each episode is drawn, `[samples, episodes]`, rows adding up to episodes."""
    drawn = random.integers(episodes, size=(samples, episodes), dtype=np.int64)
    drawn += np.arange(samples)[:, None] * episodes
    counts = np.bincount(drawn.ravel(), minlength=samples * episodes)
    return counts.reshape(samples, episodes).astype(np.float32)
