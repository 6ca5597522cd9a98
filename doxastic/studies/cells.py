"""A cell of a study: one agent to train and to test, named by what its numbers depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

from doxastic.experiment import Experiment, from_dict, to_dict

# What does not change the numbers of a cell.
_INCIDENTAL = ("name", "device", "threads")


class Settings(NamedTuple):
    """What the search chooses for a memory on a task."""

    learning_rate: float
    entropy: float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One agent to train and to test; the smallest piece of work of a study."""

    stage: str
    """The stage that asks for it, or `search`."""
    task: str
    """Name of the task."""
    memory: str
    """Name of the memory."""
    experiment: Experiment
    """What to train."""
    noise: tuple[float, ...] | None
    """Levels of the test; None for the environment's own noise."""
    episodes: int
    """Test episodes at each level."""
    evaluation_seed: int
    """Seed of the first of them."""

    @cached_property
    def digest(self) -> str:
        """Twelve letters that name the numbers of this cell: the same ones, the same result.

        Values that are defaults are left out, so that results outlive a field that is added.
        """
        facts = _differences(to_dict(self.experiment), to_dict(Experiment()))
        for name in _INCIDENTAL:
            facts.pop(name, None)
        if not self.experiment.evaluation.selection_episodes:
            # Where checkpoints are judged, their distance decides which of them is tested.
            facts.pop("checkpoint_updates", None)
        test = [self.noise, self.episodes, self.evaluation_seed]
        text = json.dumps([facts, test], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def settings(self) -> Settings:
        """Its learning rate and entropy coefficient."""
        ppo = self.experiment.ppo
        return Settings(ppo.learning_rate, ppo.entropy_coefficient)

    @property
    def label(self) -> str:
        """Its name in messages."""
        rate, entropy = self.settings
        return (
            f"{self.stage} / {self.task} / {self.memory} / seed {self.experiment.seed} / "
            f"lr {rate:g} / entropy {entropy:g}"
        )

    @property
    def folder(self) -> str:
        """Where it is kept below the study's folder."""
        return cell_folder(self.task, self.memory, self.experiment.seed, self.digest)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that `from_dict` reads."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**own, "experiment": to_dict(self.experiment)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cell:
        """Return the cell in plain data."""
        noise = data["noise"]
        return cls(
            **{
                **data,
                "experiment": from_dict(data["experiment"]),
                "noise": None if noise is None else tuple(noise),
            }
        )


def cell_folder(task: str, memory: str, seed: int, digest: str) -> str:
    """Return where a cell is kept below the study's folder."""
    return f"cells/{task}/{memory}/seed-{seed}-{digest}"


def _differences(data: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs from the defaults, section by section."""
    found = {}
    for key, value in data.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping) and key != "kwargs":
            value, default = _differences(value, default), {}
        if value != default:
            found[key] = value
    return found
