"""Ctrl-C and SIGTERM as a request that the training loop reads between two updates."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """Training was asked to stop and saved itself first.

    Attributes:
        signal_number: The signal that asked; a shell expects the exit code 128 plus it.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Interruption:
    """A context in which the first SIGINT or SIGTERM waits for the next call of `check`.

    A second one interrupts at once. Outside the main thread, where Python allows no handlers,
    signals keep their meaning.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def received(self) -> int | None:
        """The signal that has come, if one has."""
        return self._received

    def check(self) -> None:
        """Raise `TrainingInterrupted` if a signal has come."""
        if self._received is not None:
            raise TrainingInterrupted("asked to stop", self._received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise TrainingInterrupted("asked to stop at once", number)
        self._received = number
        print(
            f"\n{signal.Signals(number).name}: finishing this update, then saving "
            "(once more stops at once)",
            file=sys.stderr,
            flush=True,
        )
