"""What every benchmark shares: alternated measurements in one process, ratios, targets, JSON."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from doxastic.allocation import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
Clock = Literal["cpu", "wall"]
_PACKAGES = (
    "doxastic", "gymnasium", "numba", "numpy", "sb3-contrib", "stable-baselines3", "tensordict",
    "torch", "torchrl",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every benchmark can be told."""

    quick: bool = False
    """Only try whether everything works: tiny sizes, numbers that mean nothing."""

    rounds: int = 0
    """Rounds in which all are measured in turn; 0 for the benchmark's own number."""

    output: Path = ROOT / "benchmarks" / "results"
    """Folder of the JSON file."""

    def rounds_or(self, default: int) -> int:
        """Return the rounds asked for, else 1 if quick, else `default`."""
        return self.rounds or (1 if self.quick else default)


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared."""

    call: Callable[[], object]
    """Does the work once."""

    threads: int = 1
    """Threads that torch, and the kernels with it, may use."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one entry a round."""

    cpu: list[float]
    """CPU time of the whole process, all threads."""

    wall: list[float]
    """Time on the wall."""

    def of(self, clock: Clock) -> list[float]:
        """Return the entries of one clock."""
        return self.cpu if clock == "cpu" else self.wall

    def median(self, clock: Clock = "cpu") -> float:
        """Return the median over the rounds."""
        return statistics.median(self.of(clock))

    def to_json(self, work: float | None = None) -> dict[str, Any]:
        """Return the numbers, with the rate at which `work` units per call are done."""
        data: dict[str, Any] = {
            f"{clock}_seconds_{name}": function(self.of(clock))
            for clock in ("cpu", "wall")
            for name, function in (("median", statistics.median), ("min", min))
        }
        data["cpu_seconds"] = self.cpu
        if work is not None:
            data["per_cpu_second"] = work / self.median()
        return data


def measure(
    arms: Mapping[str, Arm], rounds: int, *, sample_seconds: float = 0.0
) -> dict[str, Timing]:
    """Return the timings of arms that take turns, so that a slow moment strikes them all.

    One call of each arm, or two where samples repeat it, warms up. In every round each arm is
    sampled once; the order rotates by one from round to round.

    Args:
        arms: What to measure, by name.
        rounds: Samples of each.
        sample_seconds: A sample repeats the call until it has lasted about this long.
    """
    # As the command line does; for every arm alike.
    keep_freed_memory()
    threads = torch.get_num_threads()
    names = list(arms)
    calls = {name: _calls(arms[name], sample_seconds) for name in names}
    # A full collection of all that was imported takes .2 s, and would strike any one arm.
    gc.collect()
    gc.freeze()
    timings = {name: Timing([], []) for name in names}
    for round_ in range(rounds):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            cpu, wall = _sample(arms[name], calls[name])
            timings[name].cpu.append(cpu)
            timings[name].wall.append(wall)
    gc.unfreeze()
    torch.set_num_threads(threads)
    return timings


def _calls(arm: Arm, sample_seconds: float) -> int:
    """Warm up and return how many calls make a sample."""
    _, once = _sample(arm, 1)
    if sample_seconds <= 0.0:
        return 1
    _, once = _sample(arm, 1)
    return max(1, math.ceil(sample_seconds / once))


def _sample(arm: Arm, calls: int) -> tuple[float, float]:
    """Return CPU and wall seconds per call."""
    if torch.get_num_threads() != arm.threads:
        torch.set_num_threads(arm.threads)
        # Threads start, and wake, with their first work.
        arm.call()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        arm.call()
    return (time.process_time() - cpu) / calls, (time.perf_counter() - wall) / calls


def ratio(slower: Timing, faster: Timing, clock: Clock = "cpu") -> float:
    """Return how many times longer the first takes: the median over rounds of their ratio."""
    pairs = zip(slower.of(clock), faster.of(clock), strict=True)
    return statistics.median(a / b for a, b in pairs)


class WrongNumbers(RuntimeError):
    """A result differs from the truth; its speed is of no interest."""


def check_close(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise `WrongNumbers` unless the relative error in the Frobenius norm is within bounds."""
    actual, expected = actual.detach().double(), expected.detach().double()
    error = ((actual - expected).norm() / expected.norm().clamp_min(1e-30)).item()
    if not error <= tolerance:
        raise WrongNumbers(
            f"{name} is wrong: relative error {error:.1e}, allowed {tolerance:.0e}. "
            "No speed is reported; run pytest to find the cause."
        )


class Report:
    """Prints tables and targets while a benchmark runs and keeps them for its JSON file."""

    def __init__(self, name: str, options: Options, threads: int = 1) -> None:
        self.name, self.options = name, options
        self.console = Console()
        self.data: dict[str, Any] = {
            "benchmark": name,
            "quick": options.quick,
            **surroundings(),
            "threads": threads,
            "results": {},
            "targets": [],
        }

    def add(self, section: str, entry: Mapping[str, Any]) -> None:
        """Keep one entry of a section's list of results."""
        self.data["results"].setdefault(section, []).append(dict(entry))

    def table(self, title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        """Print a table whose first column is text and whose others are numbers."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    def target(
        self, what: str, value: float, *, least: float | None = None, most: float | None = None
    ) -> None:
        """Keep a value with the bound that it should keep, and whether it does; None if quick."""
        value = float(value)
        met: bool | None = (least is None or value >= least) and (most is None or value <= most)
        if self.options.quick:
            met = None
        self.data["targets"].append(
            {"what": what, "value": value, "least": least, "most": most, "met": met}
        )

    def save(self) -> Path:
        """Print the targets, write the JSON file and return its path."""
        rows = [
            (
                entry["what"],
                f"{entry['value']:.3f}",
                f">= {entry['least']:g}" if entry["most"] is None else f"<= {entry['most']:g}",
                {True: "met", False: "missed", None: ""}[entry["met"]],
            )
            for entry in self.data["targets"]
        ]
        self.table("targets", ("what", "value", "target", ""), rows)
        if self.options.quick:
            self.console.print("A quick run: these numbers say nothing about speed.")
        return self.write()

    def write(self) -> Path:
        """Write the JSON file as far as it has come and return its path."""
        path = self.path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.data, indent=2) + "\n", encoding="utf-8")
        return path

    def path(self) -> Path:
        """Return where the JSON file is, or will be."""
        return self.options.output / f"{self.name}{'-quick' if self.options.quick else ''}.json"


def surroundings() -> dict[str, Any]:
    """Return processor, versions, commit and command; nothing that names a host or a folder."""
    return {
        "command": _command(),
        "commit": _commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": "cpu",
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _command() -> str:
    """Return the command from the root of the repository, without the folder of the output."""
    words = ["python", f"benchmarks/{Path(sys.argv[0]).name}"]
    arguments = iter(sys.argv[1:])
    for word in arguments:
        if word == "--output":
            next(arguments, None)
        elif not word.startswith("--output="):
            words.append(word)
    return " ".join(words)


def _commit() -> str:
    """Return the commit, with "-dirty" if tracked source differs from it."""
    git = ("git", "--no-optional-locks", "-C", str(ROOT))
    described = _output(*git, "rev-parse", "HEAD")
    others = (":!benchmarks/results", ":!*.md")
    changed = _output(*git, "diff", "HEAD", "--name-only", "--", ".", *others)
    return (described or "unknown") + ("-dirty" if changed else "")


def _processor() -> str:
    """Return the processor's name as its maker gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or "unknown"


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
