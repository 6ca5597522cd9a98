"""The swing-up of a pendulum seen through noisy sensors that leave out part of the state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gymnasium
import numpy as np

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, columns, namespace
from doxastic.envs.checks import whole
from doxastic.envs.noise import noise_levels
from doxastic.envs.tasks.sensors import Observed, noisy_reading, seen_entries

# Gymnasium 1.4, gymnasium/envs/classic_control/pendulum.py, SI units; a rod of 1 kg and 1 m.
GRAVITY = 10.0
MAX_SPEED = 8.0
MAX_TORQUE = 2.0
TIME_STEP = 0.05
# Accelerations 3 g / (2 l) sin(theta) and 3 / (m l^2) torque.
GRAVITY_GAIN = 1.5 * GRAVITY
TORQUE_GAIN = 3.0
# Cost of a step: theta^2 + SPEED_COST theta_dot^2 + TORQUE_COST torque^2.
SPEED_COST = 0.1
TORQUE_COST = 0.001
HALF_COST_RANGE = (math.pi**2 + SPEED_COST * MAX_SPEED**2 + TORQUE_COST * MAX_TORQUE**2) / 2

# Bounds of what is seen of (cos theta, sin theta, theta_dot).
_BOUNDS: dict[str, tuple[float, ...]] = {
    "position": (1.0, 1.0),
    "velocity": (MAX_SPEED,),
    "full": (1.0, 1.0, MAX_SPEED),
}


class Pendulum(BatchedPOMDP):
    """Pendulum-v1 with noisy observations of hidden scale and a return between -1 and 1.

    ## Description
    A rod hangs from a motor too weak to lift it at once: it has to be swung up and held there.
    The physics are those of Gymnasium's Pendulum-v1
    (`gymnasium/envs/classic_control/pendulum.py`, steps of 0.05 s, computed in the floating-point
    type of the random stream; the angle is kept in [-pi, pi)). The agent sees part of the state
    through sensors whose noise scale is drawn at the start of the episode and never shown. With
    `observed="position"` and a single level this is POPGym's NoisyPositionOnlyPendulum
    (`popgym/envs/noisy_position_only_pendulum.py`). Near upright, with `start_angle=0.2` and
    `start_speed=0.2`, the best policy known returns .716, and less than .001 less if it takes the
    noise for .15 in every episode (`doxastic.envs.references.control`).

    ## Action Space
    `Box(-2, 2, (1,), float32)`: the motor's torque in N m.

    ## Observation Space
    A float32 Box; the noise is added to the raw values, then they are clipped to the Box.

    | observed   | entries                                  | bounds         |
    |------------|------------------------------------------|----------------|
    | "position" | cos(theta), sin(theta)                   | +-1            |
    | "velocity" | theta_dot (rad/s)                        | +-8            |
    | "full"     | cos(theta), sin(theta), theta_dot        | +-1, +-1, +-8  |

    ## Rewards
    As in POPGym, Gymnasium's reward `-(theta^2 + 0.1 theta_dot^2 + 0.001 torque^2)` before the
    step, moved and scaled from [-16.27, 0] to [-1, 1] and divided by `horizon`: an episode
    upright and at rest returns 1.

    ## Starting State
    theta (0 is upright) is uniform on [-start_angle, start_angle], theta_dot on
    [-start_speed, start_speed]; the noise level is uniform over `noise`.

    ## Episode End
    Never terminates; is truncated after `horizon` steps.

    ## Arguments
    observed: Which part of the state is seen: "position", "velocity" or "full".
    noise: Standard deviation of the Gaussian observation noise, in the units of each entry, or
        several levels of which one is drawn for each episode.
    start_angle: Largest starting angle in rad; pi for Gymnasium's swing-up, less for balancing.
    start_speed: Largest starting speed in rad/s.
    horizon: Steps after which the episode is truncated.

    Raises:
        ValueError: If an argument is outside its range.
    """

    hidden_names = ("theta", "theta_dot", "noise")

    def __init__(
        self,
        *,
        observed: Observed = "position",
        noise: float | Sequence[float] = (0.0, 0.1, 0.2, 0.3),
        start_angle: float = math.pi,
        start_speed: float = 1.0,
        horizon: int = 200,
    ) -> None:
        bounds = seen_entries(observed, _BOUNDS)
        if not 0 <= start_angle <= math.pi:
            raise ValueError(f"start_angle is {start_angle}; expected 0 to pi rad.")
        if not 0 <= start_speed <= MAX_SPEED:
            raise ValueError(f"start_speed is {start_speed}; expected 0 to {MAX_SPEED} rad/s.")
        horizon = whole("horizon", horizon, 1, "step")
        self.observed = observed
        self.noise = noise_levels(noise)
        self.start_angle = float(start_angle)
        self.start_speed = float(start_speed)
        self.max_episode_steps = horizon
        self.reward_range = (-1 / horizon, 1 / horizon)
        self._cost_scale = 1 / (HALF_COST_RANGE * horizon)
        self._bounds = (tuple(-bound for bound in bounds), bounds)
        high = np.array(bounds, dtype=np.float32)
        self.observation_space = gymnasium.spaces.Box(-high, high, dtype=np.float32)
        self.action_space = gymnasium.spaces.Box(-MAX_TORQUE, MAX_TORQUE, (1,), np.float32)

    def reset(self, n: int, random: Random) -> State:
        """Return `"theta"`, `"theta_dot"` and `"noise"`, each `[n]`."""
        u = 2 * random.uniform((n, 2)) - 1
        return {
            "theta": self.start_angle * u[:, 0],
            "theta_dot": self.start_speed * u[:, 1],
            "noise": self.draw_noise(n, random),
        }

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and terminations that are all false."""
        theta, theta_dot = state["theta"], state["theta_dot"]
        xp = namespace(theta)
        torque = xp.astype(action[:, 0], theta.dtype)
        cost = theta * theta + SPEED_COST * (theta_dot * theta_dot)
        cost = cost + TORQUE_COST * (torque * torque)
        reward = self.reward_range[1] - self._cost_scale * cost
        acceleration = GRAVITY_GAIN * xp.sin(theta) + TORQUE_GAIN * torque
        speed = theta_dot + TIME_STEP * acceleration
        speed = xp.minimum(xp.maximum(speed, -MAX_SPEED), MAX_SPEED)
        moved = theta + TIME_STEP * speed
        wrapped = (moved + math.pi) % (2 * math.pi) - math.pi
        terminated = xp.zeros_like(theta, dtype=xp.bool)
        return {"theta": wrapped, "theta_dot": speed, "noise": state["noise"]}, reward, terminated

    def observe(self, state: State, random: Random) -> Array:
        """Return the seen entries plus noise, clipped to the space, `[N, D]`."""
        theta, theta_dot = state["theta"], state["theta_dot"]
        xp = namespace(theta)
        if self.observed == "velocity":
            seen = theta_dot[:, None]
        elif self.observed == "position":
            seen = columns(xp.cos(theta), xp.sin(theta))
        else:
            seen = columns(xp.cos(theta), xp.sin(theta), theta_dot)
        return noisy_reading(seen, state["noise"], self._bounds, random)

    def hidden(self, state: State) -> Array:
        """Return (theta, theta_dot, noise level), `[N, 3]`."""
        return columns(state["theta"], state["theta_dot"], state["noise"])
