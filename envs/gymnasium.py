"""A `BatchedPOMDP` as a Gymnasium environment and as a vector environment."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from doxastic.envs.batched import BatchedPOMDP, NumpyRandom, State
from doxastic.envs.noisy_task import NoisyTask
from doxastic.envs.observations import ObservationLayout
from doxastic.envs.rendering import Frame, check_render_mode, frame, metadata

# float32 vectors, or the int64 symbols of a Discrete or MultiDiscrete space.
Observation = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]


class POMDPEnv(gymnasium.Env[Observation, Any]):
    """One environment over a batched task.

    From the same seed it goes through the same episodes as a `POMDPVectorEnv` of one. The
    episode's noise level is in `info["noise"]`, the hidden state behind `hidden()`.

    Args:
        pomdp: The task.
        previous_action: Whether the observation is a float32 vector that also carries the
            previous action and a flag for the start of an episode, `[o, previous action, start]`,
            with symbols one-hot.
        render_mode: "rgb_array" if `render` is to draw.

    Raises:
        ValueError: If there is no such render mode.
    """

    def __init__(
        self,
        pomdp: BatchedPOMDP,
        *,
        previous_action: bool = True,
        render_mode: str | None = None,
    ) -> None:
        self.metadata = metadata(pomdp)
        self.render_mode = check_render_mode(render_mode)
        self.pomdp = pomdp
        self.previous_action = previous_action
        self._layout = ObservationLayout(pomdp, previous_action)
        self.observation_space = self._layout.space
        self.action_space = pomdp.action_space
        self._step_random: NumpyRandom | None = None
        self._state: State | None = None
        self._elapsed = 0
        self._ended = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Return the first observation of a fresh episode and its noise level."""
        super().reset(seed=seed)
        if seed is not None or self._step_random is None:
            self._step_random = NumpyRandom(self.np_random.spawn(1)[0])
        random = NumpyRandom(self.np_random)
        self._state = self.pomdp.reset(1, random)
        self._elapsed, self._ended = 0, False
        return self._layout.first(self.pomdp.observe(self._state, random))[0], self._info()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Return observation, reward, terminated, truncated and info after one action.

        Raises:
            ResetNeeded: If the episode has not started or has ended.
            ValueError: If the action is outside the action space.
        """
        if self._state is None or self._step_random is None or self._ended:
            what = "has ended" if self._ended else "has not started"
            raise ResetNeeded(f"step was called on an episode that {what}; call reset() first.")
        actions = self._layout.checked_action(action)
        self._state, reward, terminated = self.pomdp.step(self._state, actions, self._step_random)
        o = self.pomdp.observe(self._state, self._step_random)
        self._elapsed += 1
        ended, limit = bool(terminated[0]), self.pomdp.max_episode_steps
        truncated = limit is not None and self._elapsed >= limit and not ended
        self._ended = ended or truncated
        observation = self._layout.following(o, actions)[0]
        return observation, float(reward[0]), ended, truncated, self._info()

    def render(self) -> Frame | None:
        """Return a picture of the true state, uint8 `[H, W, 3]`; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._state is None:
            raise ResetNeeded("There is nothing to draw before the first reset().")
        return frame(self.pomdp, self._state)

    def hidden(self) -> npt.NDArray[Any]:
        """Return the hidden state of the task, `[len(pomdp.hidden_names)]`."""
        if self._state is None:
            raise ResetNeeded("There is no hidden state before the first reset().")
        return np.array(self.pomdp.hidden(self._state)[0])

    def _info(self) -> dict[str, Any]:
        assert self._state is not None
        return {"noise": float(self._state["noise"][0])}


