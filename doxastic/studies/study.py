"""A study in its folder: what is designed, what is finished, what was chosen on the way."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from doxastic.agents.study.references import has_reference
from doxastic.configuration import ConfigError, dump_yaml, read_yaml, to_dict
from doxastic.disk import RunError, disk_errors, write_atomically
from doxastic.studies.analysis import Choice, best_memory
from doxastic.studies.cells import Cell, Settings
from doxastic.studies.choices import best_setting
from doxastic.studies.config import StageConfig, StudyConfig
from doxastic.studies.design import SEARCH, Design
from doxastic.studies.records import OPTIONS, Results, load_failures, save_failures

try:
    import fcntl
except ImportError:  # Windows has no flock: two processes in one folder are not detected there.
    fcntl = None  # type: ignore[assignment]


# All there is of a study that a full disk stopped at once.
_BEGUN = ("study.lock", "workers.log")


class Phase(NamedTuple):
    """The search or a stage."""

    name: str
    """`search`, or the stage's name."""
    stage: StageConfig | None
    """The stage; None for the search."""
    cells: list[Cell]
    """What it trains; while choices are open, what it would with the first ones."""


class Study:
    """A study in its folder.

    Args:
        config: The study.
        folder: Its folder; it need not exist.

    Raises:
        ConfigError: If the study cannot be carried out, before anything is spent.
        RunError: If the folder holds another study, or results of another version.

    Attributes:
        design: Its cells.
        results: What is finished.
        references: Best known and random returns by task, as far as they were played.
        failures: Errors of the cells that failed when they were last tried, by label.
    """

    def __init__(self, config: StudyConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        _check_folder(config, folder)
        self.design = Design(config)
        _check_references(config, self.design)
        self.read()

    def read(self) -> None:
        """Read what is finished from the folder."""
        self.results = Results(self.folder / "results.jsonl")
        self.references: dict[str, Any] = self._read("references.json")
        self.failures = load_failures(self.folder / "failures.json")

    def phases(self) -> list[Phase]:
        """Return search and stages with their cells, as far as what was chosen is known."""
        searched, chosen = self.design.search_cells(), self.chosen()
        phases = [Phase(SEARCH, None, searched)] if searched else []
        for i, stage in enumerate(self.config.stages):
            cells = self.design.stage_cells(stage, chosen, self.best_of(i))
            phases.append(Phase(stage.name, stage, cells))
        return phases

    def searched(self) -> dict[tuple[str, str], list[Cell]]:
        """Return the cells of the search by (task, memory)."""
        pairs: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.design.search_cells():
            pairs.setdefault((cell.task, cell.memory), []).append(cell)
        return pairs

    def chosen(self) -> dict[tuple[str, str], Settings]:
        """Return what the search chose by (task, memory), without those where it goes on."""
        found = {
            pair: best_setting(self.results.of(cells))
            for pair, cells in self.searched().items()
            if not self._unfinished(cells)
        }
        return {pair: setting for pair, setting in found.items() if setting is not None}

    def best_among(self, index: int) -> Choice | None:
        """Return which memory a stage takes of its `best_of`, None while that is open."""
        stage = self.config.stages[index]
        if not stage.best_of or not self.references:
            return None
        before = self.config.stages[index - 1]
        cells = self.design.stage_cells(before, self.chosen(), self.best_of(index - 1))
        if self._unfinished(cells):
            return None
        return best_memory(self, Phase(before.name, before, cells), stage.best_of)

    def best_of(self, index: int) -> str | None:
        """Return which memory a stage takes of its `best_of`; the first one while that is open."""
        stage = self.config.stages[index]
        if not stage.best_of:
            return None
        choice = self.best_among(index)
        return stage.best_of[0] if choice is None else choice.memory

    def cell_folder(self, cell: Cell) -> Path:
        """Return the folder of a cell: of a finished one, where it was trained.

        A cell is known by its numbers: renaming its task or memory leaves its files alone.
        """
        record = self.results.records.get(cell.digest)
        return self.folder / (cell.folder if record is None else record.folder)

    def fail(self, cell: Cell, error: str) -> None:
        """Keep the error of a cell, for the report; it is tried again by the next call."""
        self.failures[cell.label] = error
        save_failures(self.folder / "failures.json", self.failures)

    def succeed(self, cell: Cell) -> None:
        """Forget that a cell failed before."""
        if self.failures.pop(cell.label, None) is not None:
            save_failures(self.folder / "failures.json", self.failures)

    def add_references(self, task: str, found: Any) -> None:
        """Keep the reference returns of a task."""
        self.references[task] = found
        content = json.dumps(self.references, indent=1).encode()
        with disk_errors(self.folder, OPTIONS):
            write_atomically(self.folder / "references.json", content)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, hold it against other processes inside, and read it again.

        Raises:
            RunError: If another process has it, or it cannot be written.
        """
        with disk_errors(self.folder, OPTIONS):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / "study.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, self.folder)
            # Another process may have gone on with it until it let go.
            self.read()
            with disk_errors(self.folder, OPTIONS):
                text = dump_yaml(to_dict(self.config))
                write_atomically(self.folder / "study.yaml", text.encode())
            yield
        finally:
            os.close(descriptor)

    def _unfinished(self, cells: list[Cell]) -> list[Cell]:
        """Return the cells that are neither finished nor failed."""
        return [cell for cell in self.results.missing(cells) if cell.label not in self.failures]

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _lock(descriptor: int, folder: Path) -> None:
    """Take the lock, which dies with the process, or raise `RunError` if another one has it."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"the study {folder} is in use by another process; wait until it ends, or choose "
                "another --output"
            ) from error


def _check_folder(config: StudyConfig, folder: Path) -> None:
    """Raise `RunError` if the folder holds another study.

    The same study with other numbers may go on there: its cells are told apart by what they are.
    """
    path = folder / "study.yaml"
    if path.exists():
        name = (read_yaml(path) or {}).get("name")
        if name != config.name:
            raise RunError(
                f"{folder} holds the study {name!r}; choose another --output for {config.name!r}"
            )
    elif folder.exists() and any(path.name not in _BEGUN for path in folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no study; choose another --output")


def _check_references(config: StudyConfig, design: Design) -> None:
    for name, task in config.tasks.items():
        if task.best is None and not has_reference(design.env(name)):
            raise ConfigError(
                f"tasks.{name}: no best policy is known for {design.env(name).id} with these "
                "settings, and returns cannot be normalised without; give best: and source:"
            )
        if task.best is None and design.env(name).noise is None:
            raise ConfigError(
                f"tasks.{name} leaves the levels of training to the environment; give them, "
                "settings: {env: {noise: [...]}}"
            )
