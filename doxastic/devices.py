"""Where a run computes: its device, and its threads on the CPU."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from doxastic.configuration import ConfigError


def check_device_name(name: str) -> None:
    """Raise `ConfigError` unless a device has such a name, here or on another machine."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ConfigError(f"device is {name!r}; expected cpu, mps, cuda or cuda:<number>")


def torch_device(name: str) -> torch.device:
    """Return the device of that name, or raise `ConfigError` if it is not there."""
    present = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        present.append("mps")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    short = {"cuda"} & {other.split(":")[0] for other in present}
    if device is None or str(device) not in {*present, *short}:
        raise ConfigError(
            f"device is {name!r}, which this machine does not have; it has {', '.join(present)}"
        )
    return device


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Bound torch's threads inside, and give the caller's number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(number, os.cpu_count() or 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)
