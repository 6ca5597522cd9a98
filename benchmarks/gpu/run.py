"""Speed, memory and errors of the Triton kernels on one GPU; `kernels.py --device cuda` runs this.

Per case: every contender is compared with float64, then all take turns, a copy of a large buffer
among them. Results are written after every case; `--resume` goes on where a run was cut off.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version

import torch
from draw_kernels import draw_kernels
from harness import Options, Report
from peers import fla_wkv7

from gpu.cases import (
    DTYPES,
    OURS,
    STEP_SHAPES,
    WKV7_SHAPES,
    Case,
    dtype_name,
    step_case,
    title,
    wkv7_case,
)
from gpu.first_call import first_call
from gpu.fused_cases import (
    LAYER_SHAPES,
    MOMENTS_SHAPES,
    belief_case,
    moments_case,
    shift_case,
    squared_relu_case,
    time_mix_case,
)
from gpu.measures import ROUNDS, measure_case
from gpu.targets import targets
from gpu.timing import Clock, CudaClock

Builder = Callable[[tuple[int, ...], torch.dtype, str], Case]
Shapes = Sequence[tuple[int, ...]]
# Builder, shapes, and the shape of a quick run.
OPERATIONS: dict[str, tuple[Builder, Shapes, tuple[int, ...]]] = {
    "wkv7": (wkv7_case, WKV7_SHAPES, (1, 17, 1, 16)),
    "wkv7_step": (step_case, STEP_SHAPES, (2, 2, 16)),
    "weighted_moments": (moments_case, MOMENTS_SHAPES, (2, 5, 16)),
    "belief_moments_features": (belief_case, MOMENTS_SHAPES, (2, 5, 16)),
    "time_mix": (time_mix_case, LAYER_SHAPES, (2, 5, 2, 16)),
    "shift_mix": (shift_case, LAYER_SHAPES, (2, 5, 2, 16)),
    "squared_relu": (squared_relu_case, LAYER_SHAPES, (2, 5, 2, 16)),
}
# Columns that the widest table needs, also where the output is no terminal.
TABLE_WIDTH = 112
# fla measures its configurations, minutes of it, in the first call.
FIRST_CALLERS = (OURS, fla_wkv7.CHUNK_64, fla_wkv7.CHUNK_16)


def main(options: Options, *, only: str, resume: bool) -> int:
    """Return the exit code, having measured, printed, and written `kernels-cuda.json` and `.png`.

    Returns:
        0; 1 if one of our results was wrong, which is then not timed; 2 if this cannot run here.
    """
    if reason := obstacle(options):
        print(f"benchmarks/kernels.py --device cuda cannot run: {reason}", file=sys.stderr)
        return 2
    report = new_report(options)
    if resume:
        take_up(report)
    measure_all(report, CudaClock(), "cuda", only)
    for target in targets(report.data["results"]):
        report.target(target.what, target.value, least=target.least, most=target.most)
    path = report.save()
    timed = [bool(entry["passes"]) for entry in report.data["results"].get("cases", [])]
    if any(timed):
        draw_kernels(report.data).savefig(path.with_suffix(".png"))
    return 0 if all(timed) else 1


def obstacle(options: Options) -> str:
    """Return why nothing can be measured here, or nothing."""
    if not torch.cuda.is_available():
        return "no CUDA device (torch.cuda.is_available() is False). Nothing was measured."
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        return "TRITON_INTERPRET is set; it would time the interpreter. Unset it."
    if not options.quick and options.rounds_or(ROUNDS) < ROUNDS:
        return f"--rounds is {options.rounds}; medians are of at least {ROUNDS}."
    return ""


def new_report(options: Options) -> Report:
    """Return a report that names the GPU and what the kernels were compiled with."""
    report = Report("kernels-cuda", options)
    report.console.width = max(report.console.width, TABLE_WIDTH)
    versions = {"triton": version("triton"), "cuda": torch.version.cuda, **fla_wkv7.versions()}
    report.data["versions"] |= versions
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(torch.cuda.current_device())
        report.data |= {
            "device": device.name,
            "compute_capability": f"{device.major}.{device.minor}",
            "multiprocessors": device.multi_processor_count,
            "memory_bytes": device.total_memory,
            "l2_bytes": device.L2_cache_size,
        }
    if not fla_wkv7.is_installed():
        report.console.print("fla is not installed: ours alone (see benchmarks/README.md).")
    return report


def take_up(report: Report) -> None:
    """Take over the results that stand in the file.

    Raises:
        SystemExit: They are of another commit, device or version.
    """
    path = report.path()
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for name in ("commit", "device", "versions", "quick"):
        if before[name] != report.data[name]:
            raise SystemExit(
                f"--resume: {path.name} has {name} {before[name]}, this run {report.data[name]}. "
                "Leave --resume out to measure everything anew."
            )
    report.data["results"] = before["results"]


def measure_all(report: Report, clock: Clock, device: str, only: str = "") -> None:
    """Measure every case whose title contains `only` and that has no results yet."""
    results = report.data["results"]
    done = {entry["title"] for entries in results.values() for entry in entries}
    for name, build in builders(report.options, device):
        if name not in done and only in name:
            entry = measure_case(report, build(), clock)
            report.add("cases", entry)
            report.write()
    for arm in FIRST_CALLERS if fla_wkv7.is_installed() else FIRST_CALLERS[:1]:
        name = f"first call of {arm}"
        if name not in done and only in name:
            shape = OPERATIONS["wkv7"][2] if report.options.quick else WKV7_SHAPES[0]
            seconds = first_call(arm, shape, DTYPES[0], device)
            report.console.print(f"{name}, nothing compiled before: {seconds:.1f} s")
            entry = {"title": name, "arm": arm, "shape": list(shape), "seconds": seconds}
            report.add("first_calls", {**entry, "dtype": dtype_name(DTYPES[0])})
            report.write()


def builders(options: Options, device: str) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Return titles and builders; the inputs of a case stand only while it is measured."""
    for operation, (build, shapes, small) in OPERATIONS.items():
        for dtype in DTYPES:
            for shape in (small,) if options.quick else shapes:
                name = title(operation, shape, dtype)
                yield name, lambda b=build, s=shape, d=dtype: b(s, d, device)
