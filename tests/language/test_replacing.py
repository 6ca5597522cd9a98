"""Files that take another's place: links stay links, pipes are written to."""

import os
import threading

import pytest
import torch

from doxastic.language.formats.files import read_safetensors
from doxastic.language.formats.replacing import replacing, write_safetensors

TENSORS = {"a": torch.arange(3.0)}


def test_what_a_link_leads_to_is_replaced(tmp_path):
    target, link = tmp_path / "old", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_safetensors(link, TENSORS, {})
    assert link.is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == ["link", "old"]
    assert torch.equal(read_safetensors(target)[0]["a"], TENSORS["a"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")
def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_safetensors(pipe, TENSORS, {})
    reader.join(30)
    assert pipe.is_fifo() and [p.name for p in tmp_path.iterdir()] == ["pipe"]
    (tmp_path / "file").write_bytes(got[0])
    assert torch.equal(read_safetensors(tmp_path / "file")[0]["a"], TENSORS["a"])


def test_what_makes_way_goes_once_the_new_file_is_written(tmp_path):
    path, seen = tmp_path / "file", []
    path.write_bytes(b"old")
    with replacing(path, lambda: seen.append((path.read_bytes(), len([*tmp_path.iterdir()])))) as t:
        t.write_bytes(b"new")
        assert seen == []
    assert (seen, path.read_bytes()) == ([(b"old", 2)], b"new")
    with pytest.raises(KeyError), replacing(path, seen.clear):
        raise KeyError
    assert len(seen) == 1


def test_what_stood_there_stays_where_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["file"]
