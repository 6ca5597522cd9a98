"""Settings every test shares: one thread, fixed seeds, and memory that is never quietly zero."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

# Read when the libraries load, so these stand before the first import of numpy or torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch

# Without a GPU the Triton kernels are tested in Triton's interpreter, which is chosen when triton
# is imported; `import torch` does not do that.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

KERNEL_TESTS = Path(__file__).parent / "kernels"


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    reason = "needs a CUDA device; torch.cuda.is_available() is False here"
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_empty_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """In tests/kernels, `torch.empty` and its kin hold NaN (the largest value for integers).

    A kernel that reads an entry it never wrote then fails at once, not only where the
    allocator hands out used memory.
    """
    if KERNEL_TESTS not in request.path.parents:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    # Deterministic mode fills what PyTorch allocates, `fill_uninitialized_memory` being on.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
