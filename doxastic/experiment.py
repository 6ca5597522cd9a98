"""One experiment as data: what to train, on what, and how to judge it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import torch

from doxastic import configuration
from doxastic.agents.config import (
    AuxiliaryConfig,
    EncoderConfig,
    EvaluationConfig,
    PolicyConfig,
    PPOConfig,
)
from doxastic.configuration import ConfigError
from doxastic.devices import check_device_name, torch_device
from doxastic.envs.make import EnvConfig
from doxastic.memory.build import MemoryConfig, build_memory

if TYPE_CHECKING:
    from doxastic.agents.policy import ActorCritic

DEFAULT_PRESET = "noisy-cartpole"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a training run; the same experiment gives the same numbers."""

    name: str = ""
    """Folder under runs/; empty: after the environment's id. A name in use gets -2, -3, ..."""
    seed: int = 0
    """Seed of the weights, the environments and the sampled actions."""
    device: str = "cpu"
    """Where the network runs: cpu, cuda, cuda:1, ..."""
    threads: int = 1
    """Threads for arithmetic on the CPU; never more than there are cores. A second one makes
    networks this small no faster, and much slower where another process wants the core."""
    total_steps: int = 500_000
    """Environment steps of the whole run, counted over all environments."""
    checkpoint_updates: int = 10
    """Updates between two checkpoints."""
    env: EnvConfig = field(default_factory=EnvConfig)
    """The environment."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """From observations to the memory's inputs."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """What the agent remembers with."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """From the memory's features to actions and values."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Proximal policy optimisation."""
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    """What the belief learns beside it."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The evaluation after training."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for values that no run can use."""
        for name in ("threads", "total_steps", "checkpoint_updates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; expected 0 or more")
        if self.name and not re.fullmatch(r"[\w.-]*\w[\w.-]*", self.name):
            raise ConfigError(
                f"name is {self.name!r}; expected letters, digits, '-', '_' and '.' only "
                "(give a whole path with --run-dir)"
            )
        # Only its name: a run trained on a GPU is also opened where there is none.
        check_device_name(self.device)

    @property
    def folder_name(self) -> str:
        """Name of the run folder: `name`, else the environment's id without odd characters."""
        return self.name or re.sub(r"[^\w.-]+", "-", self.env.id)


def from_dict(data: Mapping[str, Any]) -> Experiment:
    """Return the experiment in plain data; unknown keys and wrong types raise `ConfigError`."""
    return configuration.from_dict(Experiment, data)


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Return the experiment as plain data for YAML and JSON."""
    return configuration.to_dict(experiment)


def override(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """Return the experiment with some values replaced.

    Args:
        experiment: Where to start from.
        changes: Plain data in the shape of `to_dict`, with only the keys to change; sections
            are merged, so `{"memory": {"kind": "gru"}}` keeps the rest of `memory`.
    """
    return from_dict(configuration.merge(to_dict(experiment), changes))


def load_preset(name_or_path: str | Path) -> Experiment:
    """Return the experiment of a preset, or of a YAML file such as a run's `config.yaml`.

    Args:
        name_or_path: One of `configuration.preset_names()`, or a path that ends in `.yaml`
            or `.yml`.

    Raises:
        ConfigError: If there is no such preset or file, or its content is wrong.
    """
    data, source = configuration.read_preset(name_or_path)
    try:
        return from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def build_agent(
    experiment: Experiment,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
) -> ActorCritic:
    """Return the network with its first weights, the same for the same seed.

    Args:
        experiment: Sections `encoder`, `memory` and `policy`, the seed and the device.
        observation_space: Space of one environment's observations.
        action_space: Space of one environment's actions.

    Raises:
        ConfigError: If this machine does not have the device.
        ValueError: If a space cannot be encoded or acted in.
    """
    # Imported here: it brings TorchRL's tensordict, for which help and messages should not wait.
    from doxastic.agents.policy import ActorCritic

    with torch.random.fork_rng():
        torch.manual_seed(experiment.seed)
        memory = build_memory(experiment.memory, experiment.encoder.width)
        network = ActorCritic(
            observation_space, action_space, experiment.encoder, memory, experiment.policy
        )
    return network.to(torch_device(experiment.device))
