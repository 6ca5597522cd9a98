"""Writing that survives a crash, and what the disk refuses said in one line."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


class RunError(RuntimeError):
    """A run folder that cannot be used; the message says why and what to do."""


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into a `RunError` with its remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        remedies = {
            errno.ENOSPC: "free some space",
            errno.EDQUOT: "free some of your quota",
            errno.EACCES: "change its permissions, or choose a folder you may write",
            errno.EROFS: "choose a folder you may write",
        }
        remedy = remedies.get(error.errno or 0, "check the folder, or choose another")
        options = " (train: --run-dir, plot: --output)" if "choose" in remedy else ""
        raise RunError(f"cannot write {folder}: {reason}; {remedy}{options}") from error


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part.

    A link stays one: what it leads to is replaced. A device or a pipe is written to.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_durably(temporary, content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's names; a rename is not durable before."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
