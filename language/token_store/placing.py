"""A folder that appears in one step: built beside its place, then renamed."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from doxastic.language.token_store.files import FILES
from doxastic.language.token_store.writer import writing


def require_replaceable(folder: Path) -> None:
    """Refuse to put a store in the place of anything but a store.

    Raises:
        ValueError: If the folder holds another file, or is one.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder for the token store.")
    if others := sorted({path.name for path in folder.iterdir()} - set(FILES)):
        raise ValueError(
            f"{folder} holds {others[0]}, which is no part of a token store; choose a folder that "
            "is empty or does not exist."
        )


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside the store's place; what is left of it at the end is removed.

    What builds that were killed on this machine have left is removed first.
    """
    place = folder.absolute()
    stem = f".{place.name}.{socket.gethostname()}"
    with writing(folder):
        place.parent.mkdir(parents=True, exist_ok=True)
        for left in place.parent.glob(f"{glob.escape(stem)}.*"):
            if len(left.suffixes) > 2 and not _is_running(left.suffixes[-3]):
                shutil.rmtree(left, ignore_errors=True)
        built = place.with_name(f"{stem}.{os.getpid()}.{secrets.token_hex(4)}.building")
        built.mkdir()
    try:
        yield built
    finally:
        shutil.rmtree(built, ignore_errors=True)


def install(built: Path, folder: Path, description: str) -> None:
    """Complete what was built with its store.json, and rename it to its place.

    An older store there is removed once it has been replaced; who has it open keeps it.
    """
    retired = built.with_suffix(".retired")
    with writing(folder):
        with (built / "store.json").open("w", encoding="utf-8") as file:
            file.write(description)
            file.flush()
            os.fsync(file.fileno())
        _sync(built)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(retired)
        built.rename(folder)
        _sync(built.parent)
    shutil.rmtree(retired, ignore_errors=True)


def _is_running(suffix: str) -> bool:
    """Return whether a process of this machine has the number; true for what is no number."""
    number = suffix.removeprefix(".")
    if not number.isdecimal():
        return True
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _sync(folder: Path) -> None:
    """Wait until the disk has the folder's names; a rename is not durable before."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
