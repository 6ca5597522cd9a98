"""Worker processes, each of one thread, that take jobs until none is left."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# A worker asked to stop saves its training first; then it is made to.
_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request to a worker."""

    key: str
    """Names the job in the answers."""
    name: str
    """A key of `doxastic.studies.work.JOBS`."""
    arguments: Mapping[str, Any]
    """Its arguments, plain data."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a job."""

    job: Job
    """The job."""
    result: Any = None
    """What it returned."""
    error: str | None = None
    """Why it failed, if it did."""


class Pool:
    """Processes of the same interpreter; a context manager that stops them at its end.

    They are new sessions, so that Ctrl-C in the terminal reaches this process alone, which closes
    their input: they save and stop, as they do if this process is killed.

    Args:
        workers: Number of processes.
        log: File to which they write what they have to say.
    """

    def __init__(self, workers: int, log: Path) -> None:
        self.workers = workers
        self._log = log
        self._processes: list[subprocess.Popen[str] | None] = [None] * workers
        self.running: dict[int, Job] = {}

    def __enter__(self) -> Pool:
        """Return the pool; its processes start with their first job."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the processes; a training in progress is saved."""
        alive = [process for process in self._processes if process is not None]
        for process in alive:
            # A pipe to a process that is gone cannot be flushed.
            with contextlib.suppress(OSError):
                _pipe(process.stdin).close()
        for process in alive:
            try:
                process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _close(process)
        self._processes = [None] * self.workers

    def map(self, jobs: Sequence[Job], on_wait: Callable[[], None]) -> Iterator[Answer]:
        """Yield the answers to all jobs as they come.

        Args:
            jobs: The jobs, started in this order.
            on_wait: Called about once a second, to show progress.
        """
        answers: queue.SimpleQueue[tuple[int, Answer]] = queue.SimpleQueue()
        ahead = iter(jobs)
        idle = list(range(self.workers))
        left = len(jobs)
        while left:
            while idle and (job := next(ahead, None)) is not None:
                index = idle.pop(0)
                self.running[index] = job
                threading.Thread(target=self._ask, args=(index, job, answers), daemon=True).start()
            try:
                index, answer = answers.get(timeout=1.0)
            except queue.Empty:
                on_wait()
                continue
            left -= 1
            del self.running[index]
            idle.append(index)
            yield answer

    def _ask(self, index: int, job: Job, answers: queue.SimpleQueue[tuple[int, Answer]]) -> None:
        """Give a job to a worker, wait for its answer and put it into the queue."""
        try:
            answer = self._answer(index, job)
        except (OSError, ValueError) as error:
            # Whoever waits for an answer is to get one.
            answer = Answer(job=job, error=f"its process cannot be used: {error}")
        answers.put((index, answer))

    def _answer(self, index: int, job: Job) -> Answer:
        """Return the answer of a worker, which is started if it is not there."""
        process = self._processes[index]
        if process is None or process.poll() is not None:
            process = self._processes[index] = self._start()
        line = ""
        with contextlib.suppress(OSError, ValueError):
            request = {"job": job.name, "arguments": dict(job.arguments)}
            _pipe(process.stdin).write(json.dumps(request) + "\n")
            _pipe(process.stdin).flush()
            line = _pipe(process.stdout).readline()
        if line:
            return Answer(job=job, **json.loads(line))
        code = process.wait()
        _close(process)
        what = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Answer(job=job, error=f"its process ended with {what}; see {self._log}")

    def _start(self) -> subprocess.Popen[str]:
        fixed = {**dict.fromkeys(_THREADS, "1"), "GLIBC_TUNABLES": _huge_pages()}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "doxastic.studies.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env={**os.environ, **fixed},
                start_new_session=True,
            )


# Read by the libraries when they load: a second thread makes networks this small no faster.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def _huge_pages() -> str:
    """Return the environment's GLIBC_TUNABLES with huge pages for malloc, where it allows them.

    Training allocates and frees some megabytes at every step: in huge pages an update took a
    fifth less time. Other C libraries, and a choice already made, are left alone.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" in tunables:
        return tunables
    return ":".join(filter(None, (tunables, "glibc.malloc.hugetlb=1")))


def _close(process: subprocess.Popen[str]) -> None:
    """Close the pipes of a process that has ended."""
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            _pipe(stream).close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise RuntimeError("the worker was started without pipes")
    return stream
