"""The report of a study: Markdown, its figures, and a copy of the results beside it."""

from __future__ import annotations

import io
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from doxastic.agents.study.resampling import RESAMPLES
from doxastic.agents.study.returns import MEASURES, common_memories
from doxastic.agents.study.statistics import ENOUGH_RUNS, Comparison
from doxastic.configuration import dump_yaml, to_dict
from doxastic.disk import disk_errors, write_atomically
from doxastic.progress import clock
from doxastic.studies import figures, tables
from doxastic.studies.analysis import Outcome, curves, outcome, shared_tasks, suite_curves
from doxastic.studies.design import trained_levels
from doxastic.studies.figure_style import Look, looks
from doxastic.studies.forests import plot_pairs
from doxastic.studies.records import OPTIONS

if TYPE_CHECKING:
    from doxastic.studies.study import Phase, Study


def write_report(study: Study, folder: Path, command: str) -> Path:
    """Write `report.md` with its figures into a folder and return its path.

    Args:
        study: The study; what is not finished is said to be missing.
        folder: Where to write; made if it is not there.
        command: The command that makes the study, for the report.

    Raises:
        RunError: If the folder cannot be written, or an episode file is damaged.
    """
    with disk_errors(folder, OPTIONS):
        folder.mkdir(parents=True, exist_ok=True)
    parts = [_head(study, command)]
    for phase in study.phases():
        if phase.stage is not None:
            parts.append(_stage(study, phase, folder))
    parts += [_search(study), _sizes(study), _method(study), _failures(study)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    with disk_errors(folder, OPTIONS):
        write_atomically(folder / "report.md", text.encode())
        if folder.resolve() != study.folder.resolve():
            _copy(study, folder)
    return folder / "report.md"


def _head(study: Study, command: str) -> str:
    cells = [cell for phase in study.phases() for cell in phase.cells]
    records = {record.digest: record for record in study.results.of(cells)}.values()
    seconds = sum(record.seconds_training + record.seconds_evaluation for record in records)
    steps = sum(record.steps for record in records)
    versions = sorted({f"{name} {x}" for record in records for name, x in record.versions.items()})
    config, program = study.config, f"Python {platform.python_version()}, {', '.join(versions)}"
    return (
        f"# Study: {config.name}\n\n"
        f"`{command}`\n\n"
        f"Memories: {len(config.memories)}; tasks: {len(config.tasks)}; agents trained: "
        f"{len(records)}, for {steps / 1e6:.1f} million steps in all. Training and tests took "
        f"{clock(seconds)} of one process ({platform.machine()}); {program}.\n\n"
        "Intervals are 95 % intervals over seeds and test episodes, but for those of one task "
        f"with fewer than {ENOUGH_RUNS} seeds, which cover less; what is in bold excludes zero. "
        "How they are made is said [below](#method)."
    )


def _stage(study: Study, phase: Phase, folder: Path) -> str:
    found = outcome(study, phase)
    assert phase.stage is not None
    title = f"## Stage: {phase.name}"
    if not found.tasks:
        missing = "".join(f"\n- {line}" for line in found.left_out)
        return f"{title}\n\nToo little is finished for a statement.{missing}"
    comparison = Comparison(found.tasks)
    look = _looks(study, comparison)
    parts = [title, _budget(phase, found), _choice(study, phase)]
    if len(found.tasks) > 1:
        parts += ["### All tasks", tables.aggregate_table(comparison)]
    parts += _pairs(study, comparison, look, phase.name, folder)
    parts += _noise(comparison, look, phase.name, folder)
    parts += _learning(study, phase, found, look, folder)
    return "\n\n".join(part for part in parts if part)


def _choice(study: Study, phase: Phase) -> str:
    """Return which memory came into a stage as the best of several, and how it was chosen."""
    index = [stage.name for stage in study.config.stages].index(phase.name)
    choice = study.best_among(index)
    if choice is None:
        return ""
    names = ", ".join(study.config.stages[index].best_of)
    left_out = ", ".join(choice.left_out)
    but = f" Not considered, for want of finished cells: {left_out}." if left_out else ""
    return (
        f"**{choice.memory}** is here as the best of {names}: it had the highest IQM of the "
        f"scores, averaged over the measures, in {study.config.stages[index - 1].name} on "
        f"{', '.join(choice.tasks)}.{but}"
    )


def _looks(study: Study, comparison: Comparison) -> dict[str, Look]:
    """Return the looks of a stage's memories: baselines and reference before the best others."""
    present = common_memories(comparison.tasks)
    scores = {name: comparison.score("mixture", name) for name in present}
    values = {name: score.value for name, score in scores.items() if score is not None}
    best = sorted(values, key=lambda name: -values[name])
    return looks(present, [*study.config.baselines, study.config.reference, *best])


def _budget(phase: Phase, found: Outcome) -> str:
    lines = []
    for task in found.tasks:
        cell = next(cell for cell in phase.cells if cell.task == task.task)
        trained = ", ".join(f"{level:g}" for level in trained_levels(cell.experiment))
        levels = f"noise {trained}" if trained else "the environment's own noise"
        lines.append(
            f"- **{task.task}**: `{cell.experiment.env.id}`, {cell.experiment.total_steps:,} steps "
            f"on {levels}; {len(task.seeds)} seeds ({_range(task.seeds)}), "
            f"{task.returns.shape[-1]:,} test episodes at each level"
        )
    if found.left_out:
        lines += ["", "Not finished:", "", *(f"- {line}" for line in found.left_out)]
    return "\n".join(lines)


def _pairs(
    study: Study,
    comparison: Comparison,
    look: dict[str, Look],
    stage: str,
    folder: Path,
) -> list[str]:
    present = {name for task in comparison.tasks for name in task.memories}
    baselines = [name for name in study.config.baselines if name in present]
    parts = []
    for baseline in baselines:
        if present == {baseline}:
            continue
        parts += [f"### Against {baseline}", tables.difference_table(comparison, baseline)]
        if len(comparison.tasks) > 1:
            for measure in MEASURES:
                if comparison.tasks_of(measure):
                    parts += [
                        f"Task by task, {measure}:",
                        tables.task_difference_table(comparison, baseline, measure),
                    ]
    if parts:
        for what in ("difference", "improvement"):
            figure = plot_pairs(comparison, baselines, look, what)
            parts.append(_saved(figure, folder, f"{what}-{stage}.png", f"{what} to the baselines"))
    figure = figures.plot_profiles(comparison, look)
    parts += ["### Profiles", _saved(figure, folder, f"profiles-{stage}.png", "profiles")]
    return parts


def _noise(comparison: Comparison, look: dict[str, Look], stage: str, folder: Path) -> list[str]:
    figure = figures.plot_noise(comparison, look)
    parts = ["### Return against noise", _saved(figure, folder, f"noise-{stage}.png", "noise")]
    for task in comparison.tasks:
        parts += [
            f"#### {task.task}",
            tables.measure_table(comparison, task),
            "By level; levels in italics are held out:",
            tables.level_table(comparison, task),
        ]
    return parts


def _learning(
    study: Study, phase: Phase, found: Outcome, look: dict[str, Look], folder: Path
) -> list[str]:
    by_task = {task.task: curves(study, phase, task) for task in found.tasks}
    shared = shared_tasks(found.tasks)
    suite = None
    if len(shared) > 1:
        suite = f"score, {len(shared)} tasks", suite_curves(study, phase, shared)
    figure = figures.plot_learning(by_task, found.tasks, suite, look)
    parts = ["### Learning", _saved(figure, folder, f"learning-{phase.name}.png", "learning")]
    for task in found.tasks:
        parts += [f"{task.task}:", tables.efficiency_table(by_task[task.task], task)]
    return parts


def _search(study: Study) -> str:
    search = study.config.search
    if search is None:
        return "## Search\n\nNone: every memory has the settings of the task's preset."
    return (
        "## Search\n\n"
        f"Every memory got the same search on every task: learning rate in "
        f"{list(search.learning_rates)}, entropy coefficient in {list(search.entropies)}, seeds "
        f"{_range(search.seeds)}, "
        f"{search.budget:.0%} of the steps. Mean return over the levels of training, in "
        f"{search.episodes:,} episodes at each that are not those of the test; the best is taken, "
        f"the smaller of equals.{_shared_search(study)}\n\n{tables.search_table(study)}"
    )


def _shared_search(study: Study) -> str:
    """Return which tasks take the settings found on another one."""
    pairs = [(name, task.settings_of) for name, task in study.config.tasks.items()]
    said = [f"{name} takes what was found on {source}" for name, source in pairs if source]
    return f" {'; '.join(said)}." if said else ""


def _sizes(study: Study) -> str:
    return (
        "## Sizes\n\n"
        f"Parameters of the whole agent, within {study.config.parameter_tolerance:.0%} of "
        f"{study.config.reference}'s{_unmatched(study)}.\n\n{tables.size_table(study)}"
    )


def _unmatched(study: Study) -> str:
    names = [name for name, entry in study.config.memories.items() if not entry.matched]
    return f"; not matched: {', '.join(names)}" if names else ""


def _method(study: Study) -> str:
    return (
        "## Method\n\n"
        "- Agents act greedily in the test, on the same episodes for every memory and seed: the "
        f"same initial states and the same standard noise, scaled (seed "
        f"{study.config.evaluation_seed}). The tested weights are those of the checkpoint that "
        "judged best in training, on other episodes.\n"
        "- *Mixture* is the mean over the levels of training, *hardest* the highest of them, "
        "*held-out* the mean over the levels beyond it.\n"
        "- Scores are `1 - (best - return) / range`: best is the return of the best policy known "
        "under that noise, range the return between random actions and the best policy known over "
        "the mixture. The best policy is made for the mixture: at a single level, above all a "
        "held-out one, another policy may do better. Where it is known over the mixture only, a "
        "task counts in the differences of the other measures, not in their IQM, gap and profile.\n"
        "- IQM: mean of the middle half of the runs, tasks weighing alike. Gap: mean shortfall of "
        "the score from 1.\n"
        f"- Intervals: {RESAMPLES:,} bootstrap samples; within each task, seeds and episodes are "
        "drawn again, the same for all memories, so that differences are paired; percentiles, "
        "expanded for few seeds. No interval from n runs can cover more than 1 - 2^(1 - n): on one "
        f"task, 75 % of three and 94 % of five. Below {ENOUGH_RUNS} runs nothing is in bold.\n"
        "- P(better): probability that a run of the memory has a higher score than one of the "
        "baseline, mean over tasks.\n\n"
        f"The whole study:\n\n```yaml\n{dump_yaml(to_dict(study.config))}```"
    )


def _failures(study: Study) -> str:
    labels = {cell.label for phase in study.phases() for cell in phase.cells}
    failed = {label: error for label, error in study.failures.items() if label in labels}
    lines = "\n".join(f"- {label}: {error}" for label, error in failed.items())
    return f"## Failed\n\n{lines}" if failed else ""


def _saved(figure: Figure, folder: Path, name: str, text: str) -> str:
    """Write a figure and return the Markdown that shows it."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    with disk_errors(folder, OPTIONS):
        write_atomically(folder / name, image.getvalue())
    return f"![{text}]({name})"


def _copy(study: Study, folder: Path) -> None:
    for name in ("results.jsonl", "study.yaml"):
        shutil.copyfile(study.folder / name, folder / name)


def _range(seeds: Sequence[int]) -> str:
    """Return `0 to 9`, or the seeds themselves if they have gaps."""
    ordered = sorted(seeds)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(map(str, ordered))
