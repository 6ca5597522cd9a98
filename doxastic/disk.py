"""Writing that survives a crash, and what the disk refuses said in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


class RunError(RuntimeError):
    """A run folder that cannot be used; the message says why and what to do."""


@contextlib.contextmanager
def disk_errors(folder: Path, options: str = "train: --run-dir, plot: --output") -> Iterator[None]:
    """Turn what the disk refuses into a `RunError` with its remedy.

    Args:
        folder: What is written, or the folder of it.
        options: Where another one is chosen on the command line.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        remedies = {
            errno.ENOSPC: "free some space",
            errno.EDQUOT: "free some of your quota",
            errno.EACCES: "change its permissions, or choose a folder you may write",
            errno.EROFS: "choose a folder you may write",
            errno.EISDIR: "choose the name of a file",
        }
        remedy = remedies.get(error.errno or 0, "check the folder, or choose another")
        where = f" ({options})" if "choose" in remedy else ""
        raise RunError(f"cannot write {folder}: {reason}; {remedy}{where}") from error


def check_output(path: Path, option: str) -> None:
    """Raise at once what would keep a file from being written after the work for it.

    Args:
        path: The file; folders on the way to it need not be there yet.
        option: The option that names it, for the message.

    Raises:
        RunError: It is a folder, or the disk takes no file there.
    """
    with disk_errors(path, option):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            # A device or a pipe, which is written to where it stands.
            return
        folder = Path(os.path.realpath(path)).parent
        while not folder.exists():
            folder = folder.parent
        # What may be written is told by writing: of network disks, permissions say little.
        tempfile.TemporaryFile(dir=folder).close()


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
