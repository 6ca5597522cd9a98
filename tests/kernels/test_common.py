"""What numba keeps on disk: made anew when any source changed, and done without where it must."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core import caching

import doxastic
from doxastic.kernels import checks
from doxastic.kernels.cpu import common

ROOT = Path(doxastic.__file__).parent


@pytest.fixture
def package(tmp_path):
    """A copy of the kernels, whose files a test may change."""
    (tmp_path / "doxastic").mkdir()
    (tmp_path / "doxastic/__init__.py").touch()
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "kernels", tmp_path / "doxastic/kernels", ignore=ignored)
    return tmp_path


def run(package, script):
    """Return what a script writes that takes its kernels from the package, and its cache too."""
    environment = {"PYTHONPATH": str(package), "NUMBA_CACHE_DIR": str(package / "cache")}
    result = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False,
        cwd=package, env={**os.environ, **environment}, timeout=100,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def replace(file, old, new):
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_a_kernel_is_compiled_anew_when_what_it_calls_has_changed(package):
    script = """
import torch
from doxastic.kernels.cpu import wkv7
decay = wkv7._decay(torch.zeros(16))
print(decay[0].item(), *map(sum, (x.values() for x in wkv7._exp.stats[1:])))
"""
    assert run(package, script) == "1.0 0 1"
    assert run(package, script) == "1.0 1 0"
    simd = package / "doxastic/kernels/cpu/simd.py"
    replace(
        simd,
        "value = builder.fadd(value, _constant(1.0),",
        "value = builder.fadd(value, _constant(3.0),",
    )
    assert run(package, script) == "3.0 0 1"


def test_a_kernel_is_compiled_anew_when_a_constant_from_elsewhere_has_changed(package):
    script = """
from doxastic.kernels.cpu import belief_moments
print(belief_moments._forward._cache._cache_file._source_stamp)
"""
    before = run(package, script)
    assert run(package, script) == before
    replace(package / "doxastic/kernels/belief_moments.py", "LIMIT = 8.0", "LIMIT = 9.0")
    assert run(package, script) != before


def test_kernels_are_compiled_where_nothing_can_be_kept(monkeypatch, caplog):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    monkeypatch.setattr(checks, "_logged", set())

    def double(x):
        for i in range(len(x)):
            x[i] += x[i]

    x = np.ones(3, np.float32)
    with caplog.at_level(logging.WARNING, "doxastic.kernels"):
        for _ in range(2):
            common.compiled(double)(x)
    assert (x == 4).all()
    assert len(caplog.messages) == 1 and "NUMBA_CACHE_DIR" in caplog.messages[0]
