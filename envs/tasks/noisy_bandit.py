"""Find the best of several arms, some of which are read unreliably."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gymnasium
import numpy as np
from array_api_compat import device

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, namespace, picked
from doxastic.envs.checks import whole
from doxastic.envs.noise import noise_levels


class NoisyBandit(BatchedPOMDP):
    """Pull arms to read what they are worth, then take one.

    ## Description
    Every arm has a hidden mean. Pulling an arm costs a little and shows its mean plus Gaussian
    noise. Some arms are read reliably, the others with the noise level of the episode; neither
    which ones they are nor the level is shown. The highest reading is likely to be that of an
    unreliable arm: how much a reading is worth, and whether to pull once more, depends on how
    well the readings of an arm agree. Taking an arm ends the episode and pays its mean: best-arm
    identification with unknown variances (Audibert, Bubeck and Munos, Best arm identification in
    multi-armed bandits, 2010, is the problem with known ones). The exact posterior is in
    `doxastic.envs.references.bandit_filter`, the best policies known in
    `doxastic.envs.references.bandit_policy`.

    ## Action Space
    `Discrete(2 arms)`: i < arms pulls arm i, arms + i takes arm i.

    ## Observation Space
    `Box(-inf, inf, (1,), float32)`: the reading of the arm just pulled; 0 at the start.

    ## Rewards
    `-pull_cost` for a pull; its mean for taking an arm.

    ## Starting State
    The means are standard normal. Every arm is unreliable with probability `unreliable`; the
    noise level is uniform over `noise`.

    ## Episode End
    Terminates when an arm is taken, or with step `horizon`: a pull there takes nothing. The
    horizon is part of the task.

    ## Arguments
    arms: Number of arms, at least 2.
    pull_cost: Cost of a pull.
    horizon: Step by which an arm is to be taken.
    reliable_noise: Standard deviation of a reliable arm's readings.
    unreliable: Probability that an arm is unreliable.
    noise: Standard deviation of an unreliable arm's readings, or several, one drawn for each
        episode. Readings and means are in units of the means' standard deviation.

    Raises:
        ValueError: If an argument is outside its range.
    """

    max_episode_steps = None

    def __init__(
        self,
        *,
        arms: int = 8,
        pull_cost: float = 0.02,
        horizon: int = 30,
        reliable_noise: float = 0.1,
        unreliable: float = 0.75,
        noise: float | Sequence[float] = (2.0, 4.0),
    ) -> None:
        self.arms = whole("arms", arms, 2, "to choose from")
        self.pull_cost = float(pull_cost)
        self.horizon = whole("horizon", horizon, 1, "step")
        self.reliable_noise = float(reliable_noise)
        self.unreliable = float(unreliable)
        self.noise = noise_levels(noise)
        for name in ("pull_cost", "reliable_noise"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; expected a finite number >= 0.")
        if not 0 <= self.unreliable <= 1:
            raise ValueError(f"unreliable is {unreliable}; expected a probability, in [0, 1].")
        self.reward_range = (-math.inf, math.inf)
        self.hidden_names = (
            *(f"mean_{i}" for i in range(self.arms)),
            *(f"noise_{i}" for i in range(self.arms)),
            "noise",
        )
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2 * self.arms)

    def reset(self, n: int, random: Random) -> State:
        """Return the `"means"` and `"scales"` of the arms `[n, arms]`, and noise, and the rest.

        `"pulled"` `[n]` is the arm whose reading is due, -1 for none, and `"steps"` `[n]` those
        taken.
        """
        means = random.normal((n, self.arms))
        reliable = random.uniform((n, self.arms)) >= self.unreliable
        noise = self.draw_noise(n, random)
        xp = namespace(means)
        scales = xp.where(reliable, xp.full_like(means, self.reliable_noise), noise[:, None])
        steps = xp.zeros((n,), dtype=xp.int64, device=device(means))
        return {
            "means": means,
            "scales": scales,
            "noise": noise,
            "pulled": steps - 1,
            "steps": steps,
        }

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations; draws nothing."""
        means, steps = state["means"], state["steps"] + 1
        xp = namespace(means)
        taken = action >= self.arms
        worth = picked(means, action % self.arms)
        reward = xp.where(taken, worth, xp.full_like(worth, -self.pull_cost))
        pulled = xp.where(taken, xp.full_like(steps, -1), xp.astype(action, steps.dtype))
        following = {**state, "pulled": pulled, "steps": steps}
        return following, reward, taken | (steps >= self.horizon)

    def observe(self, state: State, random: Random) -> Array:
        """Return the reading of the arm just pulled, 0 if none was, `[N, 1]`."""
        pulled = state["pulled"]
        xp = namespace(state["means"])
        # Column -1 stands for "none" until it is masked.
        mean, scale = picked(state["means"], pulled), picked(state["scales"], pulled)
        reading = mean + scale * random.normal(mean.shape)
        return xp.where(pulled >= 0, reading, xp.zeros_like(reading))[:, None]

    def hidden(self, state: State) -> Array:
        """Return (means, noise of the arms' readings, noise level), `[N, 2 arms + 1]`."""
        xp = namespace(state["means"])
        return xp.concat([state["means"], state["scales"], state["noise"][:, None]], axis=1)
