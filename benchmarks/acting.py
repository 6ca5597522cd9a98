"""Speed of one acting step: the RWKV-7 block against `nn.GRUCell` and `nn.LSTMCell`.

One process, one thread, all in turn, under `torch.inference_mode()`. Every arm carries its state
from call to call, as acting does. The compiled step is compared with the layers it stands for
first; where they differ there is no report.

    python benchmarks/acting.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import get_args

import torch
import tyro
from harness import Arm, Options, Report, WrongNumbers, check_close, measure, ratio
from torch import Tensor, nn

from doxastic.memory.base import Memory
from doxastic.memory.baselines import GRUMemory
from doxastic.memory.belief import BeliefMemory, ReadoutName
from doxastic.memory.core import RWKV7Memory

WIDTH, HEAD_SIZE = 128, 32
BATCH_SIZES = (1, 16, 256)
# Batch size -> how many times GRUCell's time the block may take.
TARGETS = {1: 1.5, 16: 1.5, 256: 2.2}
TOLERANCE = 1e-5
SAMPLE_SECONDS = 0.02


class ActingOptions(Options):
    """Speed of one acting step against nn.GRUCell and nn.LSTMCell."""


def main(options: ActingOptions) -> None:
    """Measure, print and write `acting.json`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report = Report("acting", options)
    memories = build_memories()
    for name, memory in memories.items():
        check(name, memory)
    report.console.print("Single steps equal the sequences they belong to.")
    with torch.inference_mode():
        for batch in BATCH_SIZES:
            compare(report, batch, memories)
    report.save()


def build_memories() -> dict[str, Memory]:
    """Return the memories by name, all with inputs and features of WIDTH."""
    memories: dict[str, Memory] = {
        "RWKV7Memory": RWKV7Memory(WIDTH, WIDTH, layers=1, head_size=HEAD_SIZE)
    }
    for readout in get_args(ReadoutName):
        memories[f"BeliefMemory, {readout}"] = BeliefMemory(
            WIDTH, WIDTH, readout=readout, layers=1, head_size=HEAD_SIZE
        )
    memories["GRUMemory"] = GRUMemory(WIDTH, WIDTH)
    with torch.no_grad():
        for memory in memories.values():
            # The initial output projections of RWKV-7 are zero: no error would be seen.
            for parameter in memory.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return memories


def check(name: str, memory: Memory, batch: int = 3, steps: int = 5) -> None:
    """Raise `WrongNumbers` unless single steps equal a sequence, outputs and state."""
    x = torch.randn(batch, steps, WIDTH)
    reset = torch.zeros(batch, steps, dtype=torch.bool)
    reset[1, 3] = True
    state = memory.initial_state(batch)
    # With gradients recorded no memory takes its fast path.
    expected, last = memory(x, state, reset)
    features = []
    with torch.inference_mode():
        for t in range(steps):
            feature, state = memory(x[:, t : t + 1], state, reset[:, t : t + 1])
            features.append(feature)
        check_close(f"the features of {name}", torch.cat(features, 1), expected, TOLERANCE)
        check_close(f"the state of {name}", state, last, TOLERANCE)


def compare(report: Report, batch: int, memories: dict[str, Memory]) -> None:
    """Measure one step of everything at one batch size."""
    quick = report.options.quick
    steps = {name: memory_step(memory, batch) for name, memory in memories.items()}
    steps["nn.GRUCell"] = gru_step(batch)
    steps["nn.LSTMCell"] = lstm_step(batch)
    timings = measure(
        {name: Arm(step) for name, step in steps.items()},
        report.options.rounds_or(25),
        sample_seconds=0.0 if quick else SAMPLE_SECONDS,
    )
    ratios = {name: ratio(timing, timings["nn.GRUCell"]) for name, timing in timings.items()}
    report.add(
        "step",
        {
            "batch": batch,
            "width": WIDTH,
            "head_size": HEAD_SIZE,
            "arms": {name: timing.to_json() for name, timing in timings.items()},
            "ratio_to_gru_cell": ratios,
        },
    )
    report.table(
        f"one step, batch {batch}, width {WIDTH}",
        ("", "median us", "min us", "ratio to nn.GRUCell"),
        [
            (name, f"{1e6 * t.median():.1f}", f"{1e6 * min(t.cpu):.1f}", f"{ratios[name]:.2f}")
            for name, t in timings.items()
        ],
    )
    what = f"RWKV7Memory / nn.GRUCell, batch {batch}"
    report.target(what, ratios["RWKV7Memory"], most=TARGETS[batch])


def memory_step(memory: Memory, batch: int) -> Callable[[], Tensor]:
    """Return a step that continues from its own last state."""
    x = torch.randn(batch, 1, WIDTH)
    reset = torch.zeros(batch, 1, dtype=torch.bool)
    state = memory.initial_state(batch)

    def step() -> Tensor:
        nonlocal state
        features, state = memory(x, state, reset)
        return features

    return step


def gru_step(batch: int) -> Callable[[], Tensor]:
    """Return the step of an `nn.GRUCell`."""
    cell, x = nn.GRUCell(WIDTH, WIDTH), torch.randn(batch, WIDTH)
    h = torch.zeros(batch, WIDTH)

    def step() -> Tensor:
        nonlocal h
        h = cell(x, h)
        return h

    return step


def lstm_step(batch: int) -> Callable[[], Tensor]:
    """Return the step of an `nn.LSTMCell`."""
    cell, x = nn.LSTMCell(WIDTH, WIDTH), torch.randn(batch, WIDTH)
    state = torch.zeros(batch, WIDTH), torch.zeros(batch, WIDTH)

    def step() -> Tensor:
        nonlocal state
        state = cell(x, state)
        return state[0]

    return step


if __name__ == "__main__":
    try:
        main(tyro.cli(ActingOptions))
    except WrongNumbers as error:
        sys.exit(str(error))
