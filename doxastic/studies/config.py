"""A study as data: tasks, memories, seeds, search, stages; read from a YAML preset."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doxastic import configuration
from doxastic.configuration import ConfigError, unknown

_PACKAGE = "doxastic.configs.studies"

MIN_SEEDS = 3
"""Fewer seeds give no interval."""

MIN_EPISODES = 200
"""Fewer evaluation episodes leave noise as large as the differences between memories."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task: how agents are trained on it, and where they are tested."""

    preset: str = ""
    """Preset of `doxastic train` to start from; empty for the defaults."""

    settings: dict[str, Any] = field(default_factory=dict)
    """What to replace in it: any fields of an experiment but its seed, device and threads."""

    noise: tuple[float, ...] | None = None
    """Levels of the test, those of training among them; None for the noise the environment has
    by itself."""

    episodes: int = 1000
    """Test episodes at each level."""

    seeds: int | None = None
    """How many of a stage's seeds the task takes; None for all."""

    stages: tuple[str, ...] | None = None
    """Stages the task takes part in; None for all."""

    settings_of: str | None = None
    """Task whose search decides the settings here too; None for a search of its own."""

    best: float | None = None
    """Best known return over the levels of training, where `envs/references` has none."""

    random: float | None = None
    """Return of random actions; None measures it."""

    source: str = ""
    """Where `best` is from."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for values that no study can use."""
        if self.episodes < MIN_EPISODES:
            raise ConfigError(
                f"episodes is {self.episodes}; expected at least {MIN_EPISODES}, or the noise of "
                "the evaluation hides the differences"
            )
        if self.noise is not None and (not self.noise or min(self.noise) < 0):
            raise ConfigError(f"noise is {list(self.noise)}; expected levels of at least 0")
        if self.noise is not None and list(self.noise) != sorted(set(self.noise)):
            raise ConfigError(f"noise is {list(self.noise)}; expected ascending levels")
        if self.best is not None and not self.source:
            raise ConfigError("best is given without source; say whose return it is")
        if self.seeds is not None and self.seeds < MIN_SEEDS:
            raise ConfigError(f"seeds is {self.seeds}; an interval needs at least {MIN_SEEDS}")
        forbidden = {"seed", "device", "threads", "name"} & set(self.settings)
        if forbidden:
            raise ConfigError(f"settings holds {', '.join(sorted(forbidden))}; the study sets it")


