"""The tables of a report, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from doxastic.agents.study.efficiency import Curve, steps_to
from doxastic.agents.study.returns import MEASURES, TaskReturns, common_memories
from doxastic.agents.study.statistics import Comparison, Estimate
from doxastic.studies.choices import mean_by_setting

if TYPE_CHECKING:
    from doxastic.studies.study import Study

NONE = "–"  # noqa: RUF001 an en dash, as tables have it
_REACHED = 0.9


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def estimate(found: Estimate | None, digits: int = 3, *, signed: bool = False) -> str:
    """Return `value [low, high]`, bold where a difference's interval excludes zero."""
    if found is None:
        return NONE
    sign = "+" if signed else ""
    text = f"{found.value:{sign}.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return f"**{text}**" if signed and found.excludes_zero else text


def level_table(comparison: Comparison, task: TaskReturns) -> str:
    """Return the return of every memory at every level of the test."""
    columns = [
        (_level(level, task), np.eye(len(task.levels))[i]) for i, level in enumerate(task.levels)
    ]
    rows = [
        [name, *(estimate(comparison.returns(task, name, weights)) for _, weights in columns)]
        for name in task.memories
    ]
    if task.has_best_levels:
        rows.append(["*best known*", *(f"{value:.3f}" for value in task.best)])
    return table(["memory", *(name for name, _ in columns)], rows)


def measure_table(comparison: Comparison, task: TaskReturns) -> str:
    """Return the return of every memory in every measure, and its share of the best known."""
    measures = [name for name in MEASURES if task.weights(name) is not None]
    rows = []
    for memory in task.memories:
        cells = []
        for measure in measures:
            weights = task.weights(measure)
            assert weights is not None
            cells.append(estimate(comparison.returns(task, memory, weights)))
        score = comparison.score("mixture", memory, [task])
        rows.append([memory, *cells, estimate(score)])
    bests = [task.best_of(measure) for measure in measures]
    rows.append(["*best known*", *(NONE if x is None else f"{x:.3f}" for x in bests), "1"])
    rows.append(["*random actions*", *[f"{task.random:.3f}"] * len(measures), "0"])
    return table(["memory", *measures, "score on the mixture"], rows)


def aggregate_table(comparison: Comparison) -> str:
    """Return IQM and optimality gap of the normalised scores, over all tasks."""
    tasks, rows = comparison.tasks, []
    for memory in common_memories(tasks):
        count = sum(memory in task.memories for task in tasks)
        scores = [estimate(comparison.score(measure, memory)) for measure in MEASURES]
        gaps = [estimate(comparison.gap(measure, memory)) for measure in MEASURES]
        rows.append([memory, f"{count} of {len(tasks)}", *scores, *gaps])
    head = ["memory", "tasks", *(f"IQM, {m}" for m in MEASURES), *(f"gap, {m}" for m in MEASURES)]
    return table(head, rows)


def difference_table(comparison: Comparison, baseline: str) -> str:
    """Return the paired differences to a baseline, and how often memories are better."""
    rows = []
    for memory in common_memories(comparison.tasks):
        if memory == baseline:
            continue
        row = [memory, str(len(comparison.tasks_of("mixture", memory, baseline)))]
        for measure in MEASURES:
            row.append(estimate(comparison.difference(measure, memory, baseline), signed=True))
            row.append(estimate(comparison.improvement(measure, memory, baseline), 2))
        rows.append(row)
    head = ["memory", "tasks"]
    for measure in MEASURES:
        head += [f"{measure}: difference", "P(better)"]
    return table(head, rows)


def task_difference_table(comparison: Comparison, baseline: str, measure: str) -> str:
    """Return the paired differences to a baseline, task by task, in units of the score."""
    tasks = [task for task in comparison.tasks if task.weights(measure) is not None]
    rows = [
        [
            memory,
            *(
                estimate(comparison.difference(measure, memory, baseline, [task]), signed=True)
                for task in tasks
            ),
        ]
        for memory in common_memories(tasks)
        if memory != baseline
    ]
    return table(["memory", *(task.task for task in tasks)], rows)


def efficiency_table(curves: Sequence[Curve], task: TaskReturns) -> str:
    """Return the steps after which a share of the way to the best known return was made."""
    target = task.random + _REACHED * task.scale
    rows = []
    for curve in curves:
        steps = steps_to(curve, target)
        value, low, high = (float(x[-1]) for x in (curve.value, curve.low, curve.high))
        end = Estimate(value=value, low=low, high=high, runs=len(task.seeds))
        rows.append([curve.memory, NONE if steps is None else f"{steps:,.0f}", estimate(end)])
    return table(["memory", f"steps to a return of {target:.3f}", "at the end"], rows)


def size_table(study: Study) -> str:
    """Return the size of every memory on every task, with its number of parameters."""
    rows = []
    for name in study.config.memories:
        cells = []
        for task in study.config.tasks:
            count = study.design.parameters.get((task, name))
            cells.append(NONE if count is None else f"{count:,} ({_size(study, task, name)})")
        rows.append([name, *cells])
    return table(["memory", *study.config.tasks], rows)


def search_table(study: Study) -> str:
    """Return the mean return of every setting that was searched, the chosen one bold."""
    means = {
        pair: mean_by_setting(study.results.of(cells)) for pair, cells in study.searched().items()
    }
    means = {pair: found for pair, found in means.items() if found}
    chosen = study.chosen()
    settings = sorted({setting for found in means.values() for setting in found})
    rows = []
    for (task, memory), found in means.items():
        cells = []
        for setting in settings:
            text = f"{found[setting]:.3f}" if setting in found else "failed"
            cells.append(f"**{text}**" if chosen.get((task, memory)) == setting else text)
        rows.append([task, memory, *cells])
    head = [f"lr {setting.learning_rate:g}, entropy {setting.entropy:g}" for setting in settings]
    return table(["task", "memory", *head], rows)


def _size(study: Study, task: str, memory: str) -> str:
    settings = study.design.experiment(task, memory).memory
    if settings.kind == "belief":
        hidden = round(settings.channel_ratio * settings.width)
        return f"width {settings.width}, channel mix {hidden}"
    return f"width {settings.width}"


def _level(level: float | None, task: TaskReturns) -> str:
    if level is None:
        return "own noise"
    return f"{level:g}" if level in task.trained else f"*{level:g}*"
