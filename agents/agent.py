"""A trained agent: observations in, actions out, as Stable-Baselines3's models do it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from doxastic.agents.encoders import Observation, to_tensors
from doxastic.agents.normalization import ObservationNormalizer
from doxastic.agents.policy import ActorCritic

State = tuple[np.ndarray[Any, Any], ...] | np.ndarray[Any, Any] | Tensor


class Agent:
    """Networks, the scale of their observations, and the noise of their actions.

    `predict` keeps Stable-Baselines3's contract, so its `evaluate_policy` takes an agent:

        mean_return, std = evaluate_policy(agent, vec_env, n_eval_episodes=20)

    Args:
        policy: The networks.
        normalizer: Scales observations as in training; none if training did not.
        seed: Seed of the actions where they are not deterministic.
    """

    def __init__(
        self,
        policy: ActorCritic,
        normalizer: ObservationNormalizer | None = None,
        *,
        seed: int = 0,
    ) -> None:
        self.policy = policy
        self.normalizer = normalizer
        self.set_random_seed(seed)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Observations of one environment."""
        return self.policy.observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """Actions of one environment."""
        return self.policy.action_space

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.policy.value_shift.device

    def set_random_seed(self, seed: int) -> None:
        """Seed the actions that are drawn when `deterministic` is false."""
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def initial_state(self, batch_size: int = 1) -> tuple[np.ndarray[Any, Any], ...]:
        """Return the state before anything was seen, one array `[B, S]` in a tuple."""
        return (self.policy.initial_state(batch_size).cpu().numpy(),)

    def predict(
        self,
        observation: Any,
        state: State | None = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray[Any, Any], tuple[np.ndarray[Any, Any], ...]]:
        """Return the actions and the state after these observations.

        Pass the returned state to the next call, and `episode_start` where episodes ended:
        without them the agent forgets, or remembers another episode.

        Args:
            observation: Array `[B, *shape]`, or `[*shape]` for one environment; a dict of such
                for a Dict space.
            state: What the last call returned; by default nothing was seen yet.
            episode_start: `[B]`, true where `observation` is the first of an episode: the state
                of these rows is cleared first. By default nowhere.
            deterministic: Whether to take the most probable action instead of a random one.

        Returns:
            actions: Array `[B, *action shape]`, or `[*action shape]` for one environment.
            state: One array `[B, S]` in a tuple; `B` is 1 for one environment.

        Raises:
            ValueError: If the observation is none of the space's, by its keys, its shape, a symbol
                or a number that is not finite, or the state or `episode_start` has another shape.
        """
        inputs, is_single = self._inputs(observation, state, episode_start)
        action, _, _, next_state = self.policy.act(
            *inputs, deterministic=deterministic, generator=self._generator
        )
        array = self.policy.action_head.to_env(action)
        return array.squeeze(0) if is_single else array, (next_state.cpu().numpy(),)

    @torch.no_grad()
    def belief(
        self, observation: Any, state: State | None = None, episode_start: Any = None
    ) -> Any:
        """Return the belief after these observations, a `Belief` of arrays `[B, M]`.

        Args:
            observation: As for `predict`.
            state: As for `predict`: the state before these observations.
            episode_start: As for `predict`.

        Raises:
            TypeError: If the memory has no explicit belief.
            ValueError: If it has one but its readout is `none`; and as `predict` does.
        """
        memory: Any = self.policy.memory
        if not hasattr(memory, "belief"):
            raise TypeError(
                f"{type(memory).__name__} holds no explicit belief; expected a memory with a "
                "belief method. Train with memory.kind: belief."
            )
        (tensors, rows, reset), is_single = self._inputs(observation, state, episode_start)
        x = self.policy.encoder(tensors).unsqueeze(1)
        belief, _ = memory.belief(x, rows, reset.unsqueeze(1))
        arrays = (part.squeeze(1).cpu().numpy() for part in belief)
        return type(belief)(*(array[0] if is_single else array for array in arrays))

    def _inputs(
        self, observation: Any, state: State | None, episode_start: Any
    ) -> tuple[tuple[Observation, Tensor, Tensor], bool]:
        """Return observation, state and reset as the policy takes them; was it one row?"""
        is_single, size = _batch_size(observation, self.observation_space)
        tensors = to_tensors(observation, self.observation_space, self.device)
        _check_values(tensors, self.observation_space)
        if is_single:
            tensors = _add_row(tensors)
        if self.normalizer is not None:
            tensors = self.normalizer(tensors)
        return (tensors, self._state(state, size), self._reset(episode_start, size)), is_single

    def _state(self, state: State | None, size: int) -> Tensor:
        if state is None:
            return self.policy.initial_state(size)
        array = state[0] if isinstance(state, tuple) else state
        rows = torch.as_tensor(array, dtype=torch.float32, device=self.device)
        expected = (size, self.policy.memory.state_size)
        if rows.shape != expected:
            raise ValueError(
                f"state has shape {list(rows.shape)}; expected [B, S] = {list(expected)}. Pass "
                "the state that the last call of predict returned, or None to start anew."
            )
        return rows

    def _reset(self, episode_start: Any, size: int) -> Tensor:
        if episode_start is None:
            return torch.zeros(size, dtype=torch.bool, device=self.device)
        reset = torch.as_tensor(episode_start, dtype=torch.bool, device=self.device).reshape(-1)
        if len(reset) != size:
            raise ValueError(
                f"episode_start has {len(reset)} entries; expected one for each of the "
                f"{size} observations."
            )
        return reset


