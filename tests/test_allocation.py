"""What was freed is there for what comes next, unless the user chose otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from doxastic.allocation import keep_freed_memory

FAULTS = """
import resource
import numpy as np
from doxastic.allocation import keep_freed_memory

kept = keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
# Twelve megabytes at a time, in three pieces.
def work():
    return [np.ones(1_000_000, np.float32) for _ in range(3)]
work()
before = faults()
for _ in range(20):
    work()
print(kept, faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    env = {key: x for key, x in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    # 60,000 and more if every piece came from the system anew.
    assert kept == "True" and int(faults) < 1000


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "1000000"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1")],
)
def test_the_users_choice_stays(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
