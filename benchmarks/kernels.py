"""Speed of the kernels: on the CPU, backend cpu against chunked, `nn.LSTM` and `nn.GRU`.

One process, one thread, all in turn. Numbers are compared with the float64 reference first; where
they differ there is no report. `--threads 2` adds two threads against one. `--device cuda` measures
the Triton kernels instead, against flash-linear-attention, see `gpu`.

    python benchmarks/kernels.py --threads 2
    python benchmarks/kernels.py --device cuda

`nn.LSTM` and `nn.GRU` have input and hidden size H * D. Their time includes their input products,
that of `wkv7` does not include the projections around it: a yardstick, not like for like.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import tyro
from harness import Arm, Options, Report, Timing, WrongNumbers, check_close, measure, ratio
from torch import Tensor, nn
from torch.nn.functional import normalize

from doxastic.kernels.moments import weighted_moments
from doxastic.kernels.wkv7 import wkv7

WKV7_SHAPES = ((16, 128, 2, 32), (64, 128, 4, 32), (8, 1024, 4, 64), (1, 4096, 8, 64))
MOMENTS_SHAPES = ((16, 128, 16), (64, 128, 16), (8, 1024, 64), (1, 4096, 64))
BACKENDS = ("cpu", "chunked")
# Relative error of float32 against float64; the tests ask for 2e-6 at shorter sequences.
TOLERANCE = 1e-5
# What takes a millisecond is called again and again within a sample.
SAMPLE_SECONDS = 0.05

Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class KernelOptions(Options):
    """Speed of the kernels against chunked PyTorch, nn.LSTM and nn.GRU, or on a GPU against fla."""

    threads: int = 1
    """CPU. Above 1: measure as well this many threads against one."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Which kernels: compiled for the CPU, or Triton's on the current GPU."""

    only: str = ""
    """CUDA. Measure what has this in its title, e.g. "wkv7 (8, 4096" or "bfloat16"."""

    resume: bool = False
    """CUDA. Keep what the file of results holds of this commit and device; measure the rest."""


class Case(NamedTuple):
    """A kernel at one shape."""

    name: str
    function: Function
    shape: tuple[int, ...]
    inputs: list[Tensor]
    small: list[Tensor]
    """The first rows and heads of the inputs, few enough for the float64 reference."""


def main(options: KernelOptions) -> None:
    """Measure, print and write `kernels.json`, or `kernels-cuda.json`."""
    if options.device == "cuda":
        from gpu import run

        sys.exit(run.main(options, only=options.only, resume=options.resume))
    if options.threads > (cores := os.cpu_count() or 1):
        raise SystemExit(f"--threads is {options.threads}; this machine has {cores} cores.")
    torch.set_num_threads(1)
    report = Report("kernels", options, threads=options.threads)
    cases = [wkv7_case(shape) for shape in ([(2, 32, 2, 16)] if options.quick else WKV7_SHAPES)]
    moments = [moments_case(shape) for shape in ([(2, 32, 8)] if options.quick else MOMENTS_SHAPES)]
    for case in cases + moments:
        check(case)
    report.console.print("Outputs and gradients equal those of the float64 reference.")
    for case in cases:
        compare(report, case, {**backends(case), **recurrent_layers(case.shape)})
    for case in moments:
        compare(report, case, backends(case))
    if options.threads > 1:
        for index, case in enumerate(cases):
            compare_threads(report, case, options.threads, larger=index > 0 or options.quick)
    report.save()


def wkv7_case(shape: tuple[int, ...]) -> Case:
    """Return random inputs as an RWKV-7 layer makes them."""
    random = torch.Generator().manual_seed(0)
    r, w, k, v, key, rate = (torch.randn(*shape, generator=random) for _ in range(6))
    key = normalize(key, dim=-1)
    # -exp(-1/2) is the least log-decay of RWKV-7.
    w = -0.6065306597 * w.sigmoid()
    inputs = [r, w, k, v, -key, key * rate.sigmoid()]
    return Case("wkv7", wkv7, shape, inputs, [x[:2, :, :1].contiguous() for x in inputs])


def moments_case(shape: tuple[int, ...]) -> Case:
    """Return random values, log-weights and log-decays."""
    random = torch.Generator().manual_seed(0)
    value, log_weight, decay = (torch.randn(*shape, generator=random) for _ in range(3))
    inputs = [value, log_weight, -0.1 * decay.exp()]
    return Case("weighted_moments", weighted_moments, shape, inputs, [x[:2] for x in inputs])


def check(case: Case) -> None:
    """Raise `WrongNumbers` unless both backends are right, in the small and at the whole shape.

    The small inputs have resets and are compared with the float64 reference; the whole, too large
    for it, are compared between the two backends.
    """
    batch, steps = case.small[0].shape[:2]
    reset = torch.rand(batch, steps, generator=torch.Generator().manual_seed(1)) < 0.03
    small = [x.double() for x in case.small]
    truth = _with_gradients(case.function, small, backend="reference", reset=reset)
    for backend in BACKENDS:
        found = _with_gradients(case.function, case.small, backend=backend, reset=reset)
        _compare_numbers(f"{case.name} of backend {backend!r}", found, truth)
    ours, theirs = (_with_gradients(case.function, case.inputs, backend=b) for b in BACKENDS)
    _compare_numbers(f"{case.name} {case.shape} of backend 'cpu'", ours, theirs)


