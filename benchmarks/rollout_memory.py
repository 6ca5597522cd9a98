"""Memory that a rollout takes: its tensors, and what the process grows by while collecting it."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from pathlib import Path
from typing import Any

MEGABYTE = 1e6
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def rollout_memory(num_envs: int, segment_steps: int, heads: int, head_size: int) -> dict[str, Any]:
    """Return megabytes of one rollout of doxastic/CartPole-v0, measured in a fresh process.

    Returns:
        `tensors`: what the collected TensorDict holds. `memory_state`: of it, the states of the
        memory, once per segment. `growth_rollout`: how far the process's peak rises above its
        resident size from before the collector is built until the segment is there, and
        `growth_update` until the first update is done; None where /proc does not tell.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, num_envs, segment_steps, heads, head_size).result()


def _measure(num_envs: int, segment_steps: int, heads: int, head_size: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    # A small run first: compiling kernels and loading libraries is not the rollout's memory.
    _trainer(4, 4, heads, head_size).update()
    before = _peak_from_now()
    trainer = _trainer(num_envs, segment_steps, heads, head_size)
    rollout = trainer.collector.collect()
    after_rollout = _status("VmHWM")
    sizes = {
        "num_envs": num_envs,
        "segment_steps": segment_steps,
        "heads": heads,
        "head_size": head_size,
        "tensors": sum(x.nbytes for x in rollout.values(True, True)) / MEGABYTE,
        "memory_state": rollout["state"].nbytes / MEGABYTE,
        "growth_rollout": _difference(after_rollout, before),
    }
    del rollout
    trainer.update()
    return {**sizes, "growth_update": _difference(_status("VmHWM"), before)}


def _trainer(num_envs: int, segment_steps: int, heads: int, head_size: int) -> Any:
    from doxastic_trainer import build_trainer

    from doxastic.envs.make import EnvConfig, make_vector_env
    from doxastic.memory.build import MemoryConfig

    env = make_vector_env(EnvConfig(num_envs=num_envs))
    memory = MemoryConfig(width=heads * head_size, head_size=head_size)
    return build_trainer(env, memory, segment_steps)


def _peak_from_now() -> float | None:
    """Let the kernel forget the peak so far, and return the resident megabytes."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> float | None:
    """Return one of the process's sizes in megabytes, None where there is no such field."""
    if not _STATUS.exists():
        return None
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024 / MEGABYTE
    return None


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before
