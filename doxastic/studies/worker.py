"""A process that does one job after the other: JSON lines in, JSON lines out.

`python -m doxastic.studies.worker` reads `{"job": name, "arguments": {...}}` and answers
`{"result": ...}` or `{"error": message}`. When its input ends, whoever started it is gone or wants
it to stop: a training in progress is saved first.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from typing import Any


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    # Whatever a library prints is no answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    while True:
        request = json.loads(jobs.get())
        answers.write(json.dumps(_answer(request)) + "\n")
        answers.flush()


def _read(jobs: queue.SimpleQueue[str]) -> None:
    """Pass lines on; at their end ask this process to save and stop."""
    for line in sys.stdin:
        jobs.put(line)
    os.kill(os.getpid(), signal.SIGTERM)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from doxastic.studies.work import JOBS

    try:
        return {"result": JOBS[request["job"]](**request["arguments"])}
    except Exception as error:
        # One cell that fails must not take the others with it.
        message = " ".join(str(error).split())
        return {"error": f"{type(error).__name__}: {message}"}


if __name__ == "__main__":
    # Asked to stop: the training in progress, if any, is saved.
    with contextlib.suppress(KeyboardInterrupt):
        main()
