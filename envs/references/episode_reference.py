"""Which reference a task has for one running episode."""

from __future__ import annotations

from functools import singledispatch

import numpy as np

from doxastic.envs.batched import BatchedPOMDP
from doxastic.envs.references.bandit_filter import BanditFilter
from doxastic.envs.references.control import CartPoleBalancer, PendulumBalancer
from doxastic.envs.references.episode import EpisodeReference
from doxastic.envs.references.episode_filters import (
    BanditReference,
    LightDarkReference,
    RepeatFirstReference,
    SequentialTestReference,
    TigerReference,
)
from doxastic.envs.references.episode_kalman import BalancedReference, LinearReference
from doxastic.envs.references.light_dark_filter import LightDarkFilter
from doxastic.envs.references.tiger import TigerFilter
from doxastic.envs.tasks.cards import DECK
from doxastic.envs.tasks.cartpole import CartPole
from doxastic.envs.tasks.light_dark import LightDark
from doxastic.envs.tasks.linear_gaussian import LinearGaussian
from doxastic.envs.tasks.noisy_bandit import NoisyBandit
from doxastic.envs.tasks.pendulum import GRAVITY_GAIN, MAX_TORQUE, TORQUE_GAIN, Pendulum
from doxastic.envs.tasks.repeat_first import RepeatFirst
from doxastic.envs.tasks.sequential_test import SequentialTest
from doxastic.envs.tasks.tiger import Tiger

# Largest angle in rad at which the motor of the pendulum still holds the rod.
_HOLDS = float(np.arcsin(TORQUE_GAIN * MAX_TORQUE / GRAVITY_GAIN))


@singledispatch
def episode_reference(task: BatchedPOMDP) -> EpisodeReference | None:
    """Return the reference of a task for one episode; None where there is none.

    There is none for a task without an exact filter, and where the filter does not hold: a noise
    level of 0 in most of them, a pendulum that is not held near upright.
    """
    return None


@episode_reference.register
def _(task: SequentialTest) -> EpisodeReference | None:
    return SequentialTestReference(task) if min(task.noise) > 0 else None


@episode_reference.register
def _(task: Tiger) -> EpisodeReference | None:
    return TigerReference(task, TigerFilter(task)) if min(task.noise) > 0 else None


@episode_reference.register
def _(task: LightDark) -> EpisodeReference | None:
    return LightDarkReference(task, LightDarkFilter(task)) if min(task.noise) > 0 else None


@episode_reference.register
def _(task: NoisyBandit) -> EpisodeReference | None:
    is_noisy = min(*task.noise, task.reliable_noise) > 0
    return BanditReference(task, BanditFilter(task)) if is_noisy else None


@episode_reference.register
def _(task: RepeatFirst) -> EpisodeReference | None:
    # The sums over more cards are beyond double precision.
    return RepeatFirstReference(task) if task.cards == DECK else None


@episode_reference.register
def _(task: CartPole) -> EpisodeReference | None:
    names = ("position (m)", "speed (m/s)", "pole angle (rad)", "pole speed (rad/s)")
    return BalancedReference(task, CartPoleBalancer(task), names, (2, 3))


@episode_reference.register
def _(task: Pendulum) -> EpisodeReference | None:
    if task.start_angle > _HOLDS:
        return None
    return BalancedReference(task, PendulumBalancer(task), ("angle (rad)", "speed (rad/s)"), (0, 1))


@episode_reference.register
def _(task: LinearGaussian) -> EpisodeReference | None:
    return LinearReference(task)
