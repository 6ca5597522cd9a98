"""Observations as TorchRL stores them, on their way into a memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from tensordict.utils import NestedKey
from torch import Tensor, nn

from doxastic.agents.agent import Agent
from doxastic.agents.encoders import Observation, observation_dtype
from doxastic.agents.policy import ActorCritic


def networks(source: ActorCritic | Agent) -> ActorCritic:
    """Return the networks of an agent, or the networks themselves."""
    return source.policy if isinstance(source, Agent) else source


class ObservationEncoder(nn.Module):
    """Observations as TorchRL's Gymnasium wrapper stores them to vectors `[..., E]`.

    An agent's observations are put on the scale of its training first.

    Args:
        source: Networks, or an agent; the parameters are shared.
    """

    def __init__(self, source: ActorCritic | Agent) -> None:
        super().__init__()
        policy = networks(source)
        self.space = policy.observation_space
        self.normalizer = source.normalizer if isinstance(source, Agent) else None
        self.encoder = policy.encoder

    def entries(
        self, observation_key: NestedKey, taken: Iterable[NestedKey]
    ) -> NestedKey | dict[str, NestedKey]:
        """Return the entry of the observations, or that of each item of a Dict space.

        TorchRL's wrapper puts the items of a Dict space at the root of the TensorDict, and calls
        an item `state` `observation` unless there is one.

        Args:
            observation_key: Entry of the observations of any other space.
            taken: Entries that hold something else.

        Raises:
            ValueError: If an item of a Dict space has the name of one that is taken.
        """
        if not isinstance(self.space, spaces.Dict):
            return observation_key
        names = self.space.spaces
        renamed = {} if "observation" in names else {"state": "observation"}
        entries: dict[str, NestedKey] = {name: renamed.get(name, name) for name in names}
        clashes = [entry for entry in taken if entry in entries.values()]
        if clashes:
            raise ValueError(
                f"the observations have an item {clashes[0]!r}; expected another name, for this "
                "entry of the TensorDict holds something else. Rename the item in the environment "
                "and train again, or give MemoryModule.from_run another out_key or state_key."
            )
        return entries

    def forward(self, observation: Any) -> Tensor:
        """Return vectors `[..., E]` for observations `[..., *space.shape]`, or a dict of them.

        Raises:
            ValueError: If the observations are not of the space the networks were built for.
        """
        tensors = _checked(observation, self.space, "observation")
        if self.normalizer is not None:
            tensors = self.normalizer(tensors)
        vectors: Tensor = self.encoder(tensors)
        return vectors


def _checked(observation: Any, space: gym.Space[Any], name: str) -> Observation:
    """Return the observation in the dtypes that the encoder takes."""
    if isinstance(space, spaces.Dict):
        return {key: _checked(observation[key], part, key) for key, part in space.spaces.items()}
    shape = tuple(space.shape or ())
    if tuple(observation.shape[observation.ndim - len(shape) :]) != shape:
        raise ValueError(
            f"entry {name!r} has shape {list(observation.shape)}; expected {['...', *shape]}, "
            f"observations of {space}, which the networks were built for. Use the environment and "
            "the wrappers they were trained with, those of the run's config.yaml."
        )
    return observation.to(observation_dtype(space))
