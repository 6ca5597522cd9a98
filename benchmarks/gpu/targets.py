"""What the kernels were to reach on an H200, and what of it a file of results holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from peers import fla_wkv7

from gpu.cases import BOTH, FORWARD, OURS

# Milliseconds of WKV-7 in bfloat16.
TIMES = {((8, 4096, 32, 64), FORWARD): 0.5, ((8, 4096, 32, 64), BOTH): 1.8}
# The fastest of fla, in bfloat16; in float32 it multiplies in TF32 and errs a hundred times more.
TIMES_OURS = 2.0
FIRST_CALL_SECONDS = 20.0
# Relative errors: operands rounded to bfloat16, or the arithmetic of float32.
_HALF = {"y": 5e-3, "dr": 5e-3, "dk": 5e-3, "dv": 5e-3, "da": 6e-3, "db": 6e-3, "dw": 1.5e-2}
ALLOWED = {"bfloat16": _HALF, "float32": dict.fromkeys((*_HALF, "state"), 5e-6)}


class Target(NamedTuple):
    """A value and the bound that it should keep."""

    what: str
    value: float
    least: float | None = None
    most: float | None = None


def targets(results: Mapping[str, Any]) -> Iterator[Target]:
    """Yield every target of which there are results."""
    for entry in results.get("cases", []):
        if entry["operation"] == "wkv7":
            yield _error(entry)
            for name, measured in entry["passes"].items():
                yield from _speed(entry, name, measured["arms"])
    for entry in results.get("first_calls", []):
        if entry["arm"] == OURS:
            yield Target("first call, seconds", entry["seconds"], most=FIRST_CALL_SECONDS)


def _error(entry: Mapping[str, Any]) -> Target:
    """Return the error of ours that comes closest to what is allowed, or exceeds it most."""
    shares = {
        name: entry["errors"][OURS][name] / most for name, most in ALLOWED[entry["dtype"]].items()
    }
    worst = max(shares, key=lambda name: shares[name])
    return Target(f"{entry['title']}: error of {worst} / allowed", shares[worst], most=1.0)


def _speed(
    entry: Mapping[str, Any], name: str, arms: Mapping[str, Mapping[str, Any]]
) -> Iterator[Target]:
    """Yield the targets of one pass, all of them of bfloat16."""
    if entry["dtype"] != "bfloat16":
        return
    what = f"{entry['title']}, {name}"
    if most := TIMES.get((tuple(entry["shape"]), name)):
        yield Target(f"{what}: ms", arms[OURS]["ms_median"], most=most)
    if fla := fastest_fla(arms):
        yield Target(f"{what}: {fla} / ours", arms[fla]["times_ours"], least=TIMES_OURS)
    if chunks := [arms[x] for x in (fla_wkv7.CHUNK_64, fla_wkv7.CHUNK_16) if x in arms]:
        share = arms[OURS]["peak_bytes"] / min(x["peak_bytes"] for x in chunks)
        yield Target(f"{what}: peak memory / fla's least", share, most=1.0)


def fastest_fla(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of fla's fastest arm, or nothing if there is none."""
    fla = [name for name in arms if name.startswith("fla ")]
    return min(fla, key=lambda name: arms[name]["times_ours"], default="")
