"""A corridor with a cue at its start that says where to turn at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gymnasium
from array_api_compat import device

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, columns, namespace
from doxastic.envs.checks import whole
from doxastic.envs.tasks.symbols import noisy_symbols, symbol_noise_levels

FORWARD, LEFT, RIGHT = 0, 1, 2

# What is seen: the corridor, the junction, and at the start the side that is right plus 1.
CORRIDOR, JUNCTION = 0, 1
SIGHTS = 4


class TMaze(BatchedPOMDP):
    """Walk down a corridor and turn to the side that a cue at its start pointed to.

    ## Description
    The agent starts in a cell in which it sees a cue, "left" or "right". `length` steps forward is
    a junction, where turning to the side of the cue earns the reward. That asks for one bit to be
    kept for `length` steps. With noise a single look at the cue may be wrong; the agent may stay
    for another, which costs a little, and when to leave depends on how noisy its sight is, which
    it is never told. The T-maze of Bakker, "Reinforcement Learning with Long Short-Term Memory",
    2001, without a way back.

    ## Action Space
    `Discrete(3)`: 0 steps forward, 1 turns left, 2 turns right. Turning in the corridor and
    stepping forward at the junction bump into a wall: the agent stays where it is.

    ## Observation Space
    `Discrete(4)`: 0 the corridor, 1 the junction, 2 the cue "left", 3 the cue "right"; with
    probability `noise` one of the four, uniformly drawn, instead.

    ## Rewards
    `+1` for turning to the right side at the junction, `-1` for the wrong one, `-bump_cost` for
    bumping into a wall, 0 for walking. Not to have turned by step `horizon` counts as a wrong
    turn. The best return without noise is 1; `doxastic.envs.references.t_maze.solve_t_maze` has
    it for any noise.

    ## Starting State
    The cue is "left" or "right" with equal probability; the noise level is uniform over `noise`.

    ## Episode End
    Terminates with a turn at the junction or with step `horizon`. The horizon is part of the task:
    there is nothing left to bootstrap from.

    ## Arguments
    length: Steps from the start to the junction.
    bump_cost: Cost of bumping into a wall, hence of another look at the cue.
    horizon: Step by which the turn is due; `length + 20` if not given.
    noise: Probability that a sight is replaced by a uniformly drawn one, or several, one drawn for
        each episode.

    Raises:
        ValueError: If an argument is outside its range.
    """

    max_episode_steps = None
    hidden_names = ("side", "position", "noise")

    def __init__(
        self,
        *,
        length: int = 10,
        bump_cost: float = 0.02,
        horizon: int | None = None,
        noise: float | Sequence[float] = 0.0,
    ) -> None:
        self.length, self.bump_cost = whole("length", length, 1, "step"), float(bump_cost)
        if not (math.isfinite(self.bump_cost) and self.bump_cost >= 0):
            raise ValueError(f"bump_cost is {bump_cost}; expected a finite number >= 0.")
        horizon = self.length + 20 if horizon is None else horizon
        self.horizon = whole("horizon", horizon, self.length + 1, "steps, the length and the turn")
        self.noise = symbol_noise_levels(noise)
        self.reward_range = (-max(1.0, self.bump_cost), 1.0)
        self.observation_space = gymnasium.spaces.Discrete(SIGHTS)
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, n: int, random: Random) -> State:
        """Return the `"side"` (1 left, 2 right), `"position"`, `"steps"` and noise, each `[n]`."""
        u = random.uniform((n,))
        xp = namespace(u)
        zeros = xp.zeros((n,), dtype=xp.int64, device=device(u))
        return {
            "side": xp.astype(u >= 0.5, xp.int64) + LEFT,
            "position": zeros,
            "steps": zeros,
            "noise": self.draw_noise(n, random),
        }

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations; draws nothing."""
        side, position, noise = state["side"], state["position"], state["noise"]
        xp = namespace(noise)
        steps = state["steps"] + 1
        forward, at_junction = action == FORWARD, position == self.length
        terminated = (at_junction & ~forward) | (steps >= self.horizon)
        right = xp.astype(at_junction & (action == side), noise.dtype)
        bumped = xp.astype((forward == at_junction) & ~terminated, noise.dtype)
        reward = (2 * right - 1) * terminated - self.bump_cost * bumped
        position = position + (forward & ~at_junction)
        after = {"side": side, "position": position, "steps": steps, "noise": noise}
        return after, reward, terminated

    def observe(self, state: State, random: Random) -> Array:
        """Return what is seen where the agent stands, `[N]`."""
        side, position = state["side"], state["position"]
        sight = (position == 0) * (side + 1) + (position == self.length)
        return noisy_symbols(sight, SIGHTS, state["noise"], random)

    def hidden(self, state: State) -> Array:
        """Return (side to turn to: 1 left, 2 right; position; noise level), `[N, 3]`."""
        noise = state["noise"]
        xp = namespace(noise)
        entries = (xp.astype(state[name], noise.dtype) for name in ("side", "position"))
        return columns(*entries, noise)
