"""The swing-up of a two-link arm seen through noisy sensors that leave out part of the state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gymnasium
import numpy as np

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, columns, constant, namespace
from doxastic.envs.checks import whole
from doxastic.envs.noise import noise_levels
from doxastic.envs.tasks.sensors import Observed, noisy_reading, seen_entries

# Gymnasium 1.4, gymnasium/envs/classic_control/acrobot.py ("book" dynamics), SI units: two links
# of 1 kg and 1 m, centre of mass in the middle, moment of inertia 1 kg m^2.
GRAVITY = 9.8
TIME_STEP = 0.2
START_RANGE = 0.1
MAX_SPEEDS = (4 * math.pi, 9 * math.pi)
TARGET_HEIGHT = 1.0

_MAX_SPEED_ROWS = tuple((speed,) for speed in MAX_SPEEDS)

# Bounds of what is seen of (cos theta1, sin theta1, cos theta2, sin theta2, speed1, speed2).
_BOUNDS: dict[str, tuple[float, ...]] = {
    "position": (1.0,) * 4,
    "velocity": MAX_SPEEDS,
    "full": (1.0,) * 4 + MAX_SPEEDS,
}


class Acrobot(BatchedPOMDP):
    """Acrobot-v1 with noisy observations of hidden scale and a return of at least -1.

    ## Description
    Of an arm of two links only the joint between them has a motor; its free end is to be swung
    above a line. The physics are those of Gymnasium's Acrobot-v1
    (`gymnasium/envs/classic_control/acrobot.py`, one Runge-Kutta step of 0.2 s, computed in the
    floating-point type of the random stream). The agent sees part of the state through sensors
    whose noise scale is drawn at the start of the episode and never shown.

    ## Action Space
    `Discrete(3)`: a torque of -1, 0 or 1 N m on the joint between the links.

    ## Observation Space
    A float32 Box; the noise is added to the raw values, then they are clipped to the Box.

    | observed   | entries                                        | bounds               |
    |------------|------------------------------------------------|----------------------|
    | "position" | cos(theta1), sin(theta1), cos(theta2), sin(theta2) | +-1              |
    | "velocity" | theta1_dot, theta2_dot (rad/s)                 | +-4 pi, +-9 pi       |
    | "full"     | both, in this order                            | as above             |

    theta1 is the angle of the first link from hanging down, theta2 that of the second relative to
    the first.

    ## Rewards
    `-1 / horizon` for every step that does not reach the line, 0 for the one that does:
    Gymnasium's reward divided by `horizon`.

    ## Starting State
    The angles (rad) and their speeds (rad/s) are uniform on [-0.1, 0.1]; the noise level is
    uniform over `noise`.

    ## Episode End
    Terminates when the free end is above the line, -cos(theta1) - cos(theta1 + theta2) > 1; is
    truncated after `horizon` steps.

    ## Arguments
    observed: Which part of the state is seen: "position", "velocity" or "full".
    noise: Standard deviation of the Gaussian observation noise, in the units of each entry, or
        several levels of which one is drawn for each episode.
    horizon: Steps after which the episode is truncated.

    Raises:
        ValueError: If an argument is outside its range.
    """

    hidden_names = ("theta1", "theta2", "theta1_dot", "theta2_dot", "noise")

    def __init__(
        self,
        *,
        observed: Observed = "position",
        noise: float | Sequence[float] = (0.0, 0.1, 0.2, 0.3),
        horizon: int = 500,
    ) -> None:
        bounds = seen_entries(observed, _BOUNDS)
        horizon = whole("horizon", horizon, 1, "step")
        self.observed = observed
        self.noise = noise_levels(noise)
        self.max_episode_steps = horizon
        self.reward_range = (-1 / horizon, 0.0)
        self._bounds = (tuple(-bound for bound in bounds), bounds)
        high = np.array(bounds, dtype=np.float32)
        self.observation_space = gymnasium.spaces.Box(-high, high, dtype=np.float32)
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, n: int, random: Random) -> State:
        """Return `n` arms that hang almost at rest, `"physics"` `[n, 4]`, and their noise `[n]`."""
        physics = -START_RANGE + 2 * START_RANGE * random.uniform((n, 4))
        return {"physics": physics, "noise": self.draw_noise(n, random)}

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations after one Runge-Kutta step."""
        y = state["physics"].T
        xp = namespace(y)
        torque = xp.astype(action, y.dtype) - 1
        k1 = _derivative(y, torque)
        k2 = _derivative(y + (TIME_STEP / 2) * k1, torque)
        k3 = _derivative(y + (TIME_STEP / 2) * k2, torque)
        k4 = _derivative(y + TIME_STEP * k3, torque)
        moved = y + (TIME_STEP / 6) * (k1 + 2 * (k2 + k3) + k4)
        angles, speeds = moved[:2], moved[2:]
        angles = angles - (2 * math.pi) * xp.round(angles / (2 * math.pi))
        limits = constant(_MAX_SPEED_ROWS, speeds)
        speeds = xp.minimum(xp.maximum(speeds, -limits), limits)
        height = -xp.cos(angles[0]) - xp.cos(angles[0] + angles[1])
        terminated = height > TARGET_HEIGHT
        reward = xp.where(terminated, xp.zeros_like(height), self.reward_range[0])
        physics = xp.concat([angles, speeds]).T
        return {"physics": physics, "noise": state["noise"]}, reward, terminated

    def observe(self, state: State, random: Random) -> Array:
        """Return the seen entries plus noise, clipped to the space, `[N, D]`."""
        physics = state["physics"]
        xp = namespace(physics)
        seen = physics[:, 2:]
        if self.observed != "velocity":
            cos, sin = xp.cos(physics[:, :2]), xp.sin(physics[:, :2])
            seen = columns(cos[:, 0], sin[:, 0], cos[:, 1], sin[:, 1])
        if self.observed == "full":
            seen = xp.concat([seen, physics[:, 2:]], axis=1)
        return noisy_reading(seen, state["noise"], self._bounds, random)

    def hidden(self, state: State) -> Array:
        """Return (theta1, theta2, theta1_dot, theta2_dot, noise level), `[N, 5]`."""
        xp = namespace(state["physics"])
        return xp.concat([state["physics"], state["noise"][:, None]], axis=1)


def _derivative(y: Array, torque: Array) -> Array:
    """Return the derivatives of (theta1, theta2, theta1_dot, theta2_dot) by time, `[4, N]`.

    d1 and d2 are entries of the inertia matrix, phi1 and phi2 the forces of gravity and rotation
    (Sutton and Barto, 1998, section 11.3, with the numbers of the links put in).
    """
    xp = namespace(y)
    theta1, theta2, speed1, speed2 = y[0], y[1], y[2], y[3]
    cos2, sin2 = xp.cos(theta2), xp.sin(theta2)
    d1 = 3.5 + cos2
    d2 = 1.25 + 0.5 * cos2
    ratio = d2 / d1
    phi2 = (0.5 * GRAVITY) * xp.sin(theta1 + theta2)
    phi1 = (1.5 * GRAVITY) * xp.sin(theta1) + phi2 - (0.5 * speed2 + speed1) * speed2 * sin2
    force = torque + ratio * phi1 - 0.5 * (speed1 * speed1) * sin2 - phi2
    acceleration2 = force / (1.25 - ratio * d2)
    acceleration1 = -(d2 * acceleration2 + phi1) / d1
    return columns(speed1, speed2, acceleration1, acceleration2).T
