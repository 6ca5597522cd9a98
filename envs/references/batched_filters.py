"""Posterior moments of the hidden variables along many whole episodes at once, by task."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from doxastic.envs.batched import BatchedPOMDP
from doxastic.envs.references.bandit_filter import BanditFilter
from doxastic.envs.references.control import Balancer, CartPoleBalancer, PendulumBalancer
from doxastic.envs.references.light_dark_filter import LightDarkFilter
from doxastic.envs.references.linear_gaussian_filter import LinearGaussianFilter
from doxastic.envs.references.sequential_test_filter import SequentialTestFilter
from doxastic.envs.references.tiger import TigerFilter
from doxastic.envs.tasks.cartpole import FORCE, CartPole
from doxastic.envs.tasks.light_dark import LightDark
from doxastic.envs.tasks.linear_gaussian import LinearGaussian
from doxastic.envs.tasks.noisy_bandit import NoisyBandit
from doxastic.envs.tasks.pendulum import GRAVITY_GAIN, MAX_TORQUE, TORQUE_GAIN, Pendulum
from doxastic.envs.tasks.sequential_test import SequentialTest
from doxastic.envs.tasks.tiger import Tiger

FloatArray = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

# Largest angle in rad at which the motor of the pendulum still holds the rod.
_HOLDS = float(np.arcsin(TORQUE_GAIN * MAX_TORQUE / GRAVITY_GAIN))


class PosteriorMoments(NamedTuple):
    """Posterior after every observation of N episodes, under the task's own noise levels."""

    mean: FloatArray
    """`[N, T, K]`."""

    variance: FloatArray
    """`[N, T, K]`."""

    noise: FloatArray
    """P(noise = level), `[N, T, L]`."""


class EpisodeFilter(NamedTuple):
    """A filter over whole episodes."""

    names: tuple[str, ...]
    """The K hidden variables it knows, among `task.hidden_names`."""

    is_exact: bool
    """Whether its posterior is exact, or that of a linearised system."""

    posterior: Callable[[Array, Array], PosteriorMoments]
    """From observations and actions to the moments.

    The observations are the task's own, that of the reset included, `[N, T, D]`, or `[N, T]` where
    they are symbols; the actions, `[N, T]` or `[N, T, A]`, are what was done after each of them.
    The last is not used.
    """


@singledispatch
def episode_filter(task: BatchedPOMDP) -> EpisodeFilter | None:
    """Return the filter of a task; None where there is none, or where it does not hold.

    Its prior: each of the task's noise levels is as likely as the others. It does not hold where a
    level is 0 (unless the system is linearised), nor for a pendulum that is not held near upright.
    """
    return None


@episode_filter.register
def _(task: SequentialTest) -> EpisodeFilter | None:
    if min(task.noise) <= 0:
        return None
    return EpisodeFilter(("sign",), True, _of_sides(SequentialTestFilter(task)))


@episode_filter.register
def _(task: Tiger) -> EpisodeFilter | None:
    if min(task.noise) <= 0:
        return None
    return EpisodeFilter(("tiger",), True, _of_sides(TigerFilter(task)))


@episode_filter.register
def _(task: LightDark) -> EpisodeFilter | None:
    if min(task.noise) <= 0:
        return None
    filtered = LightDarkFilter(task)

    def posterior(observations: Array, actions: Array) -> PosteriorMoments:
        found = filtered.posterior(observations, actions[:, :-1])
        return PosteriorMoments(found.mean[..., None], found.variance[..., None], found.noise)

    return EpisodeFilter(("y",), True, posterior)


@episode_filter.register
def _(task: NoisyBandit) -> EpisodeFilter | None:
    if min(*task.noise, task.reliable_noise) <= 0:
        return None
    return EpisodeFilter(task.hidden_names[: task.arms], True, _of_moments(BanditFilter(task)))


@episode_filter.register
def _(task: LinearGaussian) -> EpisodeFilter | None:
    if min(task.noise) <= 0:
        return None
    return EpisodeFilter(task.hidden_names[:-1], True, _of_moments(LinearGaussianFilter(task)))


@episode_filter.register
def _(task: CartPole) -> EpisodeFilter | None:
    def control(actions: Array) -> Array:
        return np.where(actions > 0, FORCE, -FORCE)[..., None]

    posterior = _of_balancer(CartPoleBalancer(task), control)
    return EpisodeFilter(task.hidden_names[:-1], False, posterior)


@episode_filter.register
def _(task: Pendulum) -> EpisodeFilter | None:
    if task.start_angle > _HOLDS:
        return None
    posterior = _of_balancer(PendulumBalancer(task), np.asarray)
    return EpisodeFilter(task.hidden_names[:-1], False, posterior)


def _of_sides(filtered: Any) -> Callable[[Array, Array], PosteriorMoments]:
    """Return the moments of a side in {-1, +1} from its probability `right`."""

    def posterior(observations: Array, actions: Array) -> PosteriorMoments:
        found = filtered.posterior(observations, actions[:, :-1])
        mean = 2 * found.right[..., None] - 1
        return PosteriorMoments(mean, 1 - mean**2, found.noise)

    return posterior


def _of_moments(filtered: Any) -> Callable[[Array, Array], PosteriorMoments]:
    def posterior(observations: Array, actions: Array) -> PosteriorMoments:
        found = filtered.posterior(observations, actions[:, :-1])
        return PosteriorMoments(found.mean, found.variance, found.noise)

    return posterior


def _of_balancer(
    balancer: Balancer, control: Callable[[Array], Array]
) -> Callable[[Array, Array], PosteriorMoments]:
    """Return the moments of a mixture of Kalman filters, linearised at the top."""

    def posterior(observations: Array, actions: Array) -> PosteriorMoments:
        mixture, controls = balancer.filter(balancer.task.noise, len(actions)), control(actions)
        steps = []
        for t in range(observations.shape[1]):
            if t > 0:
                mixture.predict(controls[:, t - 1])
            mixture.update(balancer.readings(observations[:, t]))
            variance = np.diagonal(mixture.covariance, axis1=1, axis2=2)
            steps.append((mixture.mean, variance, mixture.noise))
        return PosteriorMoments(*(np.stack(part, axis=1) for part in zip(*steps, strict=True)))

    return posterior
