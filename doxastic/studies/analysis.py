"""From the results of a stage to the arrays that the statistics are taken of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from doxastic.agents.study.efficiency import Curve, TaskRuns, efficiency_curve, suite_curve
from doxastic.agents.study.returns import MEASURES, TaskReturns, common_memories
from doxastic.agents.study.statistics import Comparison
from doxastic.runs import RunFolder
from doxastic.studies.cells import Cell
from doxastic.studies.config import MIN_SEEDS
from doxastic.studies.design import trained_levels
from doxastic.studies.records import load_episodes

if TYPE_CHECKING:
    from doxastic.studies.study import Phase, Study


class Outcome(NamedTuple):
    """What there is of a stage."""

    tasks: list[TaskReturns]
    """Tasks with enough finished seeds, each with the memories that have them."""
    left_out: list[str]
    """What is missing, in words."""


def outcome(study: Study, phase: Phase) -> Outcome:
    """Return the returns of a stage, as far as its cells are finished.

    On every task all memories get the same seeds: those that all of them have finished. A memory
    with fewer than three finished seeds is left out of the task.
    """
    tasks, left_out = [], []
    for task in study.config.tasks:
        cells = [cell for cell in phase.cells if cell.task == task]
        if not cells:
            continue  # It is none of the stage's.
        finished: dict[str, dict[int, Cell]] = {cell.memory: {} for cell in cells}
        for cell in cells:
            if cell.digest in study.results.records:
                finished[cell.memory][cell.experiment.seed] = cell
        whole = {name: seeds for name, seeds in finished.items() if len(seeds) >= MIN_SEEDS}
        left_out += [
            f"{task}: {name} has {len(finished[name])} finished seeds, too few"
            for name in finished
            if name not in whole
        ]
        shared = set.intersection(*(set(seeds) for seeds in whole.values())) if whole else set()
        if len(shared) < MIN_SEEDS:
            left_out.append(f"{task}: the memories have {len(shared)} finished seeds in common")
            continue
        wanted = len({cell.experiment.seed for cell in cells})
        if len(shared) < wanted:
            left_out.append(f"{task}: {len(shared)} of {wanted} seeds are finished by all memories")
        tasks.append(_returns(study, task, whole, sorted(shared)))
    return Outcome(tasks, left_out)


class Choice(NamedTuple):
    """The best of some memories."""

    memory: str
    """Its name."""
    tasks: list[str]
    """The tasks it was chosen on."""
    left_out: list[str]
    """Memories that were not considered, because they did not finish on all of their tasks."""


def best_memory(study: Study, phase: Phase, among: Sequence[str]) -> Choice:
    """Return the memory of the highest IQM score, averaged over the measures; ties to the first.

    All are compared on the same tasks: those of all that have finished. One that failed on a task
    is not considered, or what is hard for it would not count.
    """
    tasks = outcome(study, phase).tasks
    whole = [name for name in among if _is_whole(phase, tasks, name)] or list(among)
    shared = [task for task in tasks if set(whole) <= set(task.memories)]
    # The value alone is read: no interval is needed to choose.
    comparison = Comparison(shared, resamples=2)

    def merit(memory: str) -> float:
        scores = [comparison.score(measure, memory) for measure in MEASURES]
        known = [score.value for score in scores if score is not None]
        return float(np.mean(known)) if known else -np.inf

    left_out = [name for name in among if name not in whole]
    return Choice(max(whole, key=merit), [task.task for task in shared], left_out)


def _is_whole(phase: Phase, tasks: Sequence[TaskReturns], memory: str) -> bool:
    """Return whether a memory has returns on all tasks that it takes part in."""
    wanted = {cell.task for cell in phase.cells if cell.memory == memory}
    return wanted <= {task.task for task in tasks if memory in task.memories}


def curves(study: Study, phase: Phase, task: TaskReturns) -> list[Curve]:
    """Return the sample-efficiency curve of every memory on a task.

    The return is that of the greedy agent on the levels of training where checkpoints are judged,
    otherwise that of the sampling agent over its last 100 episodes.
    """
    return [efficiency_curve(memory, _runs(study, phase, task, memory)) for memory in task.memories]


def suite_curves(study: Study, phase: Phase, tasks: Sequence[TaskReturns]) -> list[Curve]:
    """Return the curve of the score of every memory, over tasks in which all take part."""
    return [
        suite_curve(
            memory,
            [
                TaskRuns(_runs(study, phase, task, memory), task.best_mixture, task.scale)
                for task in tasks
            ],
        )
        for memory in tasks[0].memories
    ]


def shared_tasks(tasks: Sequence[TaskReturns]) -> list[TaskReturns]:
    """Return the tasks in which all memories take part."""
    memories = set(common_memories(tasks))
    return [task for task in tasks if memories <= set(task.memories)]


def _runs(
    study: Study, phase: Phase, task: TaskReturns, memory: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return steps and returns in training of a memory's seeds on a task."""
    return [
        _training_returns(study, cell)
        for cell in phase.cells
        if cell.task == task.task and cell.memory == memory and cell.experiment.seed in task.seeds
    ]


def _returns(
    study: Study, task: str, finished: dict[str, dict[int, Cell]], seeds: Sequence[int]
) -> TaskReturns:
    cells = [[by_seed[seed] for seed in seeds] for by_seed in finished.values()]
    first = cells[0][0]
    returns = np.stack(
        [
            np.stack([load_episodes(study.cell_folder(cell) / "episodes.npz") for cell in row])
            for row in cells
        ]
    )
    config, found = study.config.tasks[task], study.references[task]
    mixture = found["mixture"] if config.best is None else config.best
    # Level by level it is known only where the policy itself is, and the test tells levels apart.
    has_levels = config.best is None and first.noise is not None
    levels: tuple[float | None, ...] = first.noise or (None,)
    return TaskReturns(
        task=task,
        memories=tuple(finished),
        seeds=tuple(seeds),
        levels=levels,
        trained=() if first.noise is None else trained_levels(first.experiment),
        returns=returns,
        random=found["random"] if config.random is None else config.random,
        best=tuple(found["best"]) if has_levels else (mixture,) * len(levels),
        best_mixture=mixture,
        has_best_levels=has_levels,
    )


def _training_returns(study: Study, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    records = RunFolder(study.cell_folder(cell) / "run").metrics()
    key = "score" if any("score" in record for record in records) else "return_mean"
    values = [np.nan if record.get(key) is None else record[key] for record in records]
    return np.array([record["steps"] for record in records], float), np.array(values, float)
