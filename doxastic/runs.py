"""The run folder: configuration, metrics, TensorBoard events and checkpoints of one run.

```
runs/<name>/
  config.yaml             the whole experiment, reloadable
  metrics.jsonl           one JSON object per update
  tensorboard/            the same numbers as TensorBoard events
  checkpoints/step-<n>/   see doxastic.checkpoints
  checkpoints/index.json  which of them is the best and which the last
  evaluation.json  *.png  written at the end, and by `doxastic evaluate` and `doxastic plot`
  calibration.json  calibration-*.png    written by `doxastic calibrate`
```
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doxastic.checkpoints import (
    Checkpoint,
    CheckpointError,
    read_checkpoint,
    write_checkpoint,
)
from doxastic.configuration import dump_yaml, read_yaml
from doxastic.disk import RunError, disk_errors, write_atomically

try:
    import fcntl
except ImportError:  # Windows has no flock: two processes in one folder are not detected there.
    fcntl = None  # type: ignore[assignment]

KEPT_CHECKPOINTS = 2
"""How many of the latest checkpoints are kept beside the best."""

_CHECKPOINT = re.compile(r"step-\d+")


class RunFolder:
    """One run on the disk.

    Make one with `create`, or open an existing one: `RunFolder(path)` reads, and `lock` takes it
    for writing. A context manager: leaving it closes the files and frees the lock.

    Args:
        path: An existing run folder.

    Raises:
        RunError: If there is no run at `path`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "config.yaml").is_file():
            raise RunError(_no_run(self.path))
        self._lock: int | None = None
        self._metrics: io.TextIOWrapper | None = None
        self._events: Any = None

    @classmethod
    def create(
        cls, config: Mapping[str, Any], *, name: str = "run", path: str | Path | None = None
    ) -> RunFolder:
        """Return a locked run folder that holds the configuration.

        Args:
            config: The experiment as plain data.
            name: Folder under `runs/`; if taken, `-2`, `-3` ... is appended.
            path: Use this folder instead; it must not exist or be empty.

        Raises:
            RunError: If `path` is taken, or the folder cannot be written.
        """
        folder = _new_folder(name) if path is None else _given_folder(Path(path))
        try:
            with disk_errors(folder):
                (folder / "checkpoints").mkdir()
                write_atomically(folder / "config.yaml", dump_yaml(config).encode())
        except RunError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        run = cls(folder)
        run.lock()
        return run

    def __enter__(self) -> RunFolder:
        """Return the folder itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()

    @property
    def has_checkpoint(self) -> bool:
        """Whether it has a checkpoint; a run killed while it was prepared has none."""
        return bool(self._checkpoints())

    @property
    def config(self) -> Any:
        """The content of `config.yaml`."""
        return read_yaml(self.path / "config.yaml")

    def lock(self) -> None:
        """Take the folder for writing until `close`.

        Raises:
            RunError: If a living process has it. A lock dies with its process.
        """
        with disk_errors(self.path):
            descriptor = os.open(self.path / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
                os.close(descriptor)
                raise RunError(
                    f"the run {self.path} is in use by process {owner}; wait until it ends or "
                    "stop it, or train into another folder with --run-dir"
                ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._lock = descriptor

    def close(self) -> None:
        """Close metrics and events and free the lock."""
        for part in (self._metrics, self._events):
            if part is not None:
                with contextlib.suppress(OSError):
                    part.close()
        self._metrics = self._events = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one update's metrics, which hold `steps`, to the file and to TensorBoard."""
        record = {key: _finite(value) for key, value in metrics.items()}
        with disk_errors(self.path):
            if self._metrics is None:
                self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
            self._metrics.write(json.dumps(record) + "\n")
            self._metrics.flush()
            self._log_events(record)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of all updates; a last line cut short is left out."""
        path = self.path / "metrics.jsonl"
        records = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def rewind(self, step: int) -> None:
        """Drop metrics and checkpoints after `step`: a resumed run makes them again."""
        kept = [record for record in self.metrics() if record["steps"] <= step]
        content = "".join(json.dumps(record) + "\n" for record in kept)
        with disk_errors(self.path):
            write_atomically(self.path / "metrics.jsonl", content.encode())
            for stray in (self.path / "checkpoints").glob(".step-*"):
                shutil.rmtree(stray, ignore_errors=True)
            for folder in self._checkpoints():
                if _step(folder) > step:
                    shutil.rmtree(folder)
            names = [folder.name for folder in self._checkpoints()]
            best = self._index().get("best")
            if names:
                self._point(last=names[-1], best=best if best in names else names[-1])

    def save(self, checkpoint: Checkpoint, *, best: bool) -> None:
        """Write a checkpoint, point `last` (and `best`) to it and remove old ones.

        Raises:
            RunError: If the disk refuses; the earlier checkpoints stay as they were.
        """
        name = f"step-{checkpoint.step}"
        with disk_errors(self.path):
            write_checkpoint(self.path / "checkpoints" / name, checkpoint)
            self._point(last=name, best=name if best else self._index().get("best", name))
            self._remove_old()

    def checkpoint_path(self, which: str = "best") -> Path:
        """Return the folder of the checkpoint `best`, `last` or `step-<n>`."""
        index = self._index()
        path = self.path / "checkpoints" / str(index.get(which, which))
        if path.is_dir():
            return path
        present = ", ".join(folder.name for folder in self._checkpoints()) or "none"
        raise CheckpointError(
            f"the run {self.path} has no checkpoint {which!r}; it has: {present}. "
            "A run saves its first one after a few updates."
        )

    def keeps(self, step: int) -> bool:
        """Return whether the checkpoint of a step is there, and was not removed for later ones."""
        return (self.path / "checkpoints" / f"step-{step}").is_dir()

    def load(self, which: str = "best", *, with_trainer: bool = False) -> Checkpoint:
        """Return the checkpoint `best`, `last` or `step-<n>`, checked."""
        return read_checkpoint(self.checkpoint_path(which), with_trainer=with_trainer)

    def write(self, name: str, content: bytes) -> Path:
        """Write a file of results into the run folder and return its path."""
        with disk_errors(self.path):
            (self.path / name).parent.mkdir(exist_ok=True)
            write_atomically(self.path / name, content)
        return self.path / name

    def log_text(self, name: str, text: str, step: int) -> None:
        """Give TensorBoard a text."""
        with disk_errors(self.path):
            self._open_events(step).add_text(name, text, step)

    def _log_events(self, record: Mapping[str, Any]) -> None:
        events = self._open_events(record["steps"])
        for key, value in record.items():
            if isinstance(value, int | float) and key != "steps":
                events.add_scalar(key, value, record["steps"])

    def _open_events(self, step: int) -> Any:
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(
                str(self.path / "tensorboard"), purge_step=step, flush_secs=10
            )
        return self._events

    def _index(self) -> dict[str, Any]:
        path = self.path / "checkpoints" / "index.json"
        try:
            index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            newest = [folder.name for folder in self._checkpoints()[-1:]]
            return dict.fromkeys(("last", "best"), newest[0]) if newest else {}
        except ValueError as error:
            raise CheckpointError(
                f"{path} is not valid JSON; name the checkpoint itself, for example "
                f"{self._checkpoints()[-1:] or 'step-<n>'}"
            ) from error
        return index

    def _checkpoints(self) -> list[Path]:
        # A copy that somebody made, step-64-old, is none of the run's.
        folders = (self.path / "checkpoints").glob("step-*")
        return sorted((x for x in folders if _CHECKPOINT.fullmatch(x.name)), key=_step)

    def _point(self, *, last: str, best: str) -> None:
        content = json.dumps({"last": last, "best": best}).encode()
        write_atomically(self.path / "checkpoints" / "index.json", content)

    def _remove_old(self) -> None:
        named = self._index().values()
        for folder in self._checkpoints()[:-KEPT_CHECKPOINTS]:
            if folder.name not in named:
                shutil.rmtree(folder, ignore_errors=True)


def run_and_checkpoint(path: Path) -> tuple[Path, str]:
    """Return the run folder and the checkpoint's name for a run or a checkpoint folder."""
    if path.parent.name == "checkpoints":
        return path.parent.parent, path.name
    return path, "last"


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _new_folder(name: str) -> Path:
    """Make and return `runs/<name>`, or the first free `runs/<name>-<i>`."""
    parent = Path("runs")
    with disk_errors(parent):
        parent.mkdir(exist_ok=True)
        for suffix in ("", *(f"-{i}" for i in range(2, 100_000))):
            folder = parent / f"{name}{suffix}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    raise RunError(f"runs/{name}-2 to runs/{name}-99999 are all taken; give --run-dir")


def _given_folder(folder: Path) -> Path:
    with disk_errors(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(
                f"{folder} exists and is not empty; choose another --run-dir, "
                f"or continue the run there with --resume {folder}"
            )
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _no_run(path: Path) -> str:
    what = "has no config.yaml" if path.is_dir() else "does not exist"
    siblings = sorted(config.parent.name for config in path.parent.glob("*/config.yaml"))
    hint = f"runs in {path.parent} are {', '.join(siblings)}" if siblings else "train one first"
    return f"{path} is not a run folder: it {what}; {hint}"


def _finite(value: Any) -> Any:
    """Return a JSON number, or `None` for what JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
