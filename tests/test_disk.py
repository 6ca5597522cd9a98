"""What keeps a file from being written is said before the work for it, in one line."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from doxastic.disk import RunError, check_output


def test_a_file_that_can_be_written_passes_and_nothing_is_left(tmp_path):
    (tmp_path / "old").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "old")
    for name in ("new", "old", "link", "folders/on/the/way"):
        check_output(tmp_path / name, "--output")
    reader, writer = os.pipe()
    check_output(Path(f"/dev/fd/{writer}"), "--output")
    for end in (reader, writer):
        os.close(end)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "old"]
    assert (tmp_path / "old").read_text() == "kept"


def test_a_folder_and_what_lies_below_a_file_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"Is a directory; choose the name of a file \(--output\)"):
        check_output(tmp_path, "--output")
    with pytest.raises(RunError, match=r"file/x/y: Not a directory; .* another \(--cache\)"):
        check_output(tmp_path / "file" / "x" / "y", "--cache")


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    def refuse(dir: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(RunError, match=r"cannot write .*/x: Permission denied; .* \(--output\)"):
        check_output(tmp_path / "x", "--output")
