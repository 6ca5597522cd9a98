"""What a study trains: every cell as a whole experiment, and where its agent is tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from doxastic.configuration import ConfigError
from doxastic.envs.make import EnvConfig
from doxastic.experiment import Experiment, load_preset, override
from doxastic.studies.cells import Cell, Settings
from doxastic.studies.config import SearchConfig, StageConfig, StudyConfig, TaskConfig
from doxastic.studies.matching import ParameterCounter, match

SEARCH = "search"
# Added to the evaluation's seed where settings are searched: the test's episodes stay unseen.
_SEARCH_EPISODES = 300_000_000


class Design:
    """The cells of a study, all of them checked before the first one is trained.

    Args:
        config: The study.

    Raises:
        ConfigError: If a task or a memory cannot be had, or not at equal parameters.
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self._counter = ParameterCounter()
        self._tasks = {name: _base(name, task) for name, task in config.tasks.items()}
        self._experiments: dict[tuple[str, str], Experiment] = {}
        self.parameters: dict[tuple[str, str], int] = {}
        for task in config.tasks:
            self._resolve(task)

    def memories_of(self, task: str) -> list[str]:
        """Return the memories that take part in a task."""
        return [name for name in self.config.memories if (task, name) in self._experiments]

    def experiment(self, task: str, memory: str) -> Experiment:
        """Return what is trained before search, seed and budget are applied."""
        return self._experiments[task, memory]

    def env(self, task: str) -> EnvConfig:
        """Return the environment of a task."""
        return self._tasks[task].env

    def search_cells(self) -> list[Cell]:
        """Return the cells of the search, none without one."""
        search = self.config.search
        if search is None:
            return []
        return [
            self._search_cell(search, task, memory, seed, Settings(rate, entropy))
            for task, test in self.config.tasks.items()
            if test.settings_of is None
            for memory in self.memories_of(task)
            for rate in search.learning_rates
            for entropy in search.entropies
            for seed in search.seeds
        ]

    def stage_cells(
        self,
        stage: StageConfig,
        chosen: Mapping[tuple[str, str], Settings],
        best: str | None = None,
    ) -> list[Cell]:
        """Return the cells of a stage, seed by seed, so that early stops leave whole seeds.

        Args:
            stage: The stage.
            chosen: What the search chose by (task, memory); pairs it lacks keep their preset's.
            best: The best memory of `stage.best_of`.
        """
        return [
            self._cell(stage, task, memory, seed, chosen.get((self.searched(task), memory)))
            for seed in stage.seeds
            for task in self.config.tasks
            if self.takes_part(stage, task) and seed in self.seeds_of(stage, task)
            for memory in self.memories_of_stage(stage, best)
            if (task, memory) in self._experiments
        ]

    def takes_part(self, stage: StageConfig, task: str) -> bool:
        """Return whether a task is one of a stage's."""
        stages = self.config.tasks[task].stages
        return stages is None or stage.name in stages

    def searched(self, task: str) -> str:
        """Return the task whose search decides the settings of a task."""
        return self.config.tasks[task].settings_of or task

    def seeds_of(self, stage: StageConfig, task: str) -> tuple[int, ...]:
        """Return the seeds of a task in a stage."""
        return stage.seeds[: self.config.tasks[task].seeds]

    def memories_of_stage(self, stage: StageConfig, best: str | None) -> list[str]:
        """Return the memories of a stage in the order of the study."""
        wanted = set(self.config.memories if stage.memories is None else stage.memories)
        if best is not None:
            wanted.add(best)
        return [name for name in self.config.memories if name in wanted]

    def _resolve(self, task: str) -> None:
        """Give every memory of the task its size."""
        target = None
        ordered = [self.config.reference, *self.config.memories]
        for name in dict.fromkeys(ordered):
            entry = self.config.memories[name]
            if entry.tasks is not None and task not in entry.tasks:
                if name == self.config.reference and entry.matched:
                    raise ConfigError(
                        f"memories.{name}.tasks leaves out {task}, but {name} is the reference "
                        "for the number of parameters; let it take part in every task"
                    )
                continue
            try:
                experiment = override(self._tasks[task], entry.settings)
                if target is None:
                    target = self._counter(experiment)
                elif entry.matched:
                    tolerance = self.config.parameter_tolerance
                    experiment = match(experiment, target, tolerance, self._counter)
                self.parameters[task, name] = self._counter(experiment)
            except ValueError as error:
                raise ConfigError(f"memories.{name} on tasks.{task}: {error}") from error
            self._experiments[task, name] = experiment

    def _cell(
        self, stage: StageConfig, task: str, memory: str, seed: int, settings: Settings | None
    ) -> Cell:
        test = self.config.tasks[task]
        most = stage.most_episodes
        return Cell(
            stage=stage.name,
            task=task,
            memory=memory,
            experiment=self._trained(task, memory, seed, stage.budget, settings),
            noise=test.noise,
            episodes=test.episodes if most is None else min(test.episodes, most),
            evaluation_seed=self.config.evaluation_seed,
        )

    def _search_cell(
        self, search: SearchConfig, task: str, memory: str, seed: int, settings: Settings
    ) -> Cell:
        experiment = self._trained(task, memory, seed, search.budget, settings)
        return Cell(
            stage=SEARCH,
            task=task,
            memory=memory,
            experiment=experiment,
            noise=experiment.env.noise,
            episodes=search.episodes,
            evaluation_seed=self.config.evaluation_seed + _SEARCH_EPISODES,
        )

    def _trained(
        self, task: str, memory: str, seed: int, budget: float, settings: Settings | None
    ) -> Experiment:
        """Return the experiment of a cell."""
        experiment = self._experiments[task, memory]
        steps = max(1, round(budget * experiment.total_steps))
        changes: dict[str, Any] = {"seed": seed, "total_steps": steps, "name": ""}
        if settings is not None:
            changes["ppo"] = {
                "learning_rate": settings.learning_rate,
                "entropy_coefficient": settings.entropy,
            }
        return override(experiment, changes)


def trained_levels(experiment: Experiment) -> tuple[float, ...]:
    """Return the levels of noise an experiment trains on, empty for an environment's own."""
    return experiment.env.noise or ()


def _base(name: str, task: TaskConfig) -> Experiment:
    """Return the experiment of a task without any memory's settings."""
    where = f"tasks.{name}"
    try:
        experiment = load_preset(task.preset) if task.preset else Experiment()
        experiment = override(experiment, task.settings)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    _check_levels(where, task, trained_levels(experiment))
    # What training evaluates by itself at its end is not read: one episode, no bootstrap.
    quick = replace(experiment.evaluation, noise=None, episodes=1)
    return replace(experiment, device="cpu", threads=1, evaluation=quick)


def _check_levels(where: str, task: TaskConfig, trained: Sequence[float]) -> None:
    if task.noise is None:
        return
    if not trained:
        raise ConfigError(
            f"{where}.noise is given, but the task trains on the environment's own noise; give "
            "settings: {env: {noise: [...]}}"
        )
    missing = sorted(set(trained) - set(task.noise))
    if missing:
        raise ConfigError(
            f"{where}.noise lacks {missing}, on which agents are trained; the test covers all "
            "levels of training"
        )
