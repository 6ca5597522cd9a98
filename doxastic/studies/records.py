"""The results of a study: one JSON line for each cell and noise level, appended as cells finish.

```
runs/studies/<name>/
  study.yaml        the whole study
  results.jsonl     one line for each cell x noise level, of finished cells only
  failures.json     cells that failed in the last call, with their errors
  cells/<task>/<memory>/seed-<s>-<digest>/run/            the run folder of the training
                                         /episodes.npz    returns [levels, episodes] of the test
```
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from doxastic.disk import RunError, disk_errors, write_atomically
from doxastic.studies.cells import Cell, Settings, cell_folder

VERSION = 1
"""Version of a line of results.jsonl."""

OPTIONS = "--output, --report"
"""Options of the command that name the folders it writes to."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A finished cell, as its lines in the results have it."""

    digest: str
    """Names the numbers of the cell."""
    stage: str
    """The stage that first asked for it."""
    task: str
    """Name of the task."""
    memory: str
    """Name of the memory."""
    seed: int
    """Seed of the training."""
    learning_rate: float
    """Adam's step size."""
    entropy: float
    """Weight of the entropy bonus."""
    steps: int
    """Environment steps of the training."""
    parameters: int
    """Trained parameters of the agent."""
    episodes: int
    """Test episodes at each level."""
    evaluation_seed: int
    """Seed of the first of them."""
    seconds_training: float
    """Time of the training, with the judging of its checkpoints."""
    seconds_evaluation: float
    """Time of the test."""
    versions: dict[str, str]
    """Versions of the packages that produced it."""
    levels: tuple[float | None, ...]
    """Noise levels; None for the environment's own noise."""
    means: tuple[float, ...]
    """Mean return at each level."""
    deviations: tuple[float, ...]
    """Standard deviation of the returns at each level."""

    @property
    def settings(self) -> Settings:
        """Its learning rate and entropy coefficient."""
        return Settings(self.learning_rate, self.entropy)

    @property
    def folder(self) -> str:
        """Where it is kept below the study's folder: that of the cell it was trained as."""
        return cell_folder(self.task, self.memory, self.seed, self.digest)

    def lines(self) -> str:
        """Return its lines in the file."""
        common = asdict(self)
        rows = zip(*(common.pop(k) for k in ("levels", "means", "deviations")), strict=True)
        return "".join(
            json.dumps(
                {"version": VERSION, **common, "levels": len(self.levels), "noise": level}
                | {"mean": mean, "deviation": deviation}
            )
            + "\n"
            for level, mean, deviation in rows
        )


class Results:
    """The file of results, read once and appended to.

    A line cut short by a crash, and the lines of a cell that lacks others, are dropped: that
    cell is evaluated again.

    Args:
        path: The file; it need not exist.

    Raises:
        RunError: If it is of another version, or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        rows: dict[str, dict[float | None, dict[str, Any]]] = {}
        for row in _rows(path, text):
            # Of lines that were written twice, the last.
            rows.setdefault(row["digest"], {})[row["noise"]] = row
        for digest, by_level in rows.items():
            group = list(by_level.values())
            if len(group) == group[0]["levels"]:
                self.records[digest] = _record(group)
        whole = "".join(record.lines() for record in self.records.values())
        self._damaged = whole != text

    def append(self, record: Record) -> None:
        """Add a finished cell and wait until the disk has it."""
        with disk_errors(self.path.parent, OPTIONS):
            if self._damaged:
                whole = "".join(known.lines() for known in self.records.values())
                write_atomically(self.path, whole.encode())
                self._damaged = False
            with self.path.open("ab") as file:
                file.write(record.lines().encode())
                file.flush()
                os.fsync(file.fileno())
        self.records[record.digest] = record

    def of(self, cells: Iterable[Cell]) -> list[Record]:
        """Return the records of those of the cells that are finished."""
        return [self.records[cell.digest] for cell in cells if cell.digest in self.records]

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return those of the cells that are not finished, each once."""
        waiting = {cell.digest: cell for cell in cells if cell.digest not in self.records}
        return list(waiting.values())


def save_episodes(path: Path, levels: Sequence[float | None], returns: np.ndarray) -> None:
    """Write the returns `[levels, episodes]` of a cell in float32, compressed, in one step."""
    import io

    content = io.BytesIO()
    noise = np.array([np.nan if level is None else level for level in levels])
    np.savez_compressed(content, noise=noise, returns=returns.astype(np.float32))
    with disk_errors(path.parent, OPTIONS):
        write_atomically(path, content.getvalue())


def load_episodes(path: Path) -> np.ndarray:
    """Return the returns `[levels, episodes]` of a cell.

    Raises:
        RunError: If the file is missing or damaged.
    """
    try:
        # NumPy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            return np.asarray(data["returns"], np.float32)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise RunError(
            f"{path} is missing or damaged ({error}); remove the lines of its cell from "
            "results.jsonl to test it again"
        ) from error


def save_failures(path: Path, failures: Mapping[str, str]) -> None:
    """Write which cells failed and why."""
    with disk_errors(path.parent, OPTIONS):
        write_atomically(path, json.dumps(dict(failures), indent=1).encode())


def load_failures(path: Path) -> dict[str, str]:
    """Return which cells failed and why, none without the file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _rows(path: Path, text: str) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            # Whatever was being written when the machine went down.
            if number == len(text.splitlines()):
                return
            raise RunError(
                f"{path}, line {number} is not valid JSON; restore the file, or remove the line"
            ) from None
        version = row.get("version") if isinstance(row, dict) else None
        if version != VERSION:
            raise RunError(
                f"{path}, line {number} has version {version!r}; this program reads version "
                f"{VERSION}. Choose another --output, or the program the file was written with"
            )
        yield row


def _record(rows: Sequence[Mapping[str, Any]]) -> Record:
    columns = {"levels": "noise", "means": "mean", "deviations": "deviation"}
    common: dict[str, Any] = {
        key: value
        for key, value in rows[0].items()
        if key not in {"version", *columns, *columns.values()}
    }
    common |= {name: tuple(row[key] for row in rows) for name, key in columns.items()}
    return Record(**common)
