"""Best known returns of CartPole and of Pendulum near upright: Kalman filter and linear feedback.

Upright, both are nearly linear. The filter moves its means by the task's own dynamics and its
covariances by the linearisation at the top; the feedback is the stationary optimum of a quadratic
cost. None of this is exact: clipped readings are taken as they are, the torque is limited, the push
has two values only. What is stated is what these policies return in the real environment.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from doxastic.envs.batched import BatchedPOMDP, NumpyRandom
from doxastic.envs.references.kalman import LinearModel, MixtureFilter
from doxastic.envs.references.lqr import solve_regulator
from doxastic.envs.tasks import cartpole, pendulum
from doxastic.envs.tasks.cartpole import CartPole
from doxastic.envs.tasks.pendulum import Pendulum

FloatArray = npt.NDArray[np.float64]

# Steps after which the optimal feedback no longer changes, 20 s or 50 s.
_LONG = 1000
# Variance per step that stands for what the linearisation leaves out.
_REMAINDER = 1e-6


class Balancer(ABC):
    """Balances N copies of a task on the mean of a Kalman filter.

    Args:
        task: The task.
        model: Its linearisation at the top; sensors that show nothing there are left out.
        gain: The feedback u = -K x, `[1, D]`.
    """

    def __init__(self, task: BatchedPOMDP, model: LinearModel, gain: FloatArray) -> None:
        self.task, self.model, self.gain = task, model, gain

    def returns(
        self, level: float, assumed: Sequence[float], episodes: int, seed: int
    ) -> FloatArray:
        """Return the returns `[episodes]` at a noise level.

        Args:
            level: True noise level.
            assumed: Levels among which the filter believes it to be: the true one alone for who
                knows it, all of the task for the posterior.
            episodes: Episodes, played all at once.
            seed: Seed of the environment; levels meet the same draws.
        """
        random = NumpyRandom(np.random.default_rng(seed))
        state = self.task.reset(episodes, random)
        state["noise"] = np.full(episodes, level)
        posterior = self.filter(assumed, episodes)
        total, running = np.zeros(episodes), np.ones(episodes, dtype=bool)
        for _ in range(self.task.max_episode_steps or 0):
            posterior.update(self.readings(self.task.observe(state, random)))
            control = self.limited(-posterior.mean @ self.gain.T)
            state, reward, terminated = self.task.step(state, self.action(control), random)
            posterior.predict(control)
            total += reward * running
            running &= ~terminated
        return total

    def filter(self, levels: Sequence[float], n: int) -> MixtureFilter:
        """Return the posterior over `n` copies before their first observation."""
        return MixtureFilter(self.model, levels, n, move=self._move)

    def _move(self, mean: FloatArray, control: FloatArray) -> FloatArray:
        """Return the means `[N, L, D]` after a step of the task itself."""
        n, count, size = mean.shape
        moved = self._moved(mean.reshape(n * count, size), np.repeat(control, count, axis=0))
        return moved.reshape(mean.shape)

    @abstractmethod
    def readings(self, observation: FloatArray) -> FloatArray:
        """Return the entries of an observation that the model explains, `[N, O]`."""

    @abstractmethod
    def limited(self, control: FloatArray) -> FloatArray:
        """Return what can be done of what the feedback wants, `[N, 1]`."""

    @abstractmethod
    def action(self, control: FloatArray) -> npt.NDArray[Any]:
        """Return the task's actions."""

    @abstractmethod
    def _moved(self, mean: FloatArray, control: FloatArray) -> FloatArray:
        """Return states `[M, D]` after a step under controls `[M, 1]`."""