@dataclass(frozen=True, kw_only=True)
class MemoryEntry:
    """One memory under comparison."""

    settings: dict[str, Any] = field(default_factory=dict)
    """What it replaces in every task's experiment, such as `memory: {kind: gru}`."""

    tasks: tuple[str, ...] | None = None
    """Tasks it takes part in; None for all."""

    matched: bool = True
    """Whether its size is chosen to give as many parameters as the reference has."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The same small search for every memory and task, before anything is compared."""

    learning_rates: tuple[float, ...]
    """Values of ppo.learning_rate."""

    entropies: tuple[float, ...]
    """Values of ppo.entropy_coefficient."""

    seeds: tuple[int, ...]
    """Seeds of the search, none of them of a stage."""

    budget: float = 1.0
    """Share of the task's training steps."""

    episodes: int = 1000
    """Episodes at each level of training that judge a setting; others than those of the test."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for an empty search."""
        for name in ("learning_rates", "entropies", "seeds"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; expected at least one value")
        _check_budget(self.budget)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Which memories are trained for how long, on which seeds."""

    name: str
    """Name of the stage, for results and report."""

    seeds: tuple[int, ...]
    """Seeds of training; the same for all memories."""

    budget: float = 1.0
    """Share of the task's training steps."""

    memories: tuple[str, ...] | None = None
    """Memories that take part; None for all."""

    most_episodes: int | None = None
    """Most test episodes at each level, where a task has more; None for the task's."""

    best_of: tuple[str, ...] = ()
    """Memories of which the best of the stage before takes part as well."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for too few seeds."""
        if len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds is {list(self.seeds)}; expected different ones")
        if len(self.seeds) < MIN_SEEDS:
            raise ConfigError(
                f"seeds has {len(self.seeds)} of them; an interval over seeds needs at least "
                f"{MIN_SEEDS}"
            )
        if self.most_episodes is not None and self.most_episodes < MIN_EPISODES:
            raise ConfigError(
                f"most_episodes is {self.most_episodes}; expected at least {MIN_EPISODES}"
            )
        if min(self.seeds) < 0:
            raise ConfigError(f"seeds is {list(self.seeds)}; expected seeds of at least 0")
        _check_budget(self.budget)
        _check_name("name", self.name)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Everything that decides a study."""

    name: str
    """Name of the study, and of its folder."""

    tasks: dict[str, TaskConfig]
    """Tasks by name."""

    memories: dict[str, MemoryEntry]
    """Memories by name, in the order of the tables."""

    reference: str
    """The memory whose number of parameters the others are given."""

    baselines: tuple[str, ...]
    """Memories that every other one is compared with in pairs."""

    stages: tuple[StageConfig, ...]
    """What is trained, one after the other."""

    search: SearchConfig | None = None
    """The search for each memory's settings; None takes those of the tasks."""

    parameter_tolerance: float = 0.05
    """Most relative difference in the number of parameters to the reference."""

    evaluation_seed: int = 20_000_000
    """Seed of the first test episode: the same episodes for every memory."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for names that do not exist and seeds used twice."""
        for what, names in (("task", self.tasks), ("memory", self.memories)):
            if not names:
                raise ConfigError(f"there is no {what}; a study needs at least one")
            for name in names:
                _check_name(f"the {what}", name)
        self._check_memories("reference", [self.reference])
        self._check_memories("baselines", self.baselines)
        for name, entry in self.memories.items():
            for task in entry.tasks or ():
                if task not in self.tasks:
                    where = f"memories.{name}.tasks"
                    raise ConfigError(f"{where}: {unknown(f'task {task!r}', task, [*self.tasks])}")
        self._check_stages()
        self._check_tasks()

    def _check_stages(self) -> None:
        if not self.stages:
            raise ConfigError("stages is empty; a study needs at least one")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names) or "search" in names:
            raise ConfigError(f"stages are named {names}; expected different names, not search")
        for i, stage in enumerate(self.stages):
            self._check_memories(f"stages.{stage.name}.memories", stage.memories or ())
            self._check_memories(f"stages.{stage.name}.best_of", stage.best_of)
            if stage.best_of and i == 0:
                raise ConfigError(f"stages.{stage.name}.best_of: there is no stage before it")
            used = set(self.search.seeds) & set(stage.seeds) if self.search else set()
            if used:
                raise ConfigError(
                    f"stages.{stage.name}.seeds holds {sorted(used)}, on which the settings are "
                    "searched; claims need seeds that nothing was chosen on"
                )

    def _check_tasks(self) -> None:
        stages = [stage.name for stage in self.stages]
        for name, task in self.tasks.items():
            if task.stages == ():
                raise ConfigError(f"tasks.{name}.stages is empty; leave it out for all stages")
            for stage in task.stages or ():
                if stage not in stages:
                    where = f"tasks.{name}.stages"
                    raise ConfigError(f"{where}: {unknown(f'stage {stage!r}', stage, stages)}")
            source = task.settings_of
            if source is None:
                continue
            where = f"tasks.{name}.settings_of"
            if self.search is None:
                raise ConfigError(f"{where} is given, but the study has no search; leave it out")
            if source not in self.tasks:
                raise ConfigError(f"{where}: {unknown(f'task {source!r}', source, [*self.tasks])}")
            if source == name or self.tasks[source].settings_of is not None:
                raise ConfigError(
                    f"{where} is {source!r}, which has no search of its own; name a task that has"
                )
        for stage in stages:
            if not any(task.stages is None or stage in task.stages for task in self.tasks.values()):
                raise ConfigError(f"no task takes part in the stage {stage}; name it in its stages")

    def _check_memories(self, where: str, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.memories:
                raise ConfigError(f"{where}: {unknown(f'memory {name!r}', name, [*self.memories])}")


def study_names() -> list[str]:
    """Return the names of the studies that come with the package."""
    return configuration.preset_names(_PACKAGE)


def load_study(name_or_path: str | Path) -> StudyConfig:
    """Return the study of a preset or of a YAML file.

    Raises:
        ConfigError: If there is no such preset or file, or its content is wrong.
    """
    data, source = configuration.read_preset(name_or_path, _PACKAGE)
    try:
        return study_from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def study_from_dict(data: Mapping[str, Any]) -> StudyConfig:
    """Return the study in plain data; unknown keys and wrong types raise `ConfigError`."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"the study is {configuration.describe(data)}; expected a section")
    data = dict(data)
    for section, kind in (("tasks", TaskConfig), ("memories", MemoryEntry)):
        entries = data.get(section)
        if isinstance(entries, Mapping):
            data[section] = {
                str(name): configuration.from_dict(kind, entry or {}, f"{section}.{name}")
                for name, entry in entries.items()
            }
    missing = [name for name in _REQUIRED if name not in data]
    if missing:
        raise ConfigError(f"the study lacks {', '.join(missing)}")
    return configuration.from_dict(StudyConfig, data)


_REQUIRED = ("name", "tasks", "memories", "reference", "baselines", "stages")


def _check_budget(budget: float) -> None:
    if not 0 < budget <= 1:
        raise ConfigError(f"budget is {budget}; expected a share of the steps, above 0, up to 1")


def _check_name(where: str, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ConfigError(f"{where} is {name!r}; expected letters, digits, '-', '_' and '.' only")
