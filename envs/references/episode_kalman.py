"""Posteriors of one episode from mixtures of Kalman filters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from doxastic.envs.batched import BatchedPOMDP, State
from doxastic.envs.references.control import Balancer, CartPoleBalancer
from doxastic.envs.references.episode import EpisodeReference, FloatArray, Marginal, Moments
from doxastic.envs.references.kalman import MixtureFilter
from doxastic.envs.references.lqr import LinearGaussianSolution
from doxastic.envs.tasks.cartpole import FORCE
from doxastic.envs.tasks.linear_gaussian import LinearGaussian


class KalmanReference(EpisodeReference):
    """Reads a mixture of Kalman filters.

    Args:
        task: The task.
        names: Names of the entries of the state, with their units.
        shown: Which of them are of interest.
    """

    def __init__(self, task: BatchedPOMDP, names: Sequence[str], shown: Sequence[int]) -> None:
        super().__init__(task)
        self._names, self._shown = names, shown
        self._filter = self._start()

    @abstractmethod
    def _start(self) -> MixtureFilter: ...

    @abstractmethod
    def _readings(self, observation: FloatArray) -> FloatArray: ...

    @abstractmethod
    def _control(self, action: Any) -> FloatArray: ...

    @abstractmethod
    def _truth(self, state: State) -> FloatArray: ...

    def first(self, observation: npt.NDArray[Any]) -> None:
        """Take in the first observation."""
        self._filter = self._start()
        self._filter.update(self._readings(np.asarray(observation)[None]))

    def following(self, action: Any, observation: npt.NDArray[Any]) -> None:
        """Take in an action and the observation that followed it."""
        self._filter.predict(self._control(action))
        self._filter.update(self._readings(np.asarray(observation)[None]))

    def marginals(self, state: State) -> tuple[Marginal, ...]:
        """Return the posterior of the entries of interest, and of the noise."""
        mean, truth = self._filter.mean[0], self._truth(state)
        deviation = np.sqrt(np.diagonal(self._filter.covariance[0]))
        entries = [
            Moments(self._names[i], (self._names[i],), mean[[i]], deviation[[i]], truth[[i]])
            for i in self._shown
        ]
        return *entries, self.noise_of(self._filter.noise[0], state)


class BalancedReference(KalmanReference):
    """`CartPole`, or `Pendulum` near upright: the state, from the balancer's filter."""

    is_exact = False

    def __init__(
        self, task: BatchedPOMDP, balancer: Balancer, names: Sequence[str], shown: Sequence[int]
    ) -> None:
        self.balancer = balancer
        super().__init__(task, names, shown)

    def act(self) -> Any:
        """Return what the best known policy on the posterior would do."""
        control = self.balancer.limited(-self._filter.mean @ self.balancer.gain.T)
        return self.balancer.action(control)[0].astype(self.balancer.task.action_space.dtype)

    def _start(self) -> MixtureFilter:
        return self.balancer.filter(self.balancer.task.noise, 1)

    def _readings(self, observation: FloatArray) -> FloatArray:
        return self.balancer.readings(observation)

    def _control(self, action: Any) -> FloatArray:
        if isinstance(self.balancer, CartPoleBalancer):
            return np.array([[FORCE if action else -FORCE]])
        return np.asarray(action, dtype=np.float64)[None]

    def _truth(self, state: State) -> FloatArray:
        if isinstance(self.balancer, CartPoleBalancer):
            return np.asarray(state["physics"][0])
        return np.array([state["theta"][0], state["theta_dot"][0]])


class LinearReference(KalmanReference):
    """`LinearGaussian`: the state, from the exact filter."""

    def __init__(self, task: LinearGaussian) -> None:
        self.task, self._solution = task, LinearGaussianSolution(task)
        names = task.hidden_names[:-1]
        super().__init__(task, names, range(min(2, len(names))))

    def first(self, observation: npt.NDArray[Any]) -> None:
        """Take in the first observation."""
        super().first(observation)
        self._gains = iter(self._solution.regulator.gains)

    def act(self) -> Any:
        """Return what the best known policy on the posterior would do."""
        space = self.task.action_space
        wanted = -next(self._gains) @ self._filter.mean[0]
        return np.clip(wanted, space.low, space.high).astype(space.dtype)

    def _start(self) -> MixtureFilter:
        return MixtureFilter(self._solution.model, self.task.noise, 1)

    def _readings(self, observation: FloatArray) -> FloatArray:
        return observation

    def _control(self, action: Any) -> FloatArray:
        return np.asarray(action, dtype=np.float64)[None]

    def _truth(self, state: State) -> FloatArray:
        return np.asarray(state["x"][0])
