"""What returns are measured against: random actions below, the best policy known above."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from doxastic.agents.collector import EnvironmentFailure, check_autoreset
from doxastic.envs.batched import BatchedPOMDP
from doxastic.envs.make import EnvConfig, make_vector_env
from doxastic.envs.references.bandit_policy import solve_bandit
from doxastic.envs.references.confidence import Policy
from doxastic.envs.references.control import Balancer, CartPoleBalancer, PendulumBalancer
from doxastic.envs.references.light_dark_policy import LightDarkPolicy
from doxastic.envs.references.lqr import LinearGaussianSolution
from doxastic.envs.references.sequential_test import solve_sequential_test
from doxastic.envs.references.tiger import solve_tiger
from doxastic.envs.registration import TASKS, make_task
from doxastic.envs.tasks.cartpole import CartPole
from doxastic.envs.tasks.light_dark import LightDark
from doxastic.envs.tasks.linear_gaussian import LinearGaussian
from doxastic.envs.tasks.noisy_bandit import NoisyBandit
from doxastic.envs.tasks.pendulum import Pendulum
from doxastic.envs.tasks.sequential_test import SequentialTest
from doxastic.envs.tasks.tiger import Tiger

FloatArray = npt.NDArray[np.float64]

# The motor of the pendulum can hold the rod up to this angle, in rad: beyond it nobody has solved
# the task under noise.
_HELD_ANGLE = 0.41
# Standard errors of some thousandths at the noisiest level of the confidence group, less elsewhere.
_EPISODES, _CONTROL_EPISODES = 100_000, 8_000
_RANDOM_EPISODES, _RANDOM_SINGLE_EPISODES = 4096, 256
_MAX_STEPS = 100_000


def has_reference(config: EnvConfig) -> bool:
    """Return whether `reference_returns` knows a policy for the environment."""
    task = _task(config)
    if isinstance(task, SequentialTest | Tiger | LightDark | NoisyBandit):
        return min(task.noise) > 0
    if isinstance(task, Pendulum):
        return task.start_angle < _HELD_ANGLE
    return isinstance(task, LinearGaussian | CartPole)


def reference_returns(
    config: EnvConfig, levels: Sequence[float], seed: int
) -> tuple[FloatArray, float]:
    """Return what the best policy known gets at each level of noise, and over those of training.

    It acts on the exact posterior (Gaussian in the two tasks that are balanced) under the
    distribution of noise that agents are trained on, also where it is tested on other levels. It
    is the optimum over the training's levels in SequentialTest, Tiger and LinearGaussian, and the
    best known in the rest; at a single level a policy may do better, at the cost of another.

    Args:
        config: The environment as agents are trained in it.
        levels: Levels of the test.
        seed: Seed of the episodes that are played.

    Raises:
        ValueError: If no policy is known for the environment.
    """
    task = _task(config)
    if task is None or not has_reference(config):
        raise ValueError(f"No best policy is known for {config.id} with {config.kwargs}.")
    if isinstance(task, LinearGaussian):
        solution = LinearGaussianSolution(task)
        trained = solution.posterior_returns(task.noise, _CONTROL_EPISODES, seed)
        tested = solution.posterior_returns(levels, _CONTROL_EPISODES, seed)
        return tested, float(trained.mean())
    if isinstance(task, CartPole | Pendulum):
        trained, tested = (_balanced(task, noise, seed) for noise in (task.noise, levels))
        return tested, float(trained.mean())
    assert isinstance(task, SequentialTest | Tiger | LightDark | NoisyBandit)
    policy = _solved(task)
    return policy.returns(levels, _EPISODES, seed).mean, policy.value


def random_return(config: EnvConfig, seed: int) -> float:
    """Return the mean return of actions drawn uniformly, which no noise of the sensors changes.

    Raises:
        EnvironmentFailure: If an episode does not end.
    """
    own = config.id in TASKS
    env = make_vector_env(config, num_envs=_RANDOM_EPISODES if own else _RANDOM_SINGLE_EPISODES)
    try:
        env.action_space.seed(seed)
        env.reset(seed=seed)
        total, running = np.zeros(env.num_envs), np.ones(env.num_envs, bool)
        for _ in range(_MAX_STEPS):
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total += np.where(running, reward, 0.0)
            running &= ~(terminated | truncated)
            if not running.any():
                return float(total.mean())
        raise EnvironmentFailure(
            f"{check_autoreset(env)} did not end its episodes within {_MAX_STEPS} steps."
        )
    finally:
        env.close()


def _task(config: EnvConfig) -> BatchedPOMDP | None:
    """Return the task with the noise of the training, None if it is an outside environment."""
    if config.id not in TASKS or config.noise_kind != "gaussian":
        return None
    arguments = dict(config.kwargs)
    if config.noise is not None:
        arguments["noise"] = config.noise
    return make_task(config.id, **arguments)


def _balanced(task: CartPole | Pendulum, levels: Sequence[float], seed: int) -> FloatArray:
    """Return the returns `[levels]` of balancing on the posterior over the task's own levels."""
    balancer: Balancer
    balancer = CartPoleBalancer(task) if isinstance(task, CartPole) else PendulumBalancer(task)
    played = [balancer.returns(level, task.noise, _CONTROL_EPISODES, seed) for level in levels]
    return np.stack(played).mean(1)


def _solved(task: SequentialTest | Tiger | LightDark | NoisyBandit) -> Policy:
    if isinstance(task, SequentialTest):
        return solve_sequential_test(task)
    if isinstance(task, Tiger):
        return solve_tiger(task)
    return LightDarkPolicy(task) if isinstance(task, LightDark) else solve_bandit(task)
