"""Before its time is taken, every contender is compared with float64, gradients included."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from harness import check_close
from torch import Tensor

from doxastic.kernels.wkv7 import wkv7
from gpu.cases import BOTH, Case, Contender, Function, Inputs

# Rounding stays far below; what lies beyond was computed from something else.
WRONG = {torch.bfloat16: 0.1, torch.float32: 0.01}
# The chunk form in float64 against the recurrence, over so many steps.
TRUTH_TOLERANCE, TRUTH_STEPS = 1e-10, 256

Errors = dict[str, dict[str, float]]
"""By contender, then by output or gradient: relative errors in the Frobenius norm."""


def check(case: Case) -> tuple[Errors, dict[str, str]]:
    """Return the errors of every contender against float64, and why some are left out.

    Compared are outputs and gradients, at what the case picks of them. Left out is what is wrong,
    and a peer that cannot run.

    Raises:
        WrongNumbers: The truth of WKV-7 is not the recurrence.
    """
    if case.operation == "wkv7":
        _check_truth(case)
    weights = cotangents(outputs_of(case, case.checked)[: case.differentiated])
    inputs = {name: _double(case.pick(name, x)) for name, x in case.checked.items()}
    picked = [_double(case.pick(x, y)) for x, y in zip(case.outputs, weights, strict=False)]
    truths: dict[Function, dict[str, Tensor]] = {}
    errors: Errors = {}
    left_out: dict[str, str] = {}
    for name, contender in case.contenders.items():
        truth = contender.truth or case.truth
        if truth not in truths:
            truths[truth] = results(case, truth, inputs, picked)
        try:
            errors[name] = _errors(case, contender, weights, truths[truth])
        except Exception as error:
            if contender.ours:
                raise
            left_out[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            continue
        worst = max(errors[name], key=lambda x, e=errors[name]: e[x])
        if errors[name][worst] > WRONG[case.dtype]:
            left_out[name] = f"{worst} is wrong: relative error {errors[name][worst]:.1e}"
    return errors, left_out


def outputs_of(case: Case, inputs: Inputs) -> Sequence[Tensor]:
    """Return what the case's first contender makes of copies of the inputs."""
    with torch.no_grad():
        contender = next(iter(case.contenders.values()))
        return contender.function(*(x.clone() for x in inputs.values()))


def cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return random gradients of the outputs, the same at every call."""
    random = torch.Generator(outputs[0].device).manual_seed(1) if outputs else None
    return [torch.randn(y.shape, generator=random, device=y.device).to(y.dtype) for y in outputs]


def results(
    case: Case, function: Function, inputs: Inputs, weights: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return the outputs by name and, if there are weights, the gradients of all float inputs.

    Args:
        case: Names the outputs.
        function: Called with copies of the inputs.
        inputs: By name.
        weights: Gradients of the first outputs.
    """
    leaves = {name: x.detach().clone() for name, x in inputs.items()}
    floats = {name: x for name, x in leaves.items() if x.is_floating_point()}
    for x in floats.values():
        x.requires_grad_(len(weights) > 0)
    outputs = function(*leaves.values())
    found = {name: y.detach() for name, y in zip(case.outputs, outputs, strict=True)}
    if weights:
        sources, targets = outputs[: len(weights)], list(floats.values())
        gradients = torch.autograd.grad(sources, targets, weights)
        found |= {f"d{name}": x for name, x in zip(floats, gradients, strict=True)}
    return found


def _errors(
    case: Case, contender: Contender, weights: Sequence[Tensor], truth: dict[str, Tensor]
) -> dict[str, float]:
    weights = weights if BOTH in contender.passes else ()
    found = results(case, contender.function, case.checked, weights)
    inputs = {f"d{name}": name for name in case.checked}
    return {
        name: _error(case.pick(inputs.get(name, name), x), truth[name]) for name, x in found.items()
    }


def _error(x: Tensor, truth: Tensor) -> float:
    """Return the relative error in the Frobenius norm, infinity for what is not finite."""
    error = ((x.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()
    return error if math.isfinite(error) else math.inf


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _check_truth(case: Case) -> None:
    """Raise `WrongNumbers` unless chunks in float64 equal the recurrence, step after step."""
    inputs = {name: case.pick(name, x)[:1, :TRUTH_STEPS] for name, x in case.checked.items()}
    inputs = {name: _double(x) for name, x in inputs.items()}
    weights = [torch.ones_like(inputs["v"])]

    def of(backend: str) -> dict[str, Tensor]:
        def function(*x: Tensor) -> Sequence[Tensor]:
            return wkv7(*x[:6], reset=x[6], backend=backend)

        return results(case, function, inputs, weights)

    recurrence = of("reference")
    for name, x in of("chunked").items():
        check_close(f"{name} of the chunk form in float64", x, recurrence[name], TRUTH_TOLERANCE)
