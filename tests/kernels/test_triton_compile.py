"""The WKV-7 kernels compile for a GPU to its machine code; no GPU is needed for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# What one program may have on the named GPUs, in bytes.
SHARED_MEMORY = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}
SCRIPT = Path(__file__).with_name("triton_compilation.py")


def compiled(cache, architecture, dtype, keys, values, queries=1):
    """Return what `triton_compilation.py` reports, from an empty cache and no interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    command = [sys.executable, str(SCRIPT), architecture, dtype]
    command += [str(n) for n in (keys, values, queries)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    reports = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(reports) == 6
    return reports


def test_kernels_compile_for_a_gpu_and_fit_its_shared_memory(tmp_path):
    for report in compiled(tmp_path, "sm_90", "bf16", 32, 32):
        assert report["shared"] <= SHARED_MEMORY["sm_90"]
        assert report["binary"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("architecture", sorted(SHARED_MEMORY))
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize(
    ("keys", "values", "queries"),
    [(16, 16, 1), (24, 40, 1), (32, 32, 3), (64, 64, 1), (64, 64, 2), (128, 128, 1)],
)
def test_kernels_of_every_width_and_dtype_compile(
    tmp_path, architecture, dtype, keys, values, queries
):
    for report in compiled(tmp_path, architecture, dtype, keys, values, queries):
        assert report["shared"] <= SHARED_MEMORY[architecture]
