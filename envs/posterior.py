"""Environments that show the exact posterior in place of their observations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from doxastic.envs.gymnasium import POMDPVectorEnv
from doxastic.envs.wrappers.episodic import EpisodeTransform, VectorEpisodeWrapper
from doxastic.envs.wrappers.trees import Rows

if TYPE_CHECKING:
    from doxastic.envs.references.posterior_features import PosteriorFeatures

_PREFIX = "posterior/"


class VectorPosterior(VectorEpisodeWrapper):
    """N environments of a task whose observations are features of the exact posterior.

    An agent without a memory can act on them as well as any agent can that remembers: what it
    learns is a ceiling for every belief. The observation is the float32 vector of
    `PosteriorFeatures`, then the share of the longest episode's steps that were taken.

    Args:
        env: Environments of the task, whose observations come without the previous action.
        features: Which posterior; its levels are what the agent holds possible, and may be others
            than those of `env`, at which it may be tested.
    """

    def __init__(self, env: POMDPVectorEnv, features: PosteriorFeatures) -> None:
        shape = env.single_observation_space.shape or ()
        self._posterior = _Posterior(features, env.num_envs, shape)
        self._inner = env
        super().__init__(env, self._posterior)

    def get_state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return arrays and JSON-able data from which `set_state` continues bit for bit."""
        arrays, data = self._inner.get_state()
        own = {f"{_PREFIX}{name}": value for name, value in self._posterior.arrays().items()}
        return {**arrays, **own}, data

    def set_state(self, arrays: dict[str, npt.NDArray[Any]], data: dict[str, Any]) -> None:
        """Continue from what `get_state` returned, of an environment made the same way.

        Raises:
            ValueError: If the state is that of another task, other levels or another number of
                environments.
        """
        start = len(_PREFIX)
        own = {name[start:]: value for name, value in arrays.items() if name.startswith(_PREFIX)}
        given, expected = _shapes(own), _shapes(self._posterior.arrays())
        if given != expected:
            raise ValueError(
                f"The saved posterior has arrays of shapes {given}; this environment expects "
                f"{expected}. Restore into the posterior of the same task, with the same levels of "
                "noise and the same number of environments."
            )
        self._inner.set_state({k: v for k, v in arrays.items() if k[:start] != _PREFIX}, data)
        self._posterior.restore(own)


class _Posterior(EpisodeTransform):
    """Follows the posteriors of N episodes."""

    def __init__(
        self, features: PosteriorFeatures, num_envs: int, observed: tuple[int, ...]
    ) -> None:
        self._features = features
        self._belief = features.filter.first(np.zeros((num_envs, *observed)))
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._width = len(features.names) + 1
        self.space = spaces.Box(-np.inf, np.inf, (self._width,), np.float32)

    def begin(self, rows: Rows, observation: Any) -> Any:
        """Return the posteriors after the first observations of episodes that start."""
        fresh = self._features.filter.first(observation)
        # Entries that a filter left unchanged may be shared: replace them.
        parts = [part.copy() for part in self._belief]
        for part, new in zip(parts, fresh, strict=True):
            part[rows] = new
        self._belief = type(fresh)(*parts)
        self._steps[rows] = 0
        return self._read(fresh, self._steps[rows])

    def advance(self, observation: Any, action: Any, reward: npt.NDArray[Any]) -> Any:
        """Return the posteriors after a step of all N environments."""
        self._belief = self._features.filter.following(self._belief, action, observation)
        self._steps += 1
        return self._read(self._belief, self._steps)

    def _read(self, belief: Any, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        out = np.empty((len(steps), self._width), dtype=np.float32)
        out[:, :-1] = self._features.read(belief)
        out[:, -1] = steps / self._features.horizon
        return out

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of what is known of the running episodes."""
        belief = {name: part.copy() for name, part in self._belief._asdict().items()}
        return {**belief, "elapsed": self._steps.copy()}

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Put back what `arrays` returned."""
        parts = {name: np.array(part) for name, part in arrays.items()}
        self._steps = parts.pop("elapsed")
        self._belief = self._belief._replace(**parts)


def _shapes(arrays: dict[str, npt.NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