class POMDPVectorEnv(VectorEnv[Observation, npt.NDArray[Any], npt.NDArray[Any]]):
    """N environments over a batched task, stepped at once, with same-step autoreset.

    There are two random streams. What a reset draws, the first observation included, comes from
    `np_random` and only for the environments that start; dynamics and observation noise come
    from a second stream in draws of size N at every step, so that the noise environment i meets
    at step t does not depend on when the others ended, nor on the noise levels.

    When episodes end, `info["final_obs"]` holds their last observations and
    `info["final_info"]["noise"]` `[N]` their noise levels, valid where `info["_final_obs"]` and
    `info["_final_info"]` `[N]` are true; everything else already belongs to the episodes that
    start. Every returned array is fresh: it is never written to again, and writing to it does
    no harm.

    Args:
        pomdp: The task.
        num_envs: Number of environments N.
        previous_action: Whether the observation is a float32 vector that also carries the
            previous action and a flag for the start of an episode, `[o, previous action, start]`,
            with symbols one-hot.
        render_mode: "rgb_array" if `render` is to draw.

    Raises:
        ValueError: If there is no environment, or no such render mode.
    """

    # Gymnasium's own vector environments have it as an attribute too; TorchRL reads that one.
    autoreset_mode = AutoresetMode.SAME_STEP

    def __init__(
        self,
        pomdp: BatchedPOMDP,
        num_envs: int,
        *,
        previous_action: bool = True,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; expected at least 1 environment.")
        self.metadata = {**metadata(pomdp), "autoreset_mode": self.autoreset_mode}
        self.render_mode = check_render_mode(render_mode)
        self.pomdp = pomdp
        self.num_envs = num_envs
        self._layout = ObservationLayout(pomdp, previous_action)
        self.single_observation_space = self._layout.space
        self.single_action_space = pomdp.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._limit = pomdp.max_episode_steps or np.iinfo(np.int64).max
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._every = np.ones(num_envs, dtype=np.bool_)
        self._step_random: NumpyRandom | None = None
        self._state: State | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Return the first observations of N fresh episodes and their noise levels.

        Raises:
            ValueError: If `options` asks for a part of the environments by `"reset_mask"`:
                environments reset themselves in the step that ends their episode.
        """
        if options and "reset_mask" in options:
            raise ValueError(
                'options["reset_mask"] is not supported: autoreset is SAME_STEP, an environment '
                "resets itself in the step that ends its episode. Reset all or none."
            )
        super().reset(seed=seed)
        if seed is not None or self._step_random is None:
            self._step_random = NumpyRandom(self.np_random.spawn(1)[0])
        random = NumpyRandom(self.np_random)
        self._state = self.pomdp.reset(self.num_envs, random)
        self._elapsed[:] = 0
        return self._layout.first(self.pomdp.observe(self._state, random)), self._info()

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[Observation, npt.NDArray[np.float64], BoolArray, BoolArray, dict[str, Any]]:
        """Return observations, rewards, terminations, truncations and info of N environments.

        Raises:
            ResetNeeded: If `reset` was never called.
            ValueError: If the actions are not N elements of the action space.
        """
        if self._state is None or self._step_random is None:
            raise ResetNeeded("step was called before the first reset(); call reset() first.")
        actions = self._layout.checked_actions(actions, self.num_envs)
        self._state, reward, terminated = self.pomdp.step(self._state, actions, self._step_random)
        o = self.pomdp.observe(self._state, self._step_random)
        observation = self._layout.following(o, actions)
        self._elapsed += 1
        truncated = self._elapsed >= self._limit
        truncated &= ~terminated
        done = terminated | truncated
        info = self._autoreset(observation, done) if np.count_nonzero(done) else self._info()
        return observation, np.asarray(reward, dtype=np.float64), terminated, truncated, info

    def render(self) -> tuple[Frame, ...] | None:
        """Return a picture of every environment's true state; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._state is None:
            raise ResetNeeded("There is nothing to draw before the first reset().")
        state = self._state
        return tuple(frame(self.pomdp, state, row) for row in range(self.num_envs))

    def hidden(self) -> npt.NDArray[Any]:
        """Return the hidden states `[N, len(pomdp.hidden_names)]` of the running episodes."""
        if self._state is None:
            raise ResetNeeded("There is no hidden state before the first reset().")
        return np.array(self.pomdp.hidden(self._state))

    def get_state(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Return arrays and JSON-able data from which `set_state` continues bit for bit."""
        if self._state is None or self._step_random is None:
            raise ResetNeeded("There is no state to save before the first reset().")
        arrays = {f"state/{name}": array.copy() for name, array in self._state.items()}
        arrays["elapsed"] = self._elapsed.copy()
        data = {
            "task": _name(self.pomdp),
            "reset_random": copy.deepcopy(self.np_random.bit_generator.state),
            "step_random": copy.deepcopy(self._step_random.generator.bit_generator.state),
        }
        return arrays, data

    def set_state(self, arrays: dict[str, npt.NDArray[Any]], data: dict[str, Any]) -> None:
        """Continue from what `get_state` returned, of an environment made the same way.

        Raises:
            ValueError: If the state is that of another task or number of environments.
        """
        # States that were saved before they named their task are known by their shapes alone.
        own = _name(self.pomdp)
        saved = data.get("task", own)
        if saved != own:
            raise ValueError(
                f"The saved state is of the task {saved}; this environment has {own}. "
                "Restore into the same task with the same number of environments."
            )
        expected = self.pomdp.reset(self.num_envs, NumpyRandom(np.random.default_rng(0)))
        shapes = {f"state/{name}": array.shape for name, array in expected.items()}
        shapes["elapsed"] = (self.num_envs,)
        given = {name: array.shape for name, array in arrays.items()}
        if given != shapes:
            raise ValueError(
                f"The saved state has arrays of shapes {given}; this environment expects "
                f"{shapes}. Restore into the same task with the same number of environments."
            )
        self._state = {name: np.array(arrays[f"state/{name}"]) for name in expected}
        self._elapsed = np.array(arrays["elapsed"], dtype=np.int64)
        self.np_random.bit_generator.state = data["reset_random"]
        generator = np.random.default_rng(0)
        generator.bit_generator.state = data["step_random"]
        self._step_random = NumpyRandom(generator)

    def _info(self) -> dict[str, Any]:
        assert self._state is not None
        return {"noise": self._state["noise"].copy(), "_noise": self._every.copy()}

    def _autoreset(self, observation: Observation, done: BoolArray) -> dict[str, Any]:
        """Start the episodes of the `done` rows, in place in `observation`; return the info."""
        assert self._state is not None
        rows = done.nonzero()[0]
        random = NumpyRandom(self.np_random)
        fresh = self.pomdp.reset(rows.size, random)
        ended = {
            "final_obs": observation.copy(),
            "_final_obs": done,
            "final_info": {"noise": self._state["noise"].copy(), "_noise": done.copy()},
            "_final_info": done.copy(),
        }
        # Entries that a step left unchanged are shared with the state before it: replace them.
        state = {name: array.copy() for name, array in self._state.items()}
        for name, array in state.items():
            array[rows] = fresh[name]
        self._state = state
        self._elapsed[rows] = 0
        observation[rows] = self._layout.first(self.pomdp.observe(fresh, random))
        return {**self._info(), **ended}


def _name(pomdp: BatchedPOMDP) -> str:
    """Return what a saved state calls a task: its class, and the noise it is seen through."""
    if isinstance(pomdp, NoisyTask):
        return f"{_name(pomdp.task)} with {pomdp.kind} noise"
    return type(pomdp).__name__
