"""Times, memory and errors of one case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from harness import Report
from torch import Tensor

from gpu.cases import BOTH, FORWARD, OURS, PASSES, Case, Contender, dtype_name
from gpu.checks import Errors, check, cotangents, outputs_of
from gpu.timing import Call, Clock, alternate, ratio

# Samples of every contender.
ROUNDS = 50


def measure_case(report: Report, case: Case, clock: Clock) -> dict[str, Any]:
    """Return errors, times and memory of one case, and print them."""
    errors, left_out = check(case)
    show_errors(report, case.title, errors)
    for name, reason in left_out.items():
        report.console.print(f"{case.title}: {name} is left out. {reason}")
    entry: dict[str, Any] = {
        "title": case.title, "operation": case.operation, "shape": list(case.shape),
        "dtype": dtype_name(case.dtype), "errors": errors, "left_out": left_out, "passes": {},
    }  # fmt: skip
    contenders = {x: y for x, y in case.contenders.items() if x not in left_out}
    if any(y.ours for x, y in case.contenders.items() if x in left_out):
        return entry
    rounds = report.options.rounds_or(ROUNDS)
    outputs = outputs_of(case, case.inputs)
    weights = cotangents(outputs[: case.differentiated])
    least = least_bytes(list(case.inputs.values()), outputs, weights)
    del outputs
    for name in PASSES if case.differentiated else PASSES[:1]:
        chosen = {x: y for x, y in contenders.items() if name in y.passes}
        calls = {
            x: (_both(case, y, weights) if name == BOTH else _forward(case, y))
            for x, y in chosen.items()
        }
        entry["passes"][name] = measure_pass(calls, least[name], rounds, clock)
        show_times(report, f"{case.title}, {name}", entry["passes"][name])
    return entry


def least_bytes(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], weights: Sequence[Tensor]
) -> dict[str, int]:
    """Return what each pass has to read and write, were everything between kept on the chip.

    Forward: inputs and outputs. Backward: the inputs again, the gradients `weights` of outputs, and
    those of the inputs. For WKV-7 with K = V that is 7 and 13 tensors, and the last state.
    """
    read = sum(x.nbytes for x in inputs if x.is_floating_point())
    forward = read + sum(y.nbytes for y in outputs)
    return {FORWARD: forward, BOTH: forward + 2 * read + sum(y.nbytes for y in weights)}


def _forward(case: Case, contender: Contender) -> Call:
    inputs = list(case.inputs.values())

    def forward() -> object:
        with torch.no_grad():
            return contender.function(*inputs)

    return forward


def _both(case: Case, contender: Contender, weights: Sequence[Tensor]) -> Call:
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in case.inputs.values()]
    floats = [x for x in leaves if x.requires_grad]

    def both() -> object:
        outputs = contender.function(*leaves)
        return torch.autograd.grad(outputs[: len(weights)], floats, weights)

    return both


def measure_pass(
    calls: Mapping[str, Call], least: int, rounds: int, clock: Clock
) -> dict[str, Any]:
    """Return times, memory, bandwidth and ratios of contenders that take turns with a copy."""
    samples = alternate({**calls, "copy": clock.copy}, rounds, clock)
    copy = samples.pop("copy")
    copied = clock.copy_bytes / copy.median() / 1e6
    arms = {}
    for name, times in samples.items():
        speed = least / times.median() / 1e6
        arms[name] = {
            **times.to_json(),
            "gb_per_second": speed,
            "share_of_copy": speed / copied,
            "peak_bytes": clock.peak(calls[name]),
            "times_ours": ratio(times, samples[OURS]),
        }
    return {"least_bytes": least, "copy_gb_per_second": copied, "arms": arms}


def show_errors(report: Report, title: str, errors: Errors) -> None:
    """Print every contender's errors."""
    names = list(next(iter(errors.values()), {}))
    report.table(
        f"{title}: relative errors against float64",
        ("", *names),
        [
            (arm, *(f"{found[x]:.1e}" if x in found else "" for x in names))
            for arm, found in errors.items()
        ],
    )


def show_times(report: Report, title: str, measured: Mapping[str, Any]) -> None:
    """Print every contender's times and memory."""
    report.table(
        f"{title}: at least {measured['least_bytes'] / 1e6:.1f} MB, "
        f"copied at {measured['copy_gb_per_second']:.0f} GB/s",
        ("", "median ms", "min ms", "host ms", "GB/s", "of copy", "peak MB", "times ours"),
        [
            (
                arm, f"{x['ms_median']:.3f}", f"{x['ms_min']:.3f}", f"{x['host_ms_median']:.3f}",
                f"{x['gb_per_second']:.0f}", f"{x['share_of_copy']:.0%}",
                f"{x['peak_bytes'] / 1e6:.1f}", f"{x['times_ours']:.2f}",
            )
            for arm, x in measured["arms"].items()
        ],
    )  # fmt: skip
