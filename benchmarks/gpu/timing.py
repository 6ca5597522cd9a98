"""Milliseconds and bytes of calls on a GPU: taken in turn, with a cold L2 cache, by CUDA events."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Call = Callable[[], object]

# A sample begins once this much was written, or four times the L2 cache if that is more. Writing it
# takes a tenth of a millisecond, in which the host gets ahead of the GPU, as it does in training.
FLUSH_BYTES = 512 * 2**20
WARM_UP = 3


class Clock(Protocol):
    """Measures one call; `CudaClock` but in tests."""

    copy_bytes: int
    """What `copy` reads and writes."""

    def sample(self, call: Call) -> tuple[float, float]:
        """Return milliseconds on the device, and until the host had launched everything."""

    def peak(self, call: Call) -> int:
        """Return the most bytes that stood during the call, beyond those from before it."""

    def copy(self) -> None:
        """Copy a buffer far larger than the caches."""


class CudaClock:
    """Measures calls on the current CUDA device, one at a time."""

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        size = max(FLUSH_BYTES, 4 * cache)
        self._flushed, self._source, self._target = (
            torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(3)
        )
        self.copy_bytes = 2 * size
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample(self, call: Call) -> tuple[float, float]:
        """Return milliseconds on the device, and until the host had launched everything."""
        torch.cuda.synchronize()
        self._flushed.zero_()
        self._start.record()
        begin = time.perf_counter()
        call()
        host = time.perf_counter() - begin
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end), 1e3 * host

    def peak(self, call: Call) -> int:
        """Return the most bytes that stood during the call, beyond those from before it."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def copy(self) -> None:
        """Copy a buffer far larger than the caches."""
        self._target.copy_(self._source)


@dataclass(frozen=True)
class Samples:
    """Milliseconds per call, one entry a round."""

    device: list[float]
    """Between CUDA events around the call: the GPU's work, or its wait for the host's launches."""

    host: list[float]
    """Until the host had launched everything; near `device`, the launches are what takes long."""

    def median(self) -> float:
        """Return the median time on the device."""
        return statistics.median(self.device)

    def to_json(self) -> dict[str, Any]:
        """Return statistics and all samples, to a hundredth of a microsecond."""
        # Quantiles need two samples; a quick run has one.
        low, _, high = statistics.quantiles(self.device if self.device[1:] else 2 * self.device)
        numbers = {
            "ms_median": self.median(),
            "ms_min": min(self.device),
            "ms_quartiles": [low, high],
            "host_ms_median": statistics.median(self.host),
            "ms": self.device,
        }
        return {name: _rounded(x) for name, x in numbers.items()}


def _rounded(x: float | list[float]) -> float | list[float]:
    return [round(y, 5) for y in x] if isinstance(x, list) else round(x, 5)


def alternate(arms: Mapping[str, Call], rounds: int, clock: Clock) -> dict[str, Samples]:
    """Return the samples of arms that take turns, so that clocks and heat strike them all.

    Every arm is called `WARM_UP` times. In every round each is then sampled once; the order rotates
    by one from round to round.
    """
    for call in arms.values():
        for _ in range(WARM_UP):
            clock.sample(call)
    names = list(arms)
    samples = {name: Samples([], []) for name in names}
    gc.collect()
    gc.disable()
    try:
        for round_ in range(rounds):
            first = round_ % len(names)
            for name in names[first:] + names[:first]:
                device, host = clock.sample(arms[name])
                samples[name].device.append(device)
                samples[name].host.append(host)
    finally:
        gc.enable()
    return samples


def ratio(slower: Samples, faster: Samples) -> float:
    """Return how many times longer the first takes: the median over rounds of their ratio."""
    pairs = zip(slower.device, faster.device, strict=True)
    return statistics.median(a / b for a, b in pairs)
