"""`doxastic study`: the options, and what they do in which order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from doxastic.configuration import ConfigError
from doxastic.disk import RunError
from doxastic.options import parse

if TYPE_CHECKING:
    from doxastic.studies.config import StudyConfig
    from doxastic.studies.study import Study


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Compare memories: train, test and report the product of memories, tasks and seeds."""

    preset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PRESET")]
    """Name of a study, or a path to a YAML file."""
    workers: int = 0
    """Processes of one thread each; 0 for as many as there are cores."""
    output: Path | None = None
    """Folder of the study; by default runs/studies/NAME. A study that is there already goes on."""
    report: Path | None = None
    """Folder of the report, its figures and a copy of the results; by default the study's."""
    dry_run: bool = False
    """Check the study, measure the speed of this machine and say how long it will take."""
    report_only: bool = False
    """Train nothing; report what is finished."""
    quiet: bool = False
    """Show nothing but errors."""


def study(words: Sequence[str]) -> None:
    """Run `doxastic study`."""
    from doxastic.studies.config import load_study, study_names

    description = (
        f"{StudyOptions.__doc__}\n\n"
        f"studies: {', '.join(study_names())}\n\n"
        "Stopped at any moment, the same command goes on where it was; what is finished is never "
        "done again.\n\n"
        "examples:\n"
        "  doxastic study quick\n"
        "  doxastic study noise-shift --dry-run\n"
        "  doxastic study noise-shift --report docs/results/noise-shift"
    )
    options = parse(StudyOptions, words, "doxastic study", description)
    if options.workers < 0:
        raise ConfigError(f"--workers is {options.workers}; expected 0 or more")
    config = load_study(options.preset)
    _carry_out(options, config)


def _carry_out(options: StudyOptions, config: StudyConfig) -> None:
    from doxastic.studies.execute import Executor
    from doxastic.studies.pool import Pool
    from doxastic.studies.progress import make_reporter
    from doxastic.studies.report import write_report
    from doxastic.studies.study import Study

    found = Study(config, options.output or Path("runs/studies") / config.name)
    workers = options.workers or os.cpu_count() or 1
    reporter = make_reporter(shown=not options.quiet)
    try:
        with found.held():
            if options.report_only:
                _check_anything_finished(found)
            else:
                with Pool(workers, found.folder / "workers.log") as pool:
                    executor = Executor(found, pool, reporter)
                    executor.measure()
                    reporter.say(f"{sizes(found)}\n{executor.plan()}")
                    if options.dry_run:
                        return
                    executor.play_references()
                    executor.train()
            path = write_report(
                found, options.report or found.folder, f"doxastic study {options.preset}"
            )
    finally:
        reporter.close()
    if not options.quiet:
        print(path, flush=True)


def _check_anything_finished(study: Study) -> None:
    """Raise `RunError` rather than write an empty report, perhaps over a full one."""
    cells = [cell for phase in study.phases() if phase.stage for cell in phase.cells]
    if len(study.results.missing(cells)) == len(cells):
        others = f"; the {len(study.results.records)} in its results.jsonl have other settings"
        raise RunError(
            f"no cell of a stage of this study is finished in {study.folder}"
            f"{others if study.results.records else ''}; leave --report-only out to train them, or "
            "name the folder of a finished study with --output"
        )


def sizes(study: Study) -> str:
    """Return the number of parameters of every memory, a line for each task."""
    lines = []
    for task in study.config.tasks:
        counts = (
            f"{name} {study.design.parameters[task, name]:,}"
            for name in study.design.memories_of(task)
        )
        lines.append(f"{task}: parameters {', '.join(counts)}")
    return "\n".join(lines)
