"""What all wrappers of observations share: one transform, for an environment and for N of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from doxastic.envs.wrappers.trees import (
    Rows,
    Space,
    batch_of_one,
    final_rows,
    row_of,
    rows_of,
    with_rows,
)

Seed = int | Sequence[int | None] | None
_FIRST_ROW = np.zeros(1, dtype=np.intp)


class EpisodeTransform(ABC):
    """A change of the observations of N environments that may remember their episodes.

    Attributes:
        space: Space of one observation after the change.
    """

    space: Space

    def seed(self, seed: Seed) -> None:  # noqa: B027
        """Start the random streams afresh, if there are any; `None` lets them go on."""

    @abstractmethod
    def begin(self, rows: Rows, observation: Any) -> Any:
        """Return the first observations of episodes that start.

        Args:
            rows: Environments whose episodes start; what was remembered of theirs is forgotten.
            observation: Batch of their observations.
        """

    @abstractmethod
    def advance(self, observation: Any, action: Any, reward: npt.NDArray[Any]) -> Any:
        """Return the observations of all N environments after a step.

        Args:
            observation: Batch of the observations; where an episode has ended, its last one.
            action: The actions that led there.
            reward: The rewards of the step, `[N]`.
        """

    def info(self) -> dict[str, npt.NDArray[Any]]:
        """Return what is told about the running episodes, arrays `[N]` by name."""
        return {}


class EpisodeWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose observations go through an `EpisodeTransform` of one environment."""

    def __init__(self, env: gymnasium.Env[Any, Any], transform: EpisodeTransform) -> None:
        super().__init__(env)
        self.transform = transform
        self.observation_space = transform.space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return the first observation of a fresh episode, and info."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.transform.seed(seed)
        batch = batch_of_one(self.env.observation_space, observation)
        return self._result(self.transform.begin(_FIRST_ROW, batch), info)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Return the step of the wrapped environment with its observation changed."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        batch = batch_of_one(self.env.observation_space, observation)
        changed = self.transform.advance(batch, np.asarray(action)[None], np.array([reward]))
        observation, info = self._result(changed, info)
        return observation, reward, terminated, truncated, info

    def _result(self, batch: Any, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        told = {name: values[0].item() for name, values in self.transform.info().items()}
        return row_of(self.observation_space, batch, 0), {**info, **told}


class VectorEpisodeWrapper(VectorWrapper[Any, Any, Any, Any, Any]):
    """A vector environment whose observations go through an `EpisodeTransform`.

    With SAME_STEP autoreset `info["final_obs"]` holds the changed last observations of the
    episodes that ended, in Gymnasium's form, an object array `[N]`; with NEXT_STEP autoreset the
    step after an end starts the next episode.

    Raises:
        ValueError: If the environment resets itself in no step, or does not say in which.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], transform: EpisodeTransform) -> None:
        super().__init__(env)
        self._mode = env.metadata.get("autoreset_mode")
        if self._mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
            raise ValueError(
                f"{type(self).__name__} needs an environment that resets itself; "
                f"metadata['autoreset_mode'] of {env} is {self._mode}. Make it with "
                "autoreset_mode=AutoresetMode.SAME_STEP or NEXT_STEP."
            )
        self.transform = transform
        self.single_observation_space = transform.space
        self.observation_space = batch_space(transform.space, env.num_envs)
        self._all = np.arange(env.num_envs)
        self._ended = np.zeros(env.num_envs, np.bool_)

    def reset(
        self, *, seed: Seed = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return the first observations of N fresh episodes, and info.

        Raises:
            ValueError: If `options` asks for a part of the environments by `"reset_mask"`.
        """
        if options and "reset_mask" in options:
            raise ValueError(
                'options["reset_mask"] is not supported: the environments reset themselves. '
                "Reset all or none."
            )
        observation, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self.transform.seed(seed)
        self._ended[:] = False
        return self.transform.begin(self._all, observation), {**info, **self._told(self._all)}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Return the step of the wrapped environments with their observations changed."""
        observation, reward, terminated, truncated, info = self.env.step(actions)
        done = np.logical_or(terminated, truncated)
        if self._mode is AutoresetMode.NEXT_STEP:
            changed = self.transform.advance(observation, actions, reward)
            changed = self._started(changed, observation, np.flatnonzero(self._ended))
            self._ended = done
        elif done.any():
            changed, ended = self._same_step(observation, actions, reward, done, info)
            info = {**info, **ended}
        else:
            changed = self.transform.advance(observation, actions, reward)
        return changed, reward, terminated, truncated, {**info, **self._told(self._all)}

    def _same_step(
        self, observation: Any, actions: Any, reward: Any, done: Any, info: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Return the observations, and the info on the episodes that ended."""
        before, after = self.env.single_observation_space, self.single_observation_space
        rows = np.flatnonzero(done)
        final = final_rows(before, info["final_obs"], rows)
        last = with_rows(before, observation, rows, final)
        changed = self.transform.advance(last, actions, reward)
        final_obs = np.full(self.num_envs, None, dtype=object)
        for row in rows:
            final_obs[row] = row_of(after, changed, int(row))
        ended: dict[str, Any] = {"final_obs": final_obs, "_final_obs": done.copy()}
        told = self._told(rows)
        if told:
            ended["final_info"] = {**info.get("final_info", {}), **told}
            ended["_final_info"] = done.copy()
        return self._started(changed, observation, rows), ended

    def _started(self, changed: Any, observation: Any, rows: Rows) -> Any:
        """Return `changed` with the first observations of the episodes that start in `rows`."""
        if rows.size == 0:
            return changed
        first = rows_of(self.env.single_observation_space, observation, rows)
        begun = self.transform.begin(rows, first)
        return with_rows(self.single_observation_space, changed, rows, begun)

    def _told(self, rows: Rows) -> dict[str, Any]:
        """Return the transform's info, valid in `rows`, in the form of a vector environment."""
        valid = np.zeros(self.num_envs, np.bool_)
        valid[rows] = True
        told: dict[str, Any] = {}
        for name, values in self.transform.info().items():
            told[name], told[f"_{name}"] = values.copy(), valid.copy()
        return told
