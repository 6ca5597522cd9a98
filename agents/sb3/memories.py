"""The names by which policies and extractors choose a memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from doxastic.memory.base import Memory
from doxastic.memory.build import MemoryConfig, build_memory

MemoryName = Literal["belief", "rwkv7", "gru", "lstm", "window", "none"]
MemoryChoice = MemoryName | MemoryConfig | Callable[[int], Memory]


def chosen_memory(choice: MemoryChoice, input_size: int, width: int, window: int = 16) -> Memory:
    """Return a new memory for inputs of width `input_size`.

    Args:
        choice: A name, `rwkv7` being the core of `belief` without its belief; a `MemoryConfig`;
            or a function from `input_size` to a memory.
        input_size: Width of the inputs.
        width: Width of a memory that is given by name.
        window: Steps that the memory `window` sees.

    Raises:
        ValueError: If there is no memory of that name, or a size is impossible.
    """
    if isinstance(choice, MemoryConfig):
        return build_memory(choice, input_size)
    if callable(choice):
        return choice(input_size)
    if choice not in get_args(MemoryName):
        raise ValueError(
            f"memory is {choice!r}; expected one of {', '.join(get_args(MemoryName))}, a "
            "MemoryConfig, or a function from the width of the inputs to a Memory."
        )
    kind: Any = "belief" if choice == "rwkv7" else choice
    readout: Any = "none" if choice == "rwkv7" else "moments"
    config = MemoryConfig(kind=kind, readout=readout, width=width, window=window)
    return build_memory(config, input_size)
