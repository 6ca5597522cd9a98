"""Reference returns of the control tasks at every noise level, and what knowing the level is worth.

    python benchmarks/references_control.py

prints the tables of docs/envs/control.md. Three policies each: on the true level, on the posterior
over the levels, and on the one level for all that is best on average. The value of confidence is
the second minus the third. In `LinearGaussian` the first and the third are exact and the second is
the optimum up to a tiny Monte-Carlo error; in the other tasks all three are played in the real
environment and meet the same draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tyro

from doxastic.envs import Acrobot, CartPole, LinearGaussian, NumpyRandom, Pendulum
from doxastic.envs.batched import BatchedPOMDP
from doxastic.envs.references.control import Balancer, CartPoleBalancer, PendulumBalancer
from doxastic.envs.references.lqr import LinearGaussianSolution

FloatArray = npt.NDArray[np.float64]

# Levels among which a policy that ignores the noise may choose the one to assume; it chooses on
# other episodes than it is judged on.
ASSUMED = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
CHOICE_SEED, SEED = 1, 2
RANDOM_EPISODES = 500


@dataclass(frozen=True, kw_only=True)
class Options:
    """What this script can be told."""

    episodes: int = 8000
    """Episodes per noise level and policy."""


@dataclass(frozen=True, kw_only=True)
class References:
    """Returns of a task's reference policies, `[levels]`, and what they are measured against."""

    known: FloatArray
    posterior: FloatArray
    blind: FloatArray
    assumed: float
    """Level that the last of them assumes."""

    error: float
    """Standard error of the value of confidence."""

    unseeing: float
    """Return of a policy that looks at nothing: the best one, or random actions."""

    @property
    def value(self) -> float:
        """The value of confidence."""
        return float(np.mean(self.posterior - self.blind))

    @property
    def share(self) -> float:
        """The value of confidence as a share of what observing is worth."""
        return self.value / (float(np.mean(self.posterior)) - self.unseeing)


def of_linear_gaussian(task: LinearGaussian, episodes: int) -> References:
    """Return the references of a linear task; the best unseeing policy does nothing."""
    solution = LinearGaussianSolution(task)
    assumed = solution.blind_level()
    parts = np.stack(
        [solution.posterior_returns(task.noise, episodes // 4, SEED + part) for part in range(4)]
    )
    return References(
        known=np.array([solution.kalman_return(level) for level in task.noise]),
        posterior=parts.mean(0),
        blind=np.array([solution.kalman_return(level, assumed) for level in task.noise]),
        assumed=assumed,
        error=float(parts.mean(1).std(ddof=1) / 2),
        unseeing=solution.idle_return(),
    )


def of_balancer(balancer: Balancer, episodes: int) -> References:
    """Return the references of a task that is balanced near the top."""
    levels = balancer.task.noise

    def mean_return(assumed: float) -> float:
        few = episodes // 4
        returns = [balancer.returns(level, (assumed,), few, CHOICE_SEED) for level in levels]
        return float(np.mean(returns))

    assumed = max(ASSUMED, key=mean_return)
    known, posterior, blind = (
        np.stack([balancer.returns(level, among or (level,), episodes, SEED) for level in levels])
        for among in ((), levels, (assumed,))
    )
    # Levels share their draws: the mean over them is one sample per episode.
    difference = (posterior - blind).mean(0)
    return References(
        known=known.mean(1),
        posterior=posterior.mean(1),
        blind=blind.mean(1),
        assumed=assumed,
        error=float(difference.std(ddof=1) / np.sqrt(episodes)),
        unseeing=random_return(balancer.task),
    )


def random_return(task: BatchedPOMDP) -> float:
    """Return the mean return of uniformly random actions."""
    random = NumpyRandom(np.random.default_rng(SEED))
    task.action_space.seed(SEED)
    state = task.reset(RANDOM_EPISODES, random)
    total, running = np.zeros(RANDOM_EPISODES), np.ones(RANDOM_EPISODES, dtype=bool)
    for _ in range(task.max_episode_steps or 0):
        action = np.stack([task.action_space.sample() for _ in range(RANDOM_EPISODES)])
        state, reward, terminated = task.step(state, action, random)
        total += reward * running
        running &= ~terminated
    return float(total.mean())


def print_levels(name: str, levels: tuple[float, ...], found: References) -> None:
    """Print the returns of the policies at every level."""
    print(f"\n| {name} | {' | '.join(f'{level:g}' for level in levels)} | mean |")
    print("|---" * (len(levels) + 2) + "|")
    policies = {
        "level known": found.known,
        "posterior over the levels": found.posterior,
        f"level {found.assumed:.3g} assumed": found.blind,
    }
    for policy, returns in policies.items():
        values = [*returns, returns.mean()]
        print(f"| {policy} | {' | '.join(f'{value:.3f}' for value in values)} |", flush=True)


def main(options: Options) -> None:
    """Print the returns at every level, then the values of confidence."""
    linear, cart = LinearGaussian(), CartPole()
    rod = Pendulum(start_angle=0.2, start_speed=0.2)
    found = {
        "LinearGaussian": (linear, of_linear_gaussian(linear, options.episodes)),
        "CartPole": (cart, of_balancer(CartPoleBalancer(cart), options.episodes)),
        "Pendulum near upright": (rod, of_balancer(PendulumBalancer(rod), options.episodes)),
    }
    for name, (task, references) in found.items():
        print_levels(name, task.noise, references)
    print("\n| task | unseeing | posterior | one level for all | value of confidence | share |")
    print("|---|---|---|---|---|---|")
    for name, (_, r) in found.items():
        returns = " | ".join(f"{np.mean(x):.3f}" for x in (r.unseeing, r.posterior, r.blind))
        print(f"| {name} | {returns} | {r.value:.4f} +- {r.error:.1g} | {r.share:.1%} |")
    sees_all = LinearGaussianSolution(linear).seeing_return()
    print(f"\nLinearGaussian, the state itself seen: {sees_all:.3f}")
    for task in (Pendulum(), Acrobot()):
        print(f"{type(task).__name__}, random actions: {random_return(task):.3f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
