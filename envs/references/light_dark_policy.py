"""Best known policies of the light-dark task: on the exact posterior, and blind to the noise.

If the level sigma is known, what readings tell of y does not depend on what they say: with the
precision P of the filter, y is known to 1 / (1 / spread^2 + P / sigma^2), and P grows by
1 / darkness(x)^2 a step. Steering y to its posterior mean then earns, a step,

    closeness(x) * radius / sqrt(radius^2 + variance(P)),

if it takes no more than a step to get there, and where to go in x is a deterministic control
problem over (t, x, P), solved for full steps in x between goal and light, on a grid over
log(1 + P). Its values at single levels bound, in the mean, every policy of such steps.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from doxastic.envs.references.belief_policy import BeliefPolicy, positive_levels
from doxastic.envs.references.light_dark_filter import (
    LightDarkBelief,
    LightDarkFilter,
    LightDarkPosterior,
    LightDarkSumsFilter,
)
from doxastic.envs.references.sequential_test import FloatArray
from doxastic.envs.tasks.light_dark import LightDark

_GRID = 400
_MOVES = np.array([-1, 0, 1])

# Value of leaving the lattice; every plan on it is worth at least 0.
_OUTSIDE = -1.0

# Keeps divisions finite; far below every quantity here.
_TINY = 1e-300

# Iterations of the mean shift; the levels' means of y are close to each other.
_MEAN_SHIFTS = 4


class LightDarkPolicy(BeliefPolicy[LightDarkBelief]):
    """The best policy known on the posterior.

    In x it takes the move that would be best if the level were told after it (QMDP; Littman,
    Cassandra and Kaelbling, Learning policies for partially observable environments, 1995): the
    levels' values, weighted by their posterior. In y it steers to where the reward of this step
    is expected to be largest.

    Args:
        task: The task.
        light_dark_filter: The filter whose posterior it acts on, the exact one if not given.

    Attributes:
        known: Best return of an agent that is told the level and moves in full steps in x, for
            each level, `[L]`, if y could be corrected within a step.

    Raises:
        ValueError: If a noise level is 0.
    """

    def __init__(self, task: LightDark, light_dark_filter: LightDarkFilter | None = None) -> None:
        super().__init__(task, light_dark_filter or LightDarkFilter(task))
        self._speed, self._radius = task.speed, task.radius
        variance = 1 / (task.spread**-2 + precisions(task) / positive_levels(task)[:, None] ** 2)
        self._plans = _Plans(task, accuracy(variance, task.radius))
        self.known = self._plans.start()

    def act(self, belief: LightDarkBelief) -> FloatArray:
        """Return the displacements `[N, 2]`, in units of the speed."""
        posterior = self.filter.read(belief)
        gains = (posterior.noise[..., None] * self._plans.at(belief)).sum(1)
        y = -self._likely(posterior) / self._speed
        return np.stack([_MOVES[gains.argmax(1)], np.clip(y, -1.0, 1.0)], axis=1)

    def _likely(self, posterior: LightDarkPosterior) -> FloatArray:
        """Return the y that maximises the expected reward here, by mean shift from the mean."""
        width = self._radius**2 + posterior.variances
        y = posterior.mean
        for _ in range(_MEAN_SHIFTS):
            share = posterior.noise * width**-1.5
            share = share * np.exp(-((posterior.means - y[:, None]) ** 2) / (2 * width)) + _TINY
            y = (share * posterior.means).sum(1) / share.sum(1)
        return y


class LightDarkPlan(BeliefPolicy[LightDarkBelief]):
    """The best plan for all episodes alike, however noisy the readings.

    A Kalman filter that takes the level for known moves in x by a plan that no reading changes,
    and steers y to a multiple of S / P, the weighted mean of the readings, that depends on P alone.
    This is the best such plan, by the same dynamic program, with the best multiple at every P: the
    one that earns most under all levels. Q, which tells the level, is not read.

    Attributes:
        planned: Its expected return if y could be corrected within a step: above its value.

    Raises:
        ValueError: If a noise level is 0.
    """

    def __init__(self, task: LightDark) -> None:
        super().__init__(task, LightDarkFilter(task))
        self._speed = task.speed
        p, noise = precisions(task), positive_levels(task)
        self._log_precision = np.log1p(p)
        multiple = np.linspace(0.0, 1.0, _GRID)[:, None]
        # Without readings, at P = 0, the only multiple is 0.
        error = noise[:, None, None] ** 2 / np.maximum(p, _TINY)
        variance = (1 - multiple) ** 2 * task.spread**2 + multiple**2 * error
        expected = accuracy(variance, task.radius).mean(0)
        self._multiple = multiple[expected.argmax(0), 0]
        self._plans = _Plans(task, expected.max(0))
        self.planned = float(self._plans.start())

    def act(self, belief: LightDarkBelief) -> FloatArray:
        """Return the displacements `[N, 2]`, in units of the speed."""
        move = _MOVES[self._plans.at(belief).argmax(1)]
        log_precision = np.log1p(belief.precision)
        multiple = np.interp(log_precision, self._log_precision, self._multiple)
        y = belief.moved + multiple * belief.weighted / belief.precision
        return np.stack([move, np.clip(-y / self._speed, -1.0, 1.0)], axis=1)


def solve_light_dark_blind(task: LightDark) -> BeliefPolicy[LightDarkBelief]:
    """Return the best policy known on n, P and S alone, without Q.

    Either the plan, or the policy on the posterior given these, whichever is worth more.

    Raises:
        ValueError: If a noise level is 0.
    """
    guessing = LightDarkPolicy(task, LightDarkSumsFilter(task))
    return max(guessing, LightDarkPlan(task), key=lambda policy: policy.value)


def accuracy(variance: npt.ArrayLike, radius: float) -> FloatArray:
    """Return E[exp(-e^2 / (2 radius^2))] of a normal error e of mean 0 and this variance."""
    return np.asarray(radius / np.sqrt(radius**2 + np.asarray(variance)))


class _Plans:
    """Values of moving in x, `gains[..., t, x, move, P]`, by what precision P is worth.

    Args:
        task: The task.
        earned: Expected `exp(-y^2 / (2 radius^2))` at every P of `precisions`, `[..., P]`.
    """

    def __init__(self, task: LightDark, earned: FloatArray) -> None:
        self._task = task
        self._step = math.log1p(precisions(task)[-1]) / (_GRID - 1)
        places = task.speed * np.arange(math.ceil(task.light / task.speed - 1e-9) + 1)
        closeness = np.exp(-((places / task.radius) ** 2) / 2) / task.horizon
        following = np.log1p(precisions(task) + task.darkness(places)[:, None] ** -2) / self._step
        index = np.minimum(following.astype(np.int64), _GRID - 2)
        share = np.minimum(following - index, 1.0)
        reached = np.arange(places.size)[:, None] + _MOVES
        outside = (reached < 0) | (reached >= places.size)
        reached = np.clip(reached, 0, places.size - 1)
        now = closeness[:, None] * earned[..., None, :]
        value = np.zeros_like(now)
        gains = []
        for _ in range(task.horizon):
            low = np.take_along_axis(value, np.broadcast_to(index, value.shape), -1)
            high = np.take_along_axis(value, np.broadcast_to(index + 1, value.shape), -1)
            arrived = now + (1 - share) * low + share * high
            gains.append(np.where(outside[..., None], _OUTSIDE, arrived[..., reached, :]))
            value = gains[-1].max(-2)
        self._gains = np.stack(gains[::-1], axis=-4)

    def at(self, belief: LightDarkBelief) -> FloatArray:
        """Return the values of the moves at N beliefs, `[N, ..., 3]`, at the nearest places."""
        x = np.rint(belief.x / self._task.speed).astype(np.int64)
        x = np.clip(x, 0, self._gains.shape[-3] - 1)
        p = np.rint(np.log1p(belief.precision) / self._step).astype(np.int64)
        picked = self._gains[..., belief.readings - 1, x, :, p]
        return np.asarray(picked)

    def start(self) -> FloatArray:
        """Return the value of the best plan from the start, after the first reading, `[...]`."""
        position = math.log1p(float(self._task.darkness(0.0)) ** -2) / self._step
        index = int(position)
        first = self._gains[..., 0, 0, :, index : index + 2].max(-2)
        return np.asarray(first[..., 0] + (position - index) * (first[..., 1] - first[..., 0]))


def precisions(task: LightDark) -> FloatArray:
    """Return the grid over P, evenly spaced in log(1 + P)."""
    largest = (task.horizon + 1) / task.glow**2
    return np.asarray(np.expm1(np.linspace(0.0, math.log1p(largest), _GRID)))
