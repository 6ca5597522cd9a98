"""Episodes of an agent step by step, with its memory's features in reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from doxastic.agents.agent import Agent
from doxastic.agents.encoders import to_tensors
from doxastic.envs.gymnasium import POMDPVectorEnv
from doxastic.envs.make import EnvConfig, make_vector_env
from doxastic.memory.belief import BeliefMemory
from doxastic.memory.readouts import Belief

Array = npt.NDArray[Any]
Env = VectorEnv[Any, Any, Any]
# From the belief `[N, M]` and which episodes are under way `[N]` to the belief that is acted on.
Intervention = Callable[[Belief, Array], Belief]


class Step(NamedTuple):
    """One step of N environments."""

    running: Array
    """Whether the first episode of each is still under way, `[N]`."""

    observation: Any
    """What the agent saw, `[N, ...]`."""

    features: Tensor
    """What its memory made of it, `[N, F]`, before any intervention."""

    hidden: Array
    """The hidden state, `[N, K]`."""

    action: Array
    """What the environments were given, `[N, ...]`."""

    reward: Array
    """What came of it, `[N]`."""


def make_task_env(
    config: EnvConfig, num_envs: int, noise: tuple[float, ...] | None = None
) -> tuple[Env, POMDPVectorEnv]:
    """Return the environments, and those inside that know their hidden state.

    Raises:
        ValueError: If none do.
    """
    env: Env = make_vector_env(config, num_envs=num_envs, noise=noise)
    inner = env.unwrapped
    if isinstance(inner, POMDPVectorEnv):
        return env, inner
    env.close()
    raise ValueError(
        f"{config.id} has no hidden(): calibration compares what the agent believes with the true "
        "hidden state of every episode, which an outside environment does not tell. Use a task of "
        "doxastic (doxastic envs lists them); for returns under noise alone: doxastic evaluate."
    )


def keeps_belief(agent: Agent) -> bool:
    """Return whether the agent's memory has a mean and a variance."""
    memory = agent.policy.memory
    return isinstance(memory, BeliefMemory) and memory.readout is not None


def split_features(agent: Agent, features: Tensor) -> tuple[Tensor, Belief | None]:
    """Return the summary h `[..., C]` and the belief in a memory's features `[..., F]`.

    Of a memory without a belief, all features are its summary.
    """
    memory = agent.policy.memory
    if not isinstance(memory, BeliefMemory) or memory.readout is None:
        return features, None
    return features[..., : memory.core.feature_size], memory.belief_in(features)


@torch.no_grad()
def play(
    agent: Agent,
    config: EnvConfig,
    num_envs: int,
    seed: int,
    noise: tuple[float, ...],
    *,
    deterministic: bool = True,
    intervention: Intervention | None = None,
) -> Iterator[Step]:
    """Yield the steps of one episode in each environment, until the last has ended.

    The same actions as `run_episodes` takes from this seed. A memory's state is never touched by
    an intervention: what it changes is read by the policy in that step and forgotten.

    Args:
        agent: What acts; its observation statistics stay frozen.
        config: The environment.
        num_envs: Number of environments N.
        seed: Seed of the episodes and of actions that are drawn.
        noise: Noise levels, one of which is drawn for every episode.
        deterministic: Take the most probable action instead of a random one.
        intervention: Replaces the belief between the memory and the policy.
    """
    env, inner = make_task_env(config, num_envs, noise)
    policy, device = agent.policy, agent.device
    generator = torch.Generator(device).manual_seed(seed)
    observation, _ = env.reset(seed=seed)
    state = policy.initial_state(num_envs)
    reset = running = np.ones(num_envs, bool)
    while running.any():
        tensors = to_tensors(observation, env.single_observation_space, device)
        scaled = tensors if agent.normalizer is None else agent.normalizer(tensors)
        x = policy.encoder(scaled).unsqueeze(1)
        start = torch.from_numpy(reset).to(device).unsqueeze(1)
        features, state = policy.memory(x, state, start)
        features = features.squeeze(1)
        seen = (
            features if intervention is None else _changed(agent, features, running, intervention)
        )
        head = policy.action_head
        sampled, _ = head.sample(head(policy.policy_body(seen)), generator, deterministic)
        action, hidden = head.to_env(sampled), inner.hidden()
        following, reward, terminated, truncated, _ = env.step(action)
        yield Step(running, observation, features, hidden, action, reward)
        observation, reset = following, terminated | truncated
        running = running & ~reset


def _changed(agent: Agent, features: Tensor, running: Array, intervention: Intervention) -> Tensor:
    """Return the memory's features with another belief in them."""
    h, belief = split_features(agent, features)
    if belief is None:
        raise ValueError(
            f"{type(agent.policy.memory).__name__} keeps no belief to change; train with "
            "memory.kind: belief and a readout."
        )
    shown = intervention(belief, running).features()
    end = h.shape[-1] + shown.shape[-1]
    return torch.cat([h, shown, features[..., end:]], dim=-1)
