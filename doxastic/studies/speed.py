"""How long cells take: measured on this machine, and corrected by those that are finished."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from doxastic.disk import disk_errors, write_atomically
from doxastic.studies.cells import Cell
from doxastic.studies.pool import Job
from doxastic.studies.records import Record

# Opening and closing a run, its figures and the bootstrap of the program itself.
_CELL_SECONDS = 3.0

Pair = tuple[str, str]
"""A task and a memory."""


class Speeds:
    """Seconds per training step and per test episode of pairs of task and memory.

    Not every pair is measured: the time of a memory on a task is taken as that of the reference
    there, times what the memory takes relative to the reference on the first task.

    Args:
        path: File that keeps the measurements.
        cells: One cell of every pair, those of the first task first.
        reference: The memory that is measured on every task.
    """

    def __init__(self, path: Path, cells: Iterable[Cell], reference: str) -> None:
        self._path = path
        self._cells = {(cell.task, cell.memory): cell for cell in cells}
        self._task, self._memory = next(iter(self._cells))[0], reference
        self._measured: dict[str, dict[str, float]] = {}
        if path.exists():
            self._measured = json.loads(path.read_text(encoding="utf-8"))

    def jobs(self) -> list[Job]:
        """Return the measurements that are still to be made."""
        wanted = [pair for pair in self._cells if pair[0] == self._task or pair[1] == self._memory]
        return [
            Job(key=key, name="measure", arguments={"data": self._cells[pair].to_dict()})
            for pair in wanted
            if (key := _key(pair)) not in self._measured
        ]

    def add(self, key: str, seconds: Mapping[str, float]) -> None:
        """Keep a measurement."""
        self._measured[key] = dict(seconds)
        with disk_errors(self._path.parent):
            write_atomically(self._path, json.dumps(self._measured, indent=1).encode())

    def seconds(self, cell: Cell) -> float:
        """Return how long a cell takes on one core."""
        tested = cell.episodes * len(cell.noise or (0.0,))
        return _CELL_SECONDS + self.training(cell) + self._of(cell, "episode") * tested

    def training(self, cell: Cell) -> float:
        """Return how long its training takes, with the judging of checkpoints."""
        experiment = cell.experiment
        per_update = experiment.env.num_envs * experiment.ppo.segment_steps
        updates = math.ceil(experiment.total_steps / per_update)
        judged = updates // experiment.checkpoint_updates + 1
        episodes = experiment.evaluation.selection_episodes * len(experiment.env.noise or (0.0,))
        learning = self._of(cell, "step") * experiment.total_steps
        return learning + self._of(cell, "episode") * judged * episodes

    def _of(self, cell: Cell, what: str) -> float:
        """Return one of the times of a pair, from the pairs that were measured."""
        exact = self._measured.get(_key((cell.task, cell.memory)))
        if exact is not None:
            return exact[what]
        anchor = self._value((self._task, self._memory), what, 1.0)
        on_task = self._value((cell.task, self._memory), what, anchor)
        of_memory = self._value((self._task, cell.memory), what, anchor)
        return on_task * of_memory / anchor

    def _value(self, pair: Pair, what: str, default: float) -> float:
        return self._measured.get(_key(pair), {}).get(what, default)


class Clock:
    """The time left of a list of cells, given what finished ones took against their estimate.

    Args:
        speeds: The estimates.
        records: Finished cells by digest.
    """

    def __init__(self, speeds: Speeds, records: Mapping[str, Record]) -> None:
        self._speeds = speeds
        self._records = records
        self._ratios: list[float] = []

    def learn(self, cells: Iterable[Cell]) -> None:
        """Compare what finished cells took with what was estimated for them."""
        for cell in cells:
            record = self._records.get(cell.digest)
            if record is not None:
                taken = record.seconds_training + record.seconds_evaluation + _CELL_SECONDS
                self._ratios.append(taken / self._speeds.seconds(cell))

    def seconds(self, cells: Iterable[Cell]) -> float:
        """Return how long the cells take on one core."""
        return self._ratio() * sum(self._speeds.seconds(cell) for cell in cells)

    def begun(self, cell: Cell, steps: int) -> float:
        """Return the seconds that were spent on a cell that has trained for `steps`."""
        share = min(steps / cell.experiment.total_steps, 1.0)
        return self._ratio() * share * self._speeds.training(cell)

    def _ratio(self) -> float:
        # Of the latest cells: a machine is slower while others work on it.
        return statistics.median(self._ratios[-20:]) if self._ratios else 1.0


def _key(pair: Pair) -> str:
    return "|".join(pair)
