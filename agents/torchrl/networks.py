"""The networks of an agent as TorchRL modules: the whole policy and the whole critic."""

from __future__ import annotations

from tensordict.nn import (
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
)
from tensordict.utils import NestedKey
from torch import Tensor, nn

from doxastic.agents.agent import Agent
from doxastic.agents.policy import ActorCritic
from doxastic.agents.torchrl.memory_module import MemoryModule
from doxastic.agents.torchrl.observations import ObservationEncoder, networks


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
    """
    return ProbabilisticTensorDictSequential(
        *_feature_modules(source, observation_key), *networks(source).actor_network
    )


def value_module(
    source: ActorCritic | Agent, observation_key: NestedKey = "observation"
) -> TensorDictSequential:
    """Return the whole critic for TorchRL's value estimators: observations to `state_value`.

    It shares the parameters and the state of `source`; values are in units of the return.
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
        in_key=encoder.entries(observation_key),
        out_key="memory_features",
        encoder=encoder,
    )
    body = TensorDictModule(policy.policy_body, in_keys=["memory_features"], out_keys=["features"])
    return memory, body
