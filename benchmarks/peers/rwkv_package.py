"""The `rwkv` package, single-stream inference of RWKV-7 checkpoints (pip install rwkv)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def load(path: Path) -> Any:
    """Return the package's model of a `.pth`, float32 on the CPU.

    It reads its settings from the environment when it is imported.
    """
    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
    from rwkv.model import RWKV

    return RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")
