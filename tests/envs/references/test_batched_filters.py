"""Posteriors along many episodes at once: the same as step by step in each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from doxastic.envs.batched import BatchedPOMDP, NumpyRandom
from doxastic.envs.noisy_task import NoisyTask
from doxastic.envs.references.batched_filters import episode_filter
from doxastic.envs.references.episode import Moments
from doxastic.envs.references.episode_reference import episode_reference
from doxastic.envs.tasks.cartpole import CartPole
from doxastic.envs.tasks.light_dark import LightDark
from doxastic.envs.tasks.linear_gaussian import LinearGaussian
from doxastic.envs.tasks.noisy_bandit import NoisyBandit
from doxastic.envs.tasks.pendulum import Pendulum
from doxastic.envs.tasks.repeat_previous import RepeatPrevious
from doxastic.envs.tasks.sequential_test import SequentialTest
from doxastic.envs.tasks.tiger import Tiger

TASKS = [
    SequentialTest(variant="hard"),
    Tiger(),
    LightDark(),
    NoisyBandit(arms=3),
    LinearGaussian(),
    CartPole(noise=(0.05, 0.1)),
    Pendulum(start_angle=0.2, start_speed=0.1, noise=(0.05, 0.1)),
]


def _name(task: Any) -> str:
    return type(task).__name__


def _episodes(task: BatchedPOMDP, n: int, steps: int) -> tuple[Any, Any, list[Any]]:
    """Return observations and actions of random episodes, `[N, T, ...]`, and the true states."""
    random, space = NumpyRandom(np.random.default_rng(0)), task.action_space
    space.seed(0)
    state = task.reset(n, random)
    observations, actions, states = [task.observe(state, random)], [], [state]
    for _ in range(steps):
        action = np.stack([space.sample() for _ in range(n)])
        state, _, _ = task.step(state, action, random)
        actions.append(action)
        observations.append(task.observe(state, random))
        states.append(state)
    actions.append(actions[-1])
    return np.stack(observations, 1), np.stack(actions, 1), states


@pytest.mark.parametrize("task", TASKS, ids=_name)
def test_many_episodes_have_the_posterior_of_each_alone(task: BatchedPOMDP) -> None:
    observations, actions, states = _episodes(task, 3, 6)
    found, known = episode_filter(task), episode_reference(task)
    assert found is not None and known is not None and found.is_exact == known.is_exact
    posterior = found.posterior(observations, actions)
    assert posterior.mean.shape == posterior.variance.shape == (3, 7, len(found.names))
    for row in range(3):
        for t, state in enumerate(states):
            if t == 0:
                known.first(observations[row, 0])
            else:
                known.following(actions[row, t - 1], observations[row, t])
            own = {name: array[row : row + 1] for name, array in state.items()}
            *marginals, noise = known.marginals(own)
            np.testing.assert_allclose(posterior.noise[row, t], noise.probability, atol=1e-9)
            mean, variance = _moments(marginals[0])
            columns = _columns(task, len(mean))
            np.testing.assert_allclose(posterior.mean[row, t, columns], mean, atol=1e-8)
            np.testing.assert_allclose(posterior.variance[row, t, columns], variance, atol=1e-8)


def _moments(marginal: Any) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(marginal, Moments):
        return marginal.mean, marginal.deviation**2
    mean = np.array([marginal.probability @ [-1.0, 1.0]])
    return mean, 1 - mean**2


def _columns(task: BatchedPOMDP, size: int) -> list[int]:
    """Return the columns of the first marginal: the angle of a cart-pole is the third."""
    return [2] if isinstance(task, CartPole) else list(range(size))


@pytest.mark.parametrize("task", TASKS, ids=_name)
def test_the_names_are_those_of_hidden_variables(task: BatchedPOMDP) -> None:
    found = episode_filter(task)
    assert found is not None and set(found.names) <= set(task.hidden_names)
    assert "noise" not in found.names


@pytest.mark.parametrize(
    "task",
    [
        RepeatPrevious(),
        SequentialTest(noise=(0.0, 1.0)),
        Tiger(noise=0.0),
        LightDark(noise=0.0),
        NoisyBandit(noise=0.0),
        LinearGaussian(noise=0.0),
        Pendulum(),
        NoisyTask(CartPole(noise=0.0), (0.5,), "flicker"),
    ],
    ids=_name,
)
def test_there_is_no_filter_where_none_holds(task: BatchedPOMDP) -> None:
    assert episode_filter(task) is None