class CartPoleBalancer(Balancer):
    """Pushes a cart-pole to the side to which the optimal feedback points."""

    def __init__(self, task: CartPole) -> None:
        lever, dt = cartpole.POLE_LEVER, cartpole.TIME_STEP
        inertia = cartpole.HALF_POLE_LENGTH * 4 / 3 - lever
        # Per rad, and per N.
        theta_acc = np.array([cartpole.GRAVITY, -1 / cartpole.TOTAL_MASS]) / inertia
        x_acc = np.array([0, 1 / cartpole.TOTAL_MASS]) - lever * theta_acc
        dynamics, control = np.eye(4), np.zeros((4, 1))
        dynamics[[0, 2], [1, 3]] = dt
        dynamics[[1, 3], 2] = dt * x_acc[0], dt * theta_acc[0]
        control[[1, 3], 0] = dt * x_acc[1], dt * theta_acc[1]
        seen = np.eye(4)[list(cartpole.COLUMNS[task.observed])]
        start = np.full(4, cartpole.START_RANGE**2 / 3)
        model = _model(dynamics, control, seen, start)
        # A tenth of the way to the fall costs as much as the whole way off the track: the best
        # weights of a few that were tried.
        weights = [(0.1 / cartpole.POSITION_LIMIT) ** 2, 0, 1 / cartpole.ANGLE_LIMIT**2, 0]
        super().__init__(task, model, _stationary_gain(model, np.diag(weights), 0.01))

    def readings(self, observation: FloatArray) -> FloatArray:
        """Return all entries, `[N, O]`."""
        return observation

    def limited(self, control: FloatArray) -> FloatArray:
        """Return the full force to the side that is wanted."""
        return np.where(control > 0, cartpole.FORCE, -cartpole.FORCE)

    def action(self, control: FloatArray) -> npt.NDArray[Any]:
        """Return 0 for a push to the left, 1 for one to the right, `[N]`."""
        return (control[:, 0] > 0).astype(np.int64)

    def _moved(self, mean: FloatArray, control: FloatArray) -> FloatArray:
        state = {"physics": mean, "noise": np.zeros(len(mean))}
        return np.asarray(self.task.step(state, self.action(control), _UNUSED)[0]["physics"])


class PendulumBalancer(Balancer):
    """Holds up a pendulum that starts within the 0.41 rad that its motor can hold."""

    def __init__(self, task: Pendulum) -> None:
        dt = pendulum.TIME_STEP
        speed = np.array([dt * pendulum.GRAVITY_GAIN, 1, dt * pendulum.TORQUE_GAIN])
        # The new speed moves the angle.
        angle = np.array([1, 0, 0]) + dt * speed
        dynamics, control = np.split(np.stack([angle, speed]), [2], axis=1)
        # Of (cos, sin, speed), to first order cos shows nothing and sin the angle.
        self._seen = {"position": [1], "velocity": [0], "full": [1, 2]}[task.observed]
        rows = {"position": [0], "velocity": [1], "full": [0, 1]}[task.observed]
        start = np.array([task.start_angle, task.start_speed]) ** 2 / 3
        model = _model(dynamics, control, np.eye(2)[rows], start)
        cost = np.diag([1.0, pendulum.SPEED_COST])
        super().__init__(task, model, _stationary_gain(model, cost, pendulum.TORQUE_COST))

    def readings(self, observation: FloatArray) -> FloatArray:
        """Return sin and speed, as far as they are seen; cos shows nothing upright."""
        return observation[:, self._seen]

    def limited(self, control: FloatArray) -> FloatArray:
        """Return the torque within what the motor can do."""
        return np.clip(control, -pendulum.MAX_TORQUE, pendulum.MAX_TORQUE)

    def action(self, control: FloatArray) -> npt.NDArray[Any]:
        """Return the torques, `[N, 1]`."""
        return control

    def _moved(self, mean: FloatArray, control: FloatArray) -> FloatArray:
        state = {"theta": mean[:, 0], "theta_dot": mean[:, 1], "noise": np.zeros(len(mean))}
        moved = self.task.step(state, control, _UNUSED)[0]
        return np.stack([moved["theta"], moved["theta_dot"]], axis=1)


# The steps of both tasks draw nothing.
_UNUSED = NumpyRandom(np.random.default_rng(0))


def _model(
    dynamics: FloatArray, control: FloatArray, observation: FloatArray, start: FloatArray
) -> LinearModel:
    """Return a linearisation with what it leaves out as a small disturbance."""
    remainder = _REMAINDER * np.eye(dynamics.shape[0])
    return LinearModel(dynamics, control, remainder, observation, np.diag(start))


def _stationary_gain(model: LinearModel, state_cost: FloatArray, action_cost: float) -> FloatArray:
    """Return the feedback that is optimal for ever, `[1, D]`."""
    cost = np.array([[action_cost]])
    regulator = solve_regulator(model.dynamics, model.control, state_cost, cost, _LONG)
    return np.asarray(regulator.gains[0])
