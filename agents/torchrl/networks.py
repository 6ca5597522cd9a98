"""The networks of an agent as TorchRL modules: the whole policy and the whole critic."""

from __future__ import annotations

import numpy as np
from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from tensordict.utils import NestedKey
from torch import Tensor, nn

from doxastic.agents.action_heads import ActionHead, NormalHead
from doxastic.agents.agent import Agent
from doxastic.agents.policy import ActorCritic
from doxastic.agents.torchrl.memory_module import MemoryModule
from doxastic.agents.torchrl.observations import ObservationEncoder, networks
from doxastic.agents.torchrl.restarts import IS_INIT

# What the modules below read and write beside the observations and the parameters of actions.
_ENTRIES = (
    "memory_state",
    IS_INIT,
    "memory_features",
    "features",
    "action",
    "log_prob",
    "state_value",
)


class _Values(nn.Module):
    """The value head in units of the return."""

    def __init__(self, policy: ActorCritic) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, features: Tensor) -> Tensor:
        return self.policy.values(features).unsqueeze(-1)


def policy_module(
    source: ActorCritic | Agent, observation_key: NestedKey = "observation"
) -> ProbabilisticTensorDictSequential:
    """Return the whole policy for TorchRL's collectors: observations to `action`, `log_prob`.

    It shares the parameters of `source`. Discrete actions are categories: wrap environments with
    `GymWrapper(env, categorical_action_encoding=True)`.

    Args:
        source: The networks, or an agent such as `doxastic.load(RUN)`, whose scale of
            observations stays what it was in training.
        observation_key: Entry of the observations; those of a Dict space are found by name.

    Raises:
        ValueError: If the environment takes actions of another form than the policy's, or an item
            of a Dict space has the name of an entry of these modules.
    """
    _check_actions(networks(source).action_head)
    return ProbabilisticTensorDictSequential(
        *_feature_modules(source, observation_key), *networks(source).actor_network
    )


def value_module(
    source: ActorCritic | Agent, observation_key: NestedKey = "observation"
) -> TensorDictSequential:
    """Return the whole critic for TorchRL's value estimators: observations to `state_value`.

    It shares the parameters and the state of `source`; values are in units of the return.

    Raises:
        ValueError: If an item of a Dict space has the name of an entry of these modules.
    """
    values = TensorDictModule(
        _Values(networks(source)), in_keys=["features"], out_keys=["state_value"]
    )
    return TensorDictSequential(*_feature_modules(source, observation_key), values)


def _feature_modules(
    source: ActorCritic | Agent, observation_key: NestedKey
) -> tuple[TensorDictModuleBase, ...]:
    policy, encoder = networks(source), ObservationEncoder(source)
    memory = MemoryModule(
        policy.memory,
        in_key=encoder.entries(observation_key, (*_ENTRIES, *policy.action_head.in_keys)),
        out_key="memory_features",
        encoder=encoder,
    )
    body = TensorDictModule(policy.policy_body, in_keys=["memory_features"], out_keys=["features"])
    return memory, body


def _check_actions(head: ActionHead) -> None:
    """Raise `ValueError` if an environment takes actions of another form than the networks give.

    TorchRL passes actions on as they are, where the agent itself has `ActionHead.to_env`.
    """
    space = head.space
    is_clipped = isinstance(head, NormalHead) and bool(
        np.isfinite([head.space.low, head.space.high]).any()
    )
    if is_clipped or np.any(getattr(space, "start", 0)) or len(space.shape or ()) > 1:
        raise ValueError(
            f"action space {space} cannot be acted in through TorchRL, which passes actions on as "
            "the networks give them; expected categories from 0, a Box with all bounds or none, "
            "and at most one dimension. Train with the environment in "
            "gymnasium.wrappers.TransformAction, or act with the agent's own predict."
        )
