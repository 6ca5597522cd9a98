"""The best policy of the sequential test that ignores how noisy the observations are."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.signal import fftconvolve

from doxastic.envs.references.sequential_test import FloatArray, SequentialTestSolution
from doxastic.envs.tasks.sequential_test import RIGHT, WAIT, SequentialTest

# Grid points per unit of the sum of observations: the means +-1 fall on grid points.
_POINTS_PER_UNIT = 20

# Weight of the states the policy in hand does not reach, so that they get a sensible action.
_EXPLORATION = 1e-6


def solve_noise_blind(task: SequentialTest, *, sweeps: int = 40) -> SequentialTestSolution:
    """Return the best policy found on (n, sum o) alone, and its return; remembered per task.

    The optimum on (n, sum o, sum o^2) minus this value is what confidence is worth in the task.
    Without sum o^2 the problem is no longer Markov: which noise levels are still in play at
    (n, sum o) depends on when the policy itself stops. Each sweep goes backwards over n and
    makes the actions at n the best given how the policy in hand gets there and how it goes on:
    no sweep lowers the return, and the fixed point is a policy that no change at a single n
    improves. The first sweep takes the arrival of a policy that never stops.

    Args:
        task: The test; every noise level must be positive.
        sweeps: Largest number of sweeps; they end when the policy no longer changes.

    Raises:
        ValueError: If a noise level is 0.
    """
    if min(task.noise) <= 0:
        raise ValueError(
            f"noise is {task.noise}; the dynamic program needs positive levels. Leave 0 out."
        )
    costs = task.wait_cost, task.wrong_cost, task.late_cost
    return _solve(*costs, task.horizon, task.noise, sweeps)


class _BlindPolicy(SequentialTestSolution):
    """A table of actions over n and the sum of the observations."""

    def __init__(
        self, task: SequentialTest, value: float, reach: int, actions: npt.NDArray[np.int64]
    ) -> None:
        super().__init__(task, value)
        self._reach = reach
        self._actions = actions

    def policy(
        self, count: int, total: npt.ArrayLike, squares: npt.ArrayLike
    ) -> npt.NDArray[np.int64]:
        """Return the action at every sum of `count` observations; `squares` is not read."""
        index = np.rint((np.asarray(total) + self._reach) * _POINTS_PER_UNIT).astype(np.int64)
        actions = self._actions[count - 1]
        return np.asarray(actions[np.clip(index, 0, actions.size - 1)])


@lru_cache(maxsize=32)
def _solve(
    wait_cost: float,
    wrong_cost: float,
    late_cost: float,
    horizon: int,
    noise: tuple[float, ...],
    sweeps: int,
) -> SequentialTestSolution:
    task = SequentialTest(
        wait_cost=wait_cost,
        wrong_cost=wrong_cost,
        late_cost=late_cost,
        horizon=horizon,
        noise=noise,
    )
    reach = int(horizon + 5 * max(noise) * np.sqrt(horizon))
    kernels = [_kernel(sigma) for sigma in noise]
    size = 2 * reach * _POINTS_PER_UNIT + 1
    actions = np.full((horizon, size), WAIT)
    for _ in range(sweeps):
        arrival = _arrivals(actions, kernels)
        improved, value = _improve(task, arrival, kernels)
        if np.array_equal(improved, actions):
            break
        actions = improved
    return _BlindPolicy(task, value, reach, actions)


def _kernel(sigma: float) -> FloatArray:
    """Return the distribution of sigma * epsilon over grid offsets."""
    width = int(np.ceil(8 * sigma * _POINTS_PER_UNIT))
    density = np.exp(-((np.arange(-width, width + 1) / _POINTS_PER_UNIT / sigma) ** 2) / 2)
    return np.asarray(density / density.sum())


def _arrivals(actions: npt.NDArray[np.int64], kernels: list[FloatArray]) -> FloatArray:
    """Return the mass `[n, sigma, sum]` of s = +1 episodes that come to each state.

    Mixed with a trace of what arrives when nothing ever stops.
    """
    horizon, size = actions.shape
    mass = np.zeros((horizon, 2, len(kernels), size))
    for k, kernel in enumerate(kernels):
        for never_stops in (0, 1):
            here = np.zeros(size)
            here[size // 2] = 1.0
            for n in range(horizon):
                here = _moved(here, kernel, 1)
                mass[n, never_stops, k] = here
                here = here if never_stops else here * (actions[n] == WAIT)
    return np.asarray((1 - _EXPLORATION) * mass[:, 0] + _EXPLORATION * mass[:, 1])


def _improve(
    task: SequentialTest, arrival: FloatArray, kernels: list[FloatArray]
) -> tuple[npt.NDArray[np.int64], float]:
    """Return the best action of every n given the arrivals, backwards, and the policy's value.

    By symmetry an episode with s = -1 and sum A is one with s = +1 and sum -A.
    """
    horizon, levels, size = arrival.shape
    actions = np.full((horizon, size), WAIT)
    waiting = np.full((levels, size), -task.late_cost)
    for n in reversed(range(horizon)):
        here = arrival[n]
        right = here.sum(0)
        wrong = right[::-1]
        gain_right = right - task.wrong_cost * wrong
        gain_wait = (here * waiting).sum(0)
        gain_wait = gain_wait + gain_wait[::-1]
        # In the order of the actions: wait, left, right.
        gains = np.stack([gain_wait, gain_right[::-1], gain_right])
        actions[n] = gains.argmax(0)
        value = np.where(actions[n] == RIGHT, 1.0, -task.wrong_cost)
        value = np.where(actions[n] == WAIT, waiting, value)
        waiting = np.stack(
            [-task.wait_cost + _moved(v, k, -1) for v, k in zip(value, kernels, strict=True)]
        )
    start = waiting[:, size // 2] + task.wait_cost
    return actions, float(start.mean())


def _moved(values: FloatArray, kernel: FloatArray, direction: int) -> FloatArray:
    """Return `values` after one observation: mass forwards (1), expectations backwards (-1)."""
    width = kernel.size // 2 + _POINTS_PER_UNIT
    padding = "constant" if direction == 1 else "edge"
    padded = np.pad(values, width, mode=padding)  # type: ignore[call-overload]
    smooth = fftconvolve(padded, kernel, mode="same")
    start = width - direction * _POINTS_PER_UNIT
    return np.asarray(smooth[start : start + values.size])
