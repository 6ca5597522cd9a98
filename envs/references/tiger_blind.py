"""The best policy of the tiger problem that ignores how good the hearing is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from doxastic.envs.references.belief_policy import BeliefPolicy, positive_levels
from doxastic.envs.references.sequential_test import FloatArray
from doxastic.envs.references.tiger import TigerBelief, TigerFilter
from doxastic.envs.tasks.tiger import LISTEN, OPEN_LEFT, OPEN_RIGHT, Tiger

# Weight of the states the policy in hand does not reach, so that they get a sensible action.
_EXPLORATION = 1e-6


class TigerBlindPolicy(BeliefPolicy[TigerBelief]):
    """The best policy found on (t, d): the step, and right minus left sounds in the round.

    Every filter that takes the accuracy q for known, whatever it takes it for, has log-odds of
    `d log((1 - q) / q)`: (t, d) is all that a policy on it can use. How many sounds it took to get
    to d, in this round and in those before, is what tells the accuracy, and is left out.

    On (t, d) the problem is not Markov: which levels are still in play depends on when the policy
    itself opens. Each sweep goes backwards over t and makes the actions at t the best given how
    the policy in hand gets there and how it goes on: no sweep lowers the return, and the fixed
    point is a policy that no change at a single t improves.

    Args:
        task: The problem; every noise level must be positive.
        sweeps: Largest number of sweeps; they end when the policy no longer changes.

    Attributes:
        value: The policy's expected return, exactly.

    Raises:
        ValueError: If a noise level is 0.
    """

    task: Tiger

    def __init__(self, task: Tiger, *, sweeps: int = 40) -> None:
        super().__init__(task, TigerFilter(task))
        self._noise = positive_levels(task)[:, None]
        # Of (t, d), d from -horizon: whether to open the door away from the leading side.
        self._opens = np.zeros((task.horizon, 2 * task.horizon + 1), dtype=np.bool_)
        never_opens = self._arrivals(self._opens)
        arrival = never_opens
        for _ in range(sweeps):
            opens, self.value = self._improved(arrival)
            if np.array_equal(opens, self._opens):
                break
            self._opens = opens
            arrival = self._arrivals(opens) + _EXPLORATION * never_opens

    def act(self, belief: TigerBelief) -> npt.NDArray[np.int64]:
        """Return the action of every belief; the posterior of the levels is not read."""
        opens = self._opens[belief.steps, belief.difference + self.task.horizon]
        other_door = np.where(belief.difference < 0, OPEN_RIGHT, OPEN_LEFT)
        return np.where(opens, other_door, LISTEN).astype(np.int64)

    def _arrivals(self, opens: npt.NDArray[np.bool_]) -> FloatArray:
        """Return the mass `[t, level, d]` of episodes at each state, the tiger being right.

        By symmetry it is at d with the tiger on the right as it is at -d with it on the left.
        """
        horizon, size = opens.shape
        q = self._noise
        mass = np.zeros((horizon, q.size, size))
        mass[0, :, horizon] = 1 / q.size
        for t in range(horizon - 1):
            listens = np.where(opens[t], 0.0, mass[t])
            mass[t + 1, :, 1:] += (1 - q) * listens[:, :-1]
            mass[t + 1, :, :-1] += q * listens[:, 1:]
            mass[t + 1, :, horizon] += (mass[t] - listens).sum(1)
        return mass

    def _improved(self, arrival: FloatArray) -> tuple[npt.NDArray[np.bool_], float]:
        """Return the best actions of every t given the arrivals, backwards, and their value."""
        task, q = self.task, self._noise
        horizon, _, size = arrival.shape
        lead = np.arange(size) - horizon
        # At d = 0 the tiger is as often behind the one door as behind the other.
        safe = np.where(lead == 0, 0.5, lead > 0)
        reward = safe * task.treasure - (1 - safe) * task.tiger_cost
        opens = np.zeros((horizon, size), dtype=np.bool_)
        value = np.zeros((q.size, size))
        for t in reversed(range(horizon)):
            padded = np.pad(value, ((0, 0), (1, 1)), mode="edge")
            listen = -task.listen_cost + (1 - q) * padded[:, 2:] + q * padded[:, :-2]
            opened = reward + value[:, horizon : horizon + 1]
            gain = (arrival[t] * (opened - listen)).sum(0)
            opens[t] = gain + gain[::-1] > 0
            value = np.where(opens[t], opened, listen)
        return opens, float(value[:, horizon].mean())
