"""Best returns of the T-maze, with and without an eye on how noisy the sight is.

Looks at the cue are the only information about the side, and their number is the only choice:
corridor and junction say nothing about it. After n looks of which a showed "left" and b "right",
(n, a, b) is sufficient for (side, noise), and walking on earns 2 max P(side | n, a, b) - 1.

Tables hold what is expected from a state on times the probability of one sequence of sights that
leads to it, so that sums over sights and noise levels need no normalisation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from doxastic.envs.batched import NumpyRandom
from doxastic.envs.tasks.t_maze import FORWARD, LEFT, RIGHT, SIGHTS, TMaze

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class TMazeSolution(NamedTuple):
    """When to leave the cue, and what that is worth."""

    value: float
    """Expected return under the task's own distribution of noise levels."""

    leaves: BoolArray
    """Whether to walk on after n looks with a times "left" and b times "right", `[n, a, b]`."""

    def play(self, task: TMaze, *, episodes: int, seed: int) -> FloatArray:
        """Return the returns `[episodes]` of the policy in the real environment."""
        random = NumpyRandom(np.random.default_rng(seed))
        state = task.reset(episodes, random)
        outcome, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
        seen = np.zeros((3, episodes), dtype=np.int64)
        looking = running
        for _ in range(task.horizon):
            sight = task.observe(state, random)
            for row, what in enumerate((sight >= 0, sight == LEFT + 1, sight == RIGHT + 1)):
                seen[row] += what & looking
            looking = looking & ~self.leaves[tuple(seen)]
            turn = np.where(seen[1] >= seen[2], LEFT, RIGHT)
            at_junction = state["position"] == task.length
            action = np.where(looking | at_junction, turn, FORWARD)
            state, reward, ended = task.step(state, action, random)
            outcome += reward * running
            running = running & ~ended
        return outcome


def solve_t_maze(task: TMaze) -> TMazeSolution:
    """Return the optimal policy, by dynamic programming over (n, a, b)."""
    likelihood = _likelihoods(task)
    leaving = _leaving(likelihood)
    most = len(leaving) - 1
    leaves = np.ones(leaving.shape, dtype=bool)
    value = leaving[most]
    for n in reversed(range(1, most)):
        waiting = _waiting(task, likelihood[:, n], value)
        leaves[n] = leaving[n] >= waiting
        value = np.maximum(leaving[n], waiting)
    return TMazeSolution(_expected(value), leaves)


def solve_noise_blind_t_maze(task: TMaze, *, sweeps: int = 40) -> TMazeSolution:
    """Return the best policy found on the looks n and the difference a - b alone.

    It ignores how many sights were neither "left" nor "right", which tell of the noise. Each sweep
    goes backwards over n and makes the choice at n the best given how the policy in hand gets
    there and how it goes on: no sweep lowers the return.

    Args:
        task: The maze.
        sweeps: Largest number of sweeps; they end when the policy no longer changes.
    """
    likelihood = _likelihoods(task)
    leaving = _leaving(likelihood)
    most = len(leaving) - 1
    counts = np.arange(most + 1)
    difference = counts[:, None] - counts + most
    # The first sweep takes the arrivals of a policy that never leaves before it must.
    leaves = np.zeros(leaving.shape, dtype=bool)
    leaves[most] = True
    for _ in range(sweeps):
        before, arrivals = leaves.copy(), _arrivals(leaves)
        value = leaving[most]
        for n in reversed(range(1, most)):
            waiting = _waiting(task, likelihood[:, n], value)
            gain = arrivals[n] * (leaving[n] - waiting)
            leaves[n] = np.bincount(difference.ravel(), gain.ravel())[difference] >= 0
            value = np.where(leaves[n], leaving[n], waiting)
        if np.array_equal(leaves, before):
            break
    return TMazeSolution(_expected(value), leaves)


def _likelihoods(task: TMaze) -> FloatArray:
    """Return P(side, one sequence of sights with n, a, b), `[side, n, a, b]`, 0 if impossible."""
    most = task.horizon - task.length
    n, a, b = np.ogrid[: most + 1, : most + 1, : most + 1]
    neither = n - a - b
    possible = neither >= 0
    sides = np.zeros((2, most + 1, most + 1, most + 1))
    for level in task.noise:
        other = level / SIGHTS
        chance = np.power(2 * other, np.where(possible, neither, 0)) * possible
        for side, (same, wrong) in enumerate(((a, b), (b, a))):
            sides[side] += chance * (1 - 3 * other) ** same * other**wrong
    return sides / (2 * len(task.noise))


def _leaving(likelihood: FloatArray) -> FloatArray:
    """Return what walking on and turning to the likelier side earns, `[n, a, b]`."""
    return np.asarray(np.abs(likelihood[0] - likelihood[1]))


def _waiting(task: TMaze, likelihood: FloatArray, value: FloatArray) -> FloatArray:
    """Return what another look earns, `[a, b]`, given the values after it.

    Args:
        task: The maze, for its cost of bumping.
        likelihood: P(side, sights) before the look, `[side, a, b]`.
        value: Values after it, `[a, b]`.
    """
    return np.asarray(_after_a_look(value) - task.bump_cost * likelihood.sum(0))


def _expected(value: FloatArray) -> float:
    """Return the expectation over the first look, which is free, of the values after it."""
    return float(_after_a_look(value)[0, 0])


def _after_a_look(value: FloatArray) -> FloatArray:
    """Return the sum of the values over what a look may show: neither, "left" or "right"."""
    padded = np.pad(value, ((0, 1), (0, 1)))
    return np.asarray(value + padded[1:, :-1] + padded[:-1, 1:])


def _arrivals(leaves: BoolArray) -> FloatArray:
    """Return the number of sequences of sights that come to each state, `[n, a, b]`.

    Mixed with a trace of what comes there when nothing ever leaves, so that states which the
    policy in hand does not reach get a sensible choice.
    """
    arrivals = np.zeros((2, *leaves.shape))
    for kind, stays in enumerate((~leaves, np.ones_like(leaves))):
        here = np.zeros(leaves.shape[1:])
        here[0, 0] = 1.0
        for n in range(1, len(leaves)):
            padded = np.pad(here, ((1, 0), (1, 0)))
            here = here + padded[:-1, 1:] + padded[1:, :-1]
            arrivals[kind, n] = here
            here = here * stays[n]
    return np.asarray(arrivals[0] + 1e-6 * arrivals[1])
