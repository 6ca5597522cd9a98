"""Carrying out a study: measure, play the references, train and test every cell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from doxastic.configuration import to_dict
from doxastic.disk import RunError
from doxastic.interruption import Interruption, TrainingInterrupted
from doxastic.progress import clock
from doxastic.studies.cells import Cell
from doxastic.studies.pool import Answer, Job, Pool
from doxastic.studies.progress import StudyReporter
from doxastic.studies.records import Record
from doxastic.studies.speed import Clock, Speeds
from doxastic.studies.study import Phase, Study

# The references' episodes, and those of random actions.
_REFERENCE_SEED = 11
_TAIL_BYTES = 4096


class Executor:
    """Carries out a study with worker processes.

    Args:
        study: The study, held by this process.
        pool: The workers.
        reporter: Shows progress.
    """

    def __init__(self, study: Study, pool: Pool, reporter: StudyReporter) -> None:
        self._study, self._pool, self._reporter = study, pool, reporter
        cells = [cell for phase in study.phases() for cell in phase.cells]
        path = study.folder / "speeds.json"
        self._speeds = Speeds(path, cells, study.config.reference)
        self._clock = Clock(self._speeds, study.results.records)
        self._cells: dict[str, Cell] = {}
        # All cells as far as choices are made: these change between phases only.
        self._planned: dict[str, Cell] = {}
        self._left = self._whole = 0.0

    def measure(self) -> None:
        """Measure the speeds that are not known yet.

        Raises:
            RunError: If an agent cannot be trained at all.
        """
        jobs = self._speeds.jobs()
        if jobs:
            self._reporter.say(f"measuring the speed of {len(jobs)} agents")
        for answer in self._pool.map(jobs, lambda: None):
            if answer.error is not None:
                raise RunError(f"{answer.job.key} cannot be trained: {answer.error}")
            self._speeds.add(answer.job.key, answer.result)

    def plan(self) -> str:
        """Return what is to be done and how long it will take, a line for each phase."""
        lines, total = [], 0.0
        workers = self._pool.workers
        for phase in self._study.phases():
            self._clock.learn(phase.cells)
            missing = self._study.results.missing(phase.cells)
            seconds = self._clock.seconds(missing) / workers
            total += seconds
            done = len({cell.digest for cell in phase.cells}) - len(missing)
            steps = sum(cell.experiment.total_steps for cell in missing)
            lines.append(
                f"{phase.name:<12} {len(missing):>5} cells to train ({done} finished), "
                f"{steps / 1e6:.1f} million steps, about {clock(seconds)}"
            )
        unit = "process" if workers == 1 else "processes"
        lines.append(f"in all about {clock(total)} with {workers} {unit}")
        return "\n".join(lines)

    def play_references(self) -> None:
        """Play the best policies known and random actions where that was not done yet.

        Raises:
            RunError: If one of them fails.
        """
        config, design = self._study.config, self._study.design
        jobs = []
        for name, task in config.tasks.items():
            env = replace(design.env(name), num_envs=1)
            noise = (task.noise or env.noise) if task.best is None else None
            arguments = {"data": to_dict(env), "noise": noise, "seed": _REFERENCE_SEED}
            known = self._study.references.get(name, {})
            if known.get("arguments") != _plain(arguments):
                jobs.append(Job(key=name, name="references", arguments=arguments))
        if jobs:
            self._reporter.say(f"playing the references of {len(jobs)} tasks")
        for answer in self._pool.map(jobs, lambda: None):
            name = answer.job.key
            if answer.error is not None:
                raise RunError(f"the references of {name} failed: {answer.error}")
            found = {**answer.result, "arguments": _plain(answer.job.arguments)}
            self._study.add_references(name, found)

    def train(self) -> None:
        """Train and test what is not finished, phase by phase; cells that fail are kept apart.

        Raises:
            TrainingInterrupted: After SIGINT or SIGTERM; what was trained is saved.
        """
        with Interruption() as interruption:
            try:
                for i in range(len(self._study.phases())):
                    # Anew: a stage depends on what the phases before it have chosen.
                    phases = self._study.phases()
                    cells = [cell for phase in phases for cell in phase.cells]
                    self._planned = {cell.digest: cell for cell in cells}
                    self._train(phases[i], interruption)
            except TrainingInterrupted as stopped:
                raise TrainingInterrupted(
                    f"the study is saved in {self._study.folder}; the same command continues it",
                    stopped.signal_number,
                ) from None

    def _train(self, phase: Phase, interruption: Interruption) -> None:
        missing = self._study.results.missing(phase.cells)
        self._cells = {cell.digest: cell for cell in missing}
        self._refresh()
        jobs = [
            Job(
                key=cell.digest,
                name="train",
                arguments={"data": cell.to_dict(), "study": str(self._study.folder)},
            )
            for cell in missing
        ]

        def wait() -> None:
            interruption.check()
            self._show(f"{phase.name}: {len(self._cells)} of {len(jobs)} cells left")

        for answer in self._pool.map(jobs, wait):
            self._take(answer)
            self._refresh()
            interruption.check()

    def _take(self, answer: Answer) -> None:
        """Keep what came of a cell and say so."""
        cell = self._cells.pop(answer.job.key)
        if answer.error is not None:
            self._study.fail(cell, answer.error)
            self._reporter.say(f"failed: {cell.label}: {answer.error}")
            return
        record = Record(**answer.result)
        self._study.results.append(record)
        self._study.succeed(cell)
        self._clock.learn([cell])
        mean = sum(record.means) / len(record.means)
        self._show(f"{cell.label}: return {mean:.3f}")

    def _refresh(self) -> None:
        """Estimate anew what is left, in seconds of one core."""
        cells = list(self._planned.values())
        failures = self._study.failures
        # Those that failed before are tried again with their phase.
        unfinished = [
            cell for cell in cells if cell.label not in failures or cell.digest in self._cells
        ]
        self._left = self._clock.seconds(self._study.results.missing(unfinished))
        self._whole = max(self._clock.seconds(cells), 1e-9)

    def _show(self, text: str) -> None:
        begun = sum(
            self._begun(self._cells[job.key])
            for job in self._pool.running.values()
            if job.key in self._cells
        )
        left = max(self._left - begun, 0.0)
        self._reporter.update(1 - left / self._whole, left / self._pool.workers, text)

    def _begun(self, cell: Cell) -> float:
        """Return the seconds that were spent on a cell in training, from its metrics."""
        path = self._study.cell_folder(cell) / "run" / "metrics.jsonl"
        return self._clock.begun(cell, _last_step(path))


def _last_step(path: Path) -> int:
    """Return the step of the last whole line of a run's metrics, 0 if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")
        return int(json.loads(lines[-2])["steps"]) if len(lines) > 1 else 0
    except (OSError, ValueError, KeyError):
        return 0


def _plain(arguments: Mapping[str, object]) -> object:
    """Return arguments as they are read again from JSON: lists in place of tuples."""
    return json.loads(json.dumps(dict(arguments)))
