"""What an agent reads of the exact posterior, for the tasks that have an exact filter."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from doxastic.envs.batched import BatchedPOMDP
from doxastic.envs.noisy_task import NoisyTask
from doxastic.envs.references.bandit_filter import BanditBelief, BanditFilter
from doxastic.envs.references.belief_policy import BeliefFilter
from doxastic.envs.references.light_dark_filter import LightDarkBelief, LightDarkFilter
from doxastic.envs.references.linear_gaussian_filter import LinearGaussianFilter
from doxastic.envs.references.sequential_test_filter import SequentialTestFilter
from doxastic.envs.references.tiger import TigerFilter
from doxastic.envs.tasks.light_dark import LightDark
from doxastic.envs.tasks.linear_gaussian import LinearGaussian
from doxastic.envs.tasks.noisy_bandit import NoisyBandit
from doxastic.envs.tasks.sequential_test import SequentialTest
from doxastic.envs.tasks.tiger import Tiger

FloatArray = npt.NDArray[np.float64]

# Beyond these log odds, 1 in 22,000, the likelier side might as well be certain.
_LOG_ODDS = 10.0


class PosteriorFeatures(NamedTuple):
    """A filter, and the columns an agent reads of its beliefs.

    The columns say all of the posterior that an optimal policy needs, together with the time.
    """

    filter: BeliefFilter[Any]
    """Follows N episodes; its beliefs are NamedTuples of arrays with leading dimension N."""

    names: tuple[str, ...]
    """Names of the columns."""

    horizon: int
    """Steps of the longest episode."""

    read: Callable[[Any], FloatArray]
    """From N beliefs to the columns `[N, len(names)]`, all finite."""


@singledispatch
def posterior_features(task: BatchedPOMDP) -> PosteriorFeatures:
    """Return what an agent reads of a task's exact posterior.

    The levels the task has are those the posterior holds possible, all equally likely before.

    Raises:
        ValueError: If the task has no exact filter, or none with these levels.
    """
    if isinstance(task, NoisyTask):
        raise ValueError(
            f"{type(task.task).__name__} is seen through {task.kind} noise, for which there is no "
            "exact posterior; set noise_kind to gaussian."
        )
    known = posterior_features.registry.keys() - {object, BatchedPOMDP}
    raise ValueError(
        f"{type(task).__name__} has no exact posterior; the tasks that have one are "
        f"{', '.join(sorted(cls.__name__ for cls in known))}."
    )


@posterior_features.register
def _(task: SequentialTest) -> PosteriorFeatures:
    return _of_two_sides(SequentialTestFilter(task), task, ("mean of the sign", "log odds of +1"))


@posterior_features.register
def _(task: Tiger) -> PosteriorFeatures:
    return _of_two_sides(TigerFilter(task), task, ("mean of the side", "log odds of right"))


def _of_two_sides(
    filtered: SequentialTestFilter | TigerFilter,
    task: SequentialTest | Tiger,
    names: tuple[str, str],
) -> PosteriorFeatures:
    def read(belief: Any) -> FloatArray:
        posterior = filtered.read(belief)
        return _columns(*_of_sign(posterior.right), posterior.noise)

    return PosteriorFeatures(filtered, (*names, *_levels(task)), task.horizon, read)


@posterior_features.register
def _(task: LightDark) -> PosteriorFeatures:
    filtered = LightDarkFilter(task)

    def read(belief: LightDarkBelief) -> FloatArray:
        posterior = filtered.read(belief)
        own = belief.x, posterior.mean, np.log(posterior.variance) / 2
        given = posterior.means, np.log(posterior.variances) / 2
        return _columns(*own, posterior.noise, *given)

    given = (
        f"{what} of y | {level:g}" for what in ("mean", "log deviation") for level in task.noise
    )
    names = ("x", "mean of y", "log deviation of y", *_levels(task), *given)
    return PosteriorFeatures(filtered, names, task.horizon, read)


@posterior_features.register
def _(task: NoisyBandit) -> PosteriorFeatures:
    filtered = BanditFilter(task)

    def read(belief: BanditBelief) -> FloatArray:
        posterior = filtered.read(belief)
        return _columns(
            posterior.mean,
            np.log(posterior.variance) / 2,
            posterior.weights[..., 0],
            np.log1p(belief.readings),
            posterior.noise,
        )

    what = ("mean", "log deviation", "P(reliable)", "log(1 + readings)")
    names = (*(f"{name} of arm {arm}" for name in what for arm in range(task.arms)), *_levels(task))
    return PosteriorFeatures(filtered, names, task.horizon, read)


@posterior_features.register
def _(task: LinearGaussian) -> PosteriorFeatures:
    filtered = LinearGaussianFilter(task)

    def read(belief: Any) -> FloatArray:
        posterior = filtered.read(belief)
        # A start that is known exactly has no variance.
        deviation = np.log(np.maximum(posterior.variance, 1e-12)) / 2
        return _columns(posterior.mean, deviation, posterior.noise)

    entries = task.hidden_names[:-1]
    names = (*(f"{what} of {x}" for what in ("mean", "log deviation") for x in entries),)
    return PosteriorFeatures(filtered, (*names, *_levels(task)), task.max_episode_steps, read)


def _levels(task: BatchedPOMDP) -> tuple[str, ...]:
    return tuple(f"P(noise = {level:g})" for level in task.noise)


def _of_sign(right: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the mean of a sign that is +1 with this probability, and its log odds within +-10.

    What an answer is worth is linear in the mean; what one observation adds to, the log odds.
    """
    least = 1 / (1 + np.exp(_LOG_ODDS))
    p = np.clip(right, least, 1 - least)
    return 2 * right - 1, np.log(p / (1 - p))


def _columns(*parts: FloatArray) -> FloatArray:
    """Return arrays `[N]` and `[N, K]` side by side."""
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