def _batch_size(
    observation: Any, space: gym.Space[Any], name: str = "observation"
) -> tuple[bool, int]:
    """Return whether this is the observation of one environment, and the number of rows."""
    if isinstance(space, spaces.Dict):
        _check_keys(observation, space, name)
        sizes = {
            _batch_size(observation[key], part, f"{name}[{key!r}]")
            for key, part in space.spaces.items()
        }
        if len(sizes) > 1:
            raise ValueError(
                f"the entries of {name} have {sorted(size for _, size in sizes)} rows; "
                "expected the same number in each."
            )
        return sizes.pop()
    shape, expected = np.shape(observation), tuple(space.shape or ())
    if shape == expected:
        return True, 1
    if shape[1:] == expected and len(shape) == len(expected) + 1:
        return False, shape[0]
    raise ValueError(
        f"{name} has shape {list(shape)}; expected {list(expected)} for one environment or "
        f"[B, *{list(expected)}] for several."
    )


def _check_keys(observation: Any, space: spaces.Dict, name: str) -> None:
    expected = f"expected a dict with the keys {', '.join(space.spaces)}"
    if not isinstance(observation, dict):
        raise ValueError(
            f"{name} is {type(observation).__name__}; {expected}. From Gymnasium's reset and step "
            "take the first item."
        )
    missing = [key for key in space.spaces if key not in observation]
    if missing:
        raise ValueError(
            f"{name} has no {', '.join(map(repr, missing))}; {expected}. It has "
            f"{', '.join(map(str, observation)) or 'none'}. Pass all that the environment returns."
        )


def _check_values(observation: Any, space: gym.Space[Any], name: str = "observation") -> None:
    """Raise `ValueError` for a number that is not finite, or a symbol that the space lacks.

    The one would stay in the memory's state for good, the other read what was learned of another.
    """
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            _check_values(observation[key], part, f"{name}[{key!r}]")
        return
    array = observation.cpu().numpy()
    good = _readable(array, space)
    if good.all():
        return
    index = tuple(np.argwhere(~good)[0].tolist())
    expected = "a finite number" if array.dtype.kind == "f" else f"a symbol of {space}"
    raise ValueError(
        f"{name}{list(index) or ''} is {array[index]}; expected {expected}. Correct the "
        "environment or what changes its observations."
    )


def _readable(array: np.ndarray[Any, Any], space: gym.Space[Any]) -> np.ndarray[Any, Any]:
    """Return where the encoder can make sense of an observation."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        count = space.n if isinstance(space, spaces.Discrete) else space.nvec
        return np.asarray((array >= space.start) & (array < space.start + count))
    return np.isfinite(array)


def _add_row(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: _add_row(part) for key, part in observation.items()}
    return observation.unsqueeze(0)
