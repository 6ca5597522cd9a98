"""What a training run shows: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

PLAIN_SECONDS = 5.0
"""Least time between two plain lines; logs of long runs stay short."""


class Display(NamedTuple):
    """What of a run is shown, and in which words; by default an agent's."""

    step: str = "step"
    """What is counted."""
    metric: str = "return_mean"
    """The metric shown."""
    label: str = "return"
    """What it is called."""
    unit: str = "steps"
    """What the speed counts."""
    units_per_step: float = 1.0
    """How many of these a step has."""


class Reporter(Protocol):
    """Shows the progress of a run."""

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Show the state after an update that ended at `step`."""

    def close(self) -> None:
        """Show the last state and free the terminal."""


def make_reporter(
    total_steps: int,
    start_step: int = 0,
    *,
    shown: bool = True,
    stream: TextIO | None = None,
    display: Display = Display(),  # noqa: B008 (a tuple never changes)
) -> Reporter:
    """Return a bar if `stream` is a terminal, plain lines if not, and silence unless `shown`.

    Args:
        total_steps: Steps at the end of the run.
        start_step: Steps before this process began, which do not count for the speed.
        shown: False for silence.
        stream: Where to write; standard output by default.
        display: What is shown.
    """
    if not shown:
        return _Silence()
    stream = sys.stdout if stream is None else stream
    if stream.isatty():
        return _Bar(total_steps, start_step, stream, display)
    return _Lines(total_steps, start_step, stream, display)


class Pace:
    """Measures steps per second and the time left.

    Args:
        total_steps: Steps at the end of the run.
        start_step: Steps before the clock started.
    """

    def __init__(self, total_steps: int, start_step: int) -> None:
        self._total = total_steps
        self._start = start_step
        self._began = time.monotonic()

    def __call__(self, step: int) -> tuple[float, float]:
        """Return (steps per second since the start, seconds left)."""
        elapsed = max(time.monotonic() - self._began, 1e-9)
        speed = (step - self._start) / elapsed
        left = (self._total - step) / speed if speed > 0 else float("inf")
        return speed, max(left, 0.0)


def clock(seconds: float) -> str:
    """Return a duration as `m:ss` or `h:mm:ss`."""
    if seconds == float("inf"):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def number(value: Any) -> str:
    """Return a metric with three digits after the point, or a dash for what is not known yet."""
    is_known = isinstance(value, int | float) and value == value
    return f"{value:.3f}" if is_known else "-"


class _Silence:
    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines:
    """One plain line every few seconds, the last update always among them."""

    def __init__(self, total_steps: int, start_step: int, stream: TextIO, display: Display) -> None:
        self._display = display
        self._total = total_steps
        self._pace = Pace(total_steps, start_step)
        self._stream = stream
        self._printed_at = float("-inf")
        self._pending: str | None = None

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        speed, left = self._pace(step)
        shown = self._display
        self._pending = (
            f"{shown.step} {step:>9,} of {self._total:,} ({min(step / self._total, 1):4.0%})   "
            f"{shown.label} {number(metrics.get(shown.metric)):>8}   "
            f"{speed * shown.units_per_step:>7,.0f} {shown.unit}/s   {clock(left)} left"
        )
        if time.monotonic() - self._printed_at >= PLAIN_SECONDS:
            self._print()

    def close(self) -> None:
        if self._pending is not None:
            self._print()

    def _print(self) -> None:
        print(self._pending, file=self._stream, flush=True)
        self._pending = None
        self._printed_at = time.monotonic()


class _Bar:
    """A bar with steps, the metric, speed and the time left."""

    def __init__(self, total_steps: int, start_step: int, stream: TextIO, display: Display) -> None:
        self._display = display
        self._pace = Pace(total_steps, start_step)
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[steps]}"),
            TextColumn(f"{display.label} [bold green]{{task.fields[metric]}}"),
            TextColumn(f"{{task.fields[speed]}} {display.unit}/s"),
            TextColumn("[cyan]{task.fields[left]}[/] left"),
            console=Console(file=stream),
            expand=True,
        )
        self._progress.start()
        self._total = total_steps
        self._task = self._progress.add_task(
            "train",
            total=total_steps,
            completed=start_step,
            steps=f"{start_step:,}",
            metric="-",
            speed="-",
            left="-:--",
        )

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        speed, left = self._pace(step)
        self._progress.update(
            self._task,
            completed=min(step, self._total),
            steps=f"{step:,}",
            metric=number(metrics.get(self._display.metric)),
            speed=f"{speed * self._display.units_per_step:,.0f}",
            left=clock(left),
        )

    def close(self) -> None:
        self._progress.stop()
