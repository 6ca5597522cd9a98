"""CartPole seen through noisy sensors that leave out half of the state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gymnasium
import numpy as np

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, columns, constant, namespace
from doxastic.envs.checks import whole
from doxastic.envs.noise import noise_levels
from doxastic.envs.tasks.sensors import Observed, noisy_reading, seen_entries

# Gymnasium 1.4, gymnasium/envs/classic_control/cartpole.py, SI units.
GRAVITY = 9.8
CART_MASS = 1.0
POLE_MASS = 0.1
TOTAL_MASS = CART_MASS + POLE_MASS
HALF_POLE_LENGTH = 0.5
# The pole's mass times the distance to its centre of mass, per total mass.
POLE_LEVER = POLE_MASS * HALF_POLE_LENGTH / TOTAL_MASS
FORCE = 10.0
TIME_STEP = 0.02
POSITION_LIMIT = 2.4
ANGLE_LIMIT = 12 * 2 * math.pi / 360
START_RANGE = 0.05

# Acceleration of the whole by the actions left and right.
_PUSH = (-FORCE / TOTAL_MASS, FORCE / TOTAL_MASS)

# Of (x, x_dot, theta, theta_dot); the velocities have none.
_LIMITS = (POSITION_LIMIT, math.inf, ANGLE_LIMIT, math.inf)

# Columns of (x, x_dot, theta, theta_dot) that are seen.
COLUMNS: dict[str, tuple[int, ...]] = {
    "position": (0, 2),
    "velocity": (1, 3),
    "full": (0, 1, 2, 3),
}


class CartPole(BatchedPOMDP):
    """CartPole-v1 with noisy observations of hidden scale and a return of at most 1.

    ## Description
    A pole stands on a cart that is pushed left or right. The physics are those of Gymnasium's
    CartPole-v1 (`gymnasium/envs/classic_control/cartpole.py`, Euler steps of 0.02 s, computed in
    the floating-point type of the random stream). The agent sees part of the state through
    sensors whose noise scale is drawn at the start of the episode and never shown: it has to
    infer the velocities, and how far to trust what it sees. With `observed="position"` and a
    single level this is POPGym's NoisyPositionOnlyCartPole
    (`popgym/envs/noisy_position_only_cartpole.py`). The best policy known returns .758 by default,
    and .755 if it takes the noise for .2 in every episode (`doxastic.envs.references.control`).

    ## Action Space
    `Discrete(2)`: 0 pushes the cart to the left, 1 to the right, with 10 N.

    ## Observation Space
    A float32 Box; the noise is added to the raw values, then they are clipped to the Box.

    | observed   | entries                   | bounds                                |
    |------------|---------------------------|---------------------------------------|
    | "position" | x (m), theta (rad)        | +-4.8, +-0.419 (twice the fail limits) |
    | "velocity" | x_dot (m/s), theta_dot (rad/s) | none                             |
    | "full"     | x, x_dot, theta, theta_dot | as above                             |

    ## Rewards
    `1 / horizon` for every step taken, the last one included, as in POPGym: an episode that
    lasts to the horizon returns 1.

    ## Starting State
    Every entry of (x, x_dot, theta, theta_dot) is uniform on [-0.05, 0.05]; the noise level is
    uniform over `noise`.

    ## Episode End
    Terminates when |x| > 2.4 m or |theta| > 12 degrees; is truncated after `horizon` steps.

    ## Arguments
    observed: Which part of the state is seen: "position", "velocity" or "full".
    noise: Standard deviation of the Gaussian observation noise, in the units of each entry, or
        several levels of which one is drawn for each episode.
    horizon: Steps after which the episode is truncated.

    Raises:
        ValueError: If an argument is outside its range.
    """

    hidden_names = ("x", "x_dot", "theta", "theta_dot", "noise")

    def __init__(
        self,
        *,
        observed: Observed = "position",
        noise: float | Sequence[float] = (0.0, 0.1, 0.2, 0.3),
        horizon: int = 200,
    ) -> None:
        self._columns = seen_entries(observed, COLUMNS)
        horizon = whole("horizon", horizon, 1, "step")
        self.observed = observed
        self.noise = noise_levels(noise)
        self.max_episode_steps = horizon
        self.reward_range = (1 / horizon, 1 / horizon)
        bounds = tuple(2 * _LIMITS[i] for i in self._columns)
        self._bounds = (tuple(-bound for bound in bounds), bounds)
        high = np.array(bounds, dtype=np.float32)
        self.observation_space = gymnasium.spaces.Box(-high, high, dtype=np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, n: int, random: Random) -> State:
        """Return `n` carts near the centre, `"physics"` `[n, 4]`, and their noise `[n]`."""
        physics = -START_RANGE + 2 * START_RANGE * random.uniform((n, 4))
        return {"physics": physics, "noise": self.draw_noise(n, random)}

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations after one Euler step."""
        physics = state["physics"]
        xp = namespace(physics)
        x_dot, theta, theta_dot = physics[:, 1], physics[:, 2], physics[:, 3]
        cos, sin = xp.cos(theta), xp.sin(theta)
        push = constant(_PUSH, physics)[action]
        pull = push + POLE_LEVER * (theta_dot * theta_dot) * sin
        inertia = HALF_POLE_LENGTH * (4.0 / 3.0) - POLE_LEVER * (cos * cos)
        theta_acc = (GRAVITY * sin - cos * pull) / inertia
        x_acc = pull - POLE_LEVER * theta_acc * cos
        moved = physics + TIME_STEP * columns(x_dot, x_acc, theta_dot, theta_acc)
        fallen = xp.abs(moved[:, 2]) > ANGLE_LIMIT
        terminated = (xp.abs(moved[:, 0]) > POSITION_LIMIT) | fallen
        reward = xp.empty_like(theta)
        reward[:] = self.reward_range[0]
        return {"physics": moved, "noise": state["noise"]}, reward, terminated

    def observe(self, state: State, random: Random) -> Array:
        """Return the seen entries plus noise, clipped to the space, `[N, D]`."""
        first, stride = self._columns[0], 1 if self.observed == "full" else 2
        seen = state["physics"][:, first::stride]
        return noisy_reading(seen, state["noise"], self._bounds, random)

    def hidden(self, state: State) -> Array:
        """Return (x, x_dot, theta, theta_dot, noise level), `[N, 5]`."""
        xp = namespace(state["physics"])
        return xp.concat([state["physics"], state["noise"][:, None]], axis=1)
