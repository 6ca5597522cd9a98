"""Returns of random actions in every task: what an agent that learnt nothing gets.

    python benchmarks/references_random.py

prints mean and standard error of the undiscounted return, and is where docs/envs/memory.md and
docs/envs/games.md have theirs from: the first episodes of a `POMDPVectorEnv` reset with seed 0,
actions drawn uniformly from the action space by a generator of seed 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import numpy as np
import numpy.typing as npt
import tyro
from rich.console import Console
from rich.table import Table

from doxastic.envs.batched import NumpyRandom
from doxastic.envs.gymnasium import POMDPVectorEnv
from doxastic.envs.registration import TASKS, make_vector

# POPGym's Easy, Medium and Hard, where random actions fare differently in them.
ARGUMENTS: dict[str, tuple[dict[str, object], ...]] = {
    "doxastic/HigherLower-v0": ({"decks": 1}, {"decks": 2}, {"decks": 3}),
    "doxastic/Concentration-v0": tuple({"variant": name} for name in ("easy", "medium", "hard")),
    "doxastic/Battleship-v0": ({"size": 8}, {"size": 10}, {"size": 12}),
    "doxastic/MineSweeper-v0": tuple({"variant": name} for name in ("easy", "medium", "hard")),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What this script can be told."""

    episodes: int = 4000
    """Episodes of each task, played all at once."""


def random_returns(env: POMDPVectorEnv) -> npt.NDArray[np.float64]:
    """Return the return `[N]` of the first episode of every environment."""
    random = NumpyRandom(np.random.default_rng(0))
    env.reset(seed=0)
    total, running = np.zeros(env.num_envs), np.ones(env.num_envs, dtype=bool)
    while running.any():
        _, reward, terminated, truncated, _ = env.step(_actions(env, random))
        total += reward * running
        running &= ~(terminated | truncated)
    return total


def _actions(env: POMDPVectorEnv, random: NumpyRandom) -> npt.NDArray[np.generic]:
    space = env.single_action_space
    uniform = random.uniform((env.num_envs, *(space.shape or ())))
    if isinstance(space, gymnasium.spaces.Box):
        return (space.low + uniform * (space.high - space.low)).astype(space.dtype)
    choices = space.nvec if isinstance(space, gymnasium.spaces.MultiDiscrete) else space.n
    return (uniform * choices).astype(np.int64)


def main(options: Options) -> None:
    """Play and print."""
    table = Table("task", "arguments", "random actions", "standard error")
    for task in TASKS:
        for arguments in ARGUMENTS.get(task, ({},)):
            returns = random_returns(make_vector(task, options.episodes, **arguments))
            error = returns.std(ddof=1) / np.sqrt(len(returns))
            given = ", ".join(f"{name}={value}" for name, value in arguments.items())
            table.add_row(task, given, f"{returns.mean():.3f}", f"{error:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
