"""Best known policies of the noisy bandit: on the exact posterior, and blind to the noise.

The dynamic program has three statistics for every arm and is out of reach. Both policies take the
arm of the largest expected mean, unless a pull is expected to be worth its cost. What nu more pulls
of an arm are worth, the best other arm having the mean b, is computed as if they came in one go
(the knowledge gradient of Frazier, Powell and Dayanik, A knowledge-gradient policy for sequential
information collection, 2008, here for the best nu) and told the arm's noise as well:

    sum_c P(c) E[max(b, m_c + d_c Z)] - max(b, sum_c P(c) m_c),
    d_c^2 = v_c^2 / (v_c + s_c^2 / nu),

over the components c of the arm's posterior, with noise s_c, mean m_c and variance v_c, and a
standard normal Z. What it gets wrong about the pulls to come is made up for by one factor of the
pull cost, found by simulation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from doxastic.envs.references.bandit_filter import (
    BanditBelief,
    BanditFilter,
    BanditPosterior,
    BanditSumsFilter,
)
from doxastic.envs.references.belief_policy import BeliefPolicy
from doxastic.envs.references.sequential_test import FloatArray
from doxastic.envs.tasks.noisy_bandit import NoisyBandit

_PULLS = (1, 2, 4, 8)
_FACTORS = (0.3, 0.5, 0.8, 1.2, 1.7, 2.3, 3.0)

# What the search compares policies with, all on the same draws.
_EPISODES_PER_LEVEL = 2_000
_SEED = 2008


class BanditPolicy(BeliefPolicy[BanditBelief]):
    """Takes the best arm unless a pull is worth more than `factor` times its cost.

    Args:
        task: The bandit; its noise levels must be positive.
        bandit_filter: The filter whose posterior it acts on.
        factor: What the pull cost is multiplied by.
    """

    def __init__(self, task: NoisyBandit, bandit_filter: BanditFilter, factor: float) -> None:
        super().__init__(task, bandit_filter)
        self.factor = factor
        self._scales = bandit_filter.scales
        self._arms, self._horizon = task.arms, task.horizon
        self._cost = factor * task.pull_cost

    def act(self, belief: BanditBelief) -> npt.NDArray[np.int64]:
        """Return the arm to pull, or to take, for every belief."""
        posterior = self.filter.read(belief)
        worth = self._worth_of_pulling(posterior)
        left = self._horizon - 1 - belief.readings.sum(1)
        pulls = (worth.max(1) > 0) & (left > 0)
        action = np.where(pulls, worth.argmax(1), self._arms + posterior.mean.argmax(1))
        return np.asarray(action, dtype=np.int64)

    def _worth_of_pulling(self, posterior: BanditPosterior) -> FloatArray:
        """Return what the best number of pulls of every arm is worth, less its cost."""
        mean = posterior.mean
        largest = np.sort(mean, axis=1)
        other = np.where(mean == largest[:, -1:], largest[:, -2:-1], largest[:, -1:])
        now = np.maximum(mean, other)
        worth = np.full(mean.shape, -np.inf)
        for pulls in _PULLS:
            variances = posterior.variances
            deviation = variances / np.sqrt(variances + self._scales**2 / pulls)
            later = _expected_maximum(posterior.means, deviation, other[..., None])
            gain = (posterior.weights * later).sum(-1) - now
            worth = np.maximum(worth, gain - pulls * self._cost)
        return worth


def solve_bandit(task: NoisyBandit) -> BanditPolicy:
    """Return the policy on the exact posterior with the factor that earned most in simulation.

    Raises:
        ValueError: If a noise level is 0.
    """
    return _best(task, BanditFilter(task))


def solve_bandit_blind(task: NoisyBandit) -> BanditPolicy:
    """Return the same for the posterior given the numbers and sums of readings alone.

    Their squares, which tell how the readings of an arm scatter, are not read.

    Raises:
        ValueError: If a noise level is 0.
    """
    return _best(task, BanditSumsFilter(task))


def _best(task: NoisyBandit, bandit_filter: BanditFilter) -> BanditPolicy:
    policies = [BanditPolicy(task, bandit_filter, factor) for factor in _FACTORS]
    returns = [p.returns(task.noise, _EPISODES_PER_LEVEL, _SEED).mean.mean() for p in policies]
    return policies[int(np.argmax(returns))]


def _expected_maximum(mean: FloatArray, deviation: FloatArray, other: FloatArray) -> FloatArray:
    """Return E[max(other, mean + deviation Z)] of a standard normal Z."""
    z = (mean - other) / deviation
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    return np.asarray(other + deviation * (density + z * ndtr(z)))
