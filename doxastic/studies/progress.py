"""What a study shows while it runs: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from doxastic.progress import PLAIN_SECONDS, clock


class StudyReporter(Protocol):
    """Shows the progress of a study."""

    def update(self, share: float, seconds_left: float, text: str) -> None:
        """Show the share of the work that is done, the time left, and what is going on."""

    def say(self, line: str) -> None:
        """Print a line that stays."""

    def close(self) -> None:
        """Free the terminal."""


def make_reporter(*, shown: bool = True, stream: TextIO | None = None) -> StudyReporter:
    """Return a bar if `stream` is a terminal, plain lines if not, and silence unless `shown`."""
    if not shown:
        return _Silence()
    stream = sys.stdout if stream is None else stream
    return _Bar(stream) if stream.isatty() else _Lines(stream)


class _Silence:
    def update(self, share: float, seconds_left: float, text: str) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def close(self) -> None:
        pass


class _Lines:
    """One plain line whenever the text changes, but no more than one every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._printed_at = float("-inf")
        self._text = ""

    def update(self, share: float, seconds_left: float, text: str) -> None:
        if text == self._text or time.monotonic() - self._printed_at < PLAIN_SECONDS:
            return
        self.say(f"{share:4.0%}   {clock(seconds_left):>8} left   {text}")
        self._text, self._printed_at = text, time.monotonic()

    def say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        pass


class _Bar:
    """A bar with the time left and the cell that finished last."""

    def __init__(self, stream: TextIO) -> None:
        self._progress = Progress(
            TextColumn("[bold]study"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("[cyan]{task.fields[left]}[/] left"),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(file=stream),
            expand=True,
        )
        self._progress.start()
        self._task = self._progress.add_task("study", total=1.0, left="-:--", text="")

    def update(self, share: float, seconds_left: float, text: str) -> None:
        self._progress.update(self._task, completed=share, left=clock(seconds_left), text=text)

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()
