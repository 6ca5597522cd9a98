"""Go where one sees, then to the goal; how well one sees in the dark is hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gymnasium
import numpy as np
from array_api_compat import device

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, columns, namespace
from doxastic.envs.checks import whole
from doxastic.envs.noise import noise_levels


class LightDark(BatchedPOMDP):
    """Stay close to a goal one cannot see from there, or fetch its bearing from the light first.

    ## Description
    The agent is in the plane; the goal is the origin. It knows its x, but starts at an unknown y,
    of which it gets readings that are the noisier the further it is from the light, a line of
    constant x to the side of the goal. With sharp readings it is best to stay; with poor ones, to
    go to the light and come back. How sharp they are is drawn at the start of the episode and
    never shown: it has to be inferred from how well the readings agree. After the light-dark
    domain of Platt, Tedrake, Kaelbling and Lozano-Perez (Belief space planning assuming maximum
    likelihood observations, 2010), with a reward for time at the goal, a hidden noise scale, and
    an exact x, which makes the posterior of y a mixture of Gaussians, one per level
    (`doxastic.envs.references.light_dark_filter`). The best policies known are in
    `doxastic.envs.references.light_dark_policy`.

    ## Action Space
    `Box(-1, 1, (2,), float32)`: displacement in x and y, in units of `speed`.

    ## Observation Space
    `Box(-inf, inf, (2,), float32)`: x, exactly, and y plus Gaussian noise of standard deviation
    `noise * (glow + (1 - glow) * abs(x - light) / light)`: `noise` at the goal, `glow * noise`
    at the light.

    ## Rewards
    `exp(-(x^2 + y^2) / (2 radius^2)) / horizon` after every step: an agent that is always at the
    goal returns 1.

    ## Starting State
    x is 0, y normal with mean 0 and standard deviation `spread`; the noise level is uniform over
    `noise`.

    ## Episode End
    Terminates after `horizon` steps. The horizon is part of the task.

    ## Arguments
    light: Distance from the goal to the light.
    glow: Noise at the light, as a fraction of that at the goal, in (0, 1].
    spread: Standard deviation of the first y.
    radius: Distance at which the reward has fallen to 0.61 of that at the goal.
    speed: Largest displacement in x, and in y, in a step.
    horizon: Steps of an episode.
    noise: Standard deviation of a reading at the goal, or several, one drawn for each episode.

    Lengths have no unit.

    Raises:
        ValueError: If an argument is outside its range.
    """

    max_episode_steps = None
    hidden_names = ("x", "y", "noise")

    def __init__(
        self,
        *,
        light: float = 4.0,
        glow: float = 0.05,
        spread: float = 1.0,
        radius: float = 0.25,
        speed: float = 1.0,
        horizon: int = 20,
        noise: float | Sequence[float] = (0.2, 1.0, 5.0),
    ) -> None:
        self.light = float(light)
        self.glow = float(glow)
        self.spread = float(spread)
        self.radius = float(radius)
        self.speed = float(speed)
        self.horizon = whole("horizon", horizon, 1, "step")
        self.noise = noise_levels(noise)
        for name in ("light", "glow", "spread", "radius", "speed"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; expected a finite number > 0.")
        if self.glow > 1:
            raise ValueError(f"glow is {glow}; the light is not darker than the goal: at most 1.")
        self.reward_range = (0.0, 1 / self.horizon)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def darkness(self, x: Array) -> Array:
        """Return the noise at every x as a fraction of that at the goal."""
        return self.glow + abs(x - self.light) * ((1 - self.glow) / self.light)

    def reset(self, n: int, random: Random) -> State:
        """Return the `"position"` `[n, 2]`, and noise and `"steps"` taken, `[n]` each."""
        y = self.spread * random.normal((n,))
        xp = namespace(y)
        return {
            "position": columns(xp.zeros_like(y), y),
            "noise": self.draw_noise(n, random),
            "steps": xp.zeros((n,), dtype=xp.int64, device=device(y)),
        }

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations; draws nothing."""
        position, steps = state["position"], state["steps"] + 1
        xp = namespace(position)
        position = position + self.speed * xp.astype(action, position.dtype)
        x, y = position[:, 0], position[:, 1]
        reward = xp.exp((x * x + y * y) * (-0.5 / self.radius**2)) / self.horizon
        following = {"position": position, "noise": state["noise"], "steps": steps}
        return following, reward, steps >= self.horizon

    def observe(self, state: State, random: Random) -> Array:
        """Return (x, reading of y), `[N, 2]`."""
        x, y = state["position"][:, 0], state["position"][:, 1]
        scale = state["noise"] * self.darkness(x)
        return columns(x, y + scale * random.normal(x.shape))

    def hidden(self, state: State) -> Array:
        """Return (x, y, noise level), `[N, 3]`."""
        return columns(state["position"][:, 0], state["position"][:, 1], state["noise"])