def _with_gradients(function: Function, inputs: list[Tensor], **options: object) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs = function(*leaves, **options)
    random = torch.Generator().manual_seed(2)
    weights = [torch.randn(y.shape, generator=random).to(y.dtype) for y in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, weights)]


def _compare_numbers(what: str, found: list[Tensor], truth: list[Tensor]) -> None:
    for index, (x, y) in enumerate(zip(found, truth, strict=True)):
        check_close(f"{what}: entry {index} of outputs and gradients", x, y, TOLERANCE)


Passes = dict[str, Callable[[], object]]
"""`forward` and `forward + backward` of one of the arms."""


def backends(case: Case) -> dict[str, Passes]:
    """Return both passes of both backends."""
    return {backend: _passes_of_backend(case, backend) for backend in BACKENDS}


def _passes_of_backend(case: Case, backend: str) -> Passes:
    leaves = [x.clone().requires_grad_() for x in case.inputs]
    weight = torch.randn(case.inputs[0].shape)

    def forward() -> object:
        with torch.no_grad():
            return case.function(*leaves, backend=backend)

    def both() -> object:
        output = case.function(*leaves, backend=backend)[0]
        return torch.autograd.grad(output, leaves, weight)

    return {"forward": forward, "forward + backward": both}


def recurrent_layers(shape: tuple[int, ...]) -> dict[str, Passes]:
    """Return both passes of `nn.LSTM` and `nn.GRU` with the same channels, time first."""
    batch, steps, heads, width = shape
    size = heads * width
    x = torch.randn(steps, batch, size, requires_grad=True)
    return {
        "nn.LSTM": _passes_of_layer(nn.LSTM(size, size), x),
        "nn.GRU": _passes_of_layer(nn.GRU(size, size), x),
    }


def _passes_of_layer(layer: nn.Module, x: Tensor) -> Passes:
    leaves = [x, *layer.parameters()]
    weight = torch.randn(x.shape)

    def forward() -> object:
        with torch.no_grad():
            return layer(x)

    def both() -> object:
        return torch.autograd.grad(layer(x)[0], leaves, weight)

    return {"forward": forward, "forward + backward": both}


def compare(report: Report, case: Case, arms: Mapping[str, Passes]) -> None:
    """Measure all arms at one shape in both passes."""
    quick = report.options.quick
    rounds = report.options.rounds_or(7)
    for name in ("forward", "forward + backward"):
        timings = measure(
            {arm: Arm(passes[name]) for arm, passes in arms.items()},
            rounds,
            sample_seconds=0.0 if quick else SAMPLE_SECONDS,
        )
        _show(report, case, name, timings)
        if case.name == "wkv7" and name == "forward + backward":
            what = f"wkv7 {case.shape} f+b"
            ours = timings["cpu"]
            report.target(f"{what}: chunked / cpu", ratio(timings["chunked"], ours), least=2.5)
            report.target(f"{what}: nn.LSTM / cpu", ratio(timings["nn.LSTM"], ours), least=1.0)


def _show(report: Report, case: Case, name: str, timings: Mapping[str, Timing]) -> None:
    ratios = {arm: ratio(timing, timings["cpu"]) for arm, timing in timings.items()}
    report.add(
        case.name,
        {
            "shape": list(case.shape),
            "pass": name,
            "arms": {arm: timing.to_json() for arm, timing in timings.items()},
            "ratio_to_cpu": ratios,
        },
    )
    report.table(
        f"{case.name} {case.shape}, {name}",
        ("", "median ms", "min ms", "ratio to cpu"),
        [
            (arm, f"{1e3 * t.median():.2f}", f"{1e3 * min(t.cpu):.2f}", f"{ratios[arm]:.2f}")
            for arm, t in timings.items()
        ],
    )


def compare_threads(report: Report, case: Case, threads: int, *, larger: bool) -> None:
    """Measure forward + backward on one thread and on several, by the clock on the wall."""
    both = _passes_of_backend(case, "cpu")["forward + backward"]
    arms = {"1 thread": Arm(both), f"{threads} threads": Arm(both, threads)}
    quick = report.options.quick
    timings = measure(
        arms, report.options.rounds_or(15), sample_seconds=0.0 if quick else 8 * SAMPLE_SECONDS
    )
    one, several = timings.values()
    speedup = ratio(one, several, "wall")
    report.add(
        "threads",
        {
            "shape": list(case.shape),
            "threads": threads,
            "arms": {arm: timing.to_json() for arm, timing in timings.items()},
            "speedup": speedup,
        },
    )
    what = f"wkv7 {case.shape} f+b: 1 thread / {threads} threads, wall"
    report.table(
        what,
        ("", "median ms", "min ms", "speed-up"),
        [
            (arm, f"{1e3 * t.median('wall'):.2f}", f"{1e3 * min(t.wall):.2f}", gain)
            for (arm, t), gain in zip(timings.items(), ("", f"{speedup:.2f}"), strict=True)
        ],
    )
    if larger and threads == 2:
        report.target(what, speedup, least=1.7)


if __name__ == "__main__":
    try:
        main(tyro.cli(KernelOptions))
    except WrongNumbers as error:
        sys.exit(str(error))
