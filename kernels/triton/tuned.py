"""How the WKV-7 kernels are laid out on a GPU: a table, looked up at once; nothing is searched.

`benchmarks/tune_triton.py` searches on a new GPU and prints the rows to add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

Key = tuple[str, int, int, str]
"""Architecture ("sm_90"), K and V padded to powers of two, precision."""


class Blocks(NamedTuple):
    """What one program of a kernel works on, and with how many threads.

    Attributes:
        steps: Steps per chunk, a power of two, at least 16.
        values: Rows of the state, a power of two, at least 16; no more than V padded is used.
        warps: Groups of 32 threads.
        stages: Chunks whose loads are under way at a time.
    """

    steps: int
    values: int
    warps: int
    stages: int


class Config(NamedTuple):
    """The blocks of the three kernels. `gradient.steps` is a multiple of both others.

    Attributes:
        forward: Of the outputs, serial over chunks.
        state_gradient: Of the gradients of the states, serial over chunks.
        gradient: Of the gradients of the inputs, parallel over chunks.
    """

    forward: Blocks
    state_gradient: Blocks
    gradient: Blocks

    def numbers(self) -> list[int]:
        """Return the configuration as a flat list, which an operator can take."""
        return [number for blocks in self for number in blocks]

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> Config:
        """Return what `numbers` made a list of."""
        return cls(*(Blocks(*numbers[i : i + 4]) for i in range(0, len(numbers), 4)))


def _config(chunk: int, values: int, span: int, warps: int) -> Config:
    serial = Blocks(chunk, values, 4, 1)
    return Config(serial, serial, Blocks(span, values, warps, 1))


# Chosen from what the compiler reports, not measured: at 255 registers a thread two programs of
# four warps fit a multiprocessor, and 8 x 32 heads are one wave of such programs if each takes all
# of V = 64. Spans of 32 steps would halve the traffic of stored states, and spill three times as
# many registers.
TABLE: dict[Key, Config] = {
    ("sm_90", size, size, precision): _config(16, size, 16, 4)
    for size in (32, 64)
    for precision in ("bf16", "tf32", "tf32x3")
}


def architecture(device: torch.device) -> str:
    """Return the name of a GPU's architecture, "cpu" in the interpreter."""
    if device.type != "cuda":
        return "cpu"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def choose(architecture: str, keys: int, values: int, precision: str) -> Config:
    """Return the configuration for padded widths: the table's, else a cautious one.

    Args:
        architecture: Where the kernels will run, "sm_90".
        keys: K padded.
        values: V padded.
        precision: Of the products: "bf16", "tf32" or "tf32x3".
    """
    return TABLE.get((architecture, keys, values, precision), _cautious(keys))


def _cautious(keys: int) -> Config:
    """Return blocks that fit 99 KB of shared memory whatever the widths and the precision."""
    return _config(16, 32, 16, 8 if keys > 64 else 4)


def check(config: Config) -> None:
    """Raise `ValueError` unless the kernels can run with this configuration."""
    for name, blocks in zip(Config._fields, config, strict=True):
        powers = (blocks.steps, blocks.values, blocks.warps)
        if any(x & (x - 1) or x < 1 for x in powers) or min(powers[:2]) < 16 or blocks.stages < 1:
            raise ValueError(
                f"{name} is {blocks}; expected powers of two, steps and values at least 16, and "
                "at least one stage."
            )
    span = config.gradient.steps
    if span % config.forward.steps or span % config.state_gradient.steps:
        raise ValueError(
            f"gradient.steps is {span}; expected a multiple of forward.steps "
            f"({config.forward.steps}) and state_gradient.steps ({config.state_gradient.steps})."
        )
