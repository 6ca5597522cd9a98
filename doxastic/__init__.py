"""Reinforcement-learning agents that act on an explicit belief.

The names below are imported on first use, so that `import doxastic` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from doxastic.agents.agent import Agent
    from doxastic.agents.evaluation import Evaluation, evaluate
    from doxastic.envs.make import EnvConfig, make_vector_env
    from doxastic.experiment import Experiment, load_preset
    from doxastic.exports import export
    from doxastic.kernels.moments import weighted_moments
    from doxastic.kernels.wkv7 import wkv7, wkv7_step
    from doxastic.memory.base import Memory
    from doxastic.memory.belief import BeliefMemory
    from doxastic.memory.build import MemoryConfig, build_memory
    from doxastic.memory.readouts import Belief
    from doxastic.runs import RunFolder
    from doxastic.training import load, train

__version__ = "0.1.0"

_MODULE_OF = {
    "Agent": "agents.agent",
    "Belief": "memory.readouts",
    "BeliefMemory": "memory.belief",
    "EnvConfig": "envs.make",
    "Evaluation": "agents.evaluation",
    "Experiment": "experiment",
    "Memory": "memory.base",
    "MemoryConfig": "memory.build",
    "RunFolder": "runs",
    "build_memory": "memory.build",
    "evaluate": "agents.evaluation",
    "export": "exports",
    "load": "training",
    "load_preset": "experiment",
    "make_vector_env": "envs.make",
    "train": "training",
    "weighted_moments": "kernels.moments",
    "wkv7": "kernels.wkv7",
    "wkv7_step": "kernels.wkv7",
}

__all__ = [
    "Agent",
    "Belief",
    "BeliefMemory",
    "EnvConfig",
    "Evaluation",
    "Experiment",
    "Memory",
    "MemoryConfig",
    "RunFolder",
    "__version__",
    "build_memory",
    "evaluate",
    "export",
    "load",
    "load_preset",
    "make_vector_env",
    "train",
    "weighted_moments",
    "wkv7",
    "wkv7_step",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'doxastic' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"doxastic.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
