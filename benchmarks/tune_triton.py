"""Search for the layout of the WKV-7 kernels on this GPU; print the rows to add to its table.

    python benchmarks/tune_triton.py --keys 64 --dtype bf16

The kernels are tuned one after another, each from what was best so far: a layout is timed if its
outputs and gradients agree with float64 at a small shape, and does not count if they do not, or if
it does not fit the GPU. Add what is printed to `TABLE` in `kernels/triton/tuned.py`.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import triton
import tyro
from harness import WrongNumbers, check_close
from rich.console import Console
from torch import Tensor
from torch.nn.functional import normalize

from doxastic.kernels.triton import tuned, wkv7
from doxastic.kernels.triton.common import padded
from doxastic.kernels.triton.tuned import Blocks, Config
from doxastic.kernels.wkv7 import wkv7 as public_wkv7

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
# As in tests/tolerances.py, with room for longer sequences.
TOLERANCES = {"bf16": 1.5e-2, "f16": 3e-3, "f32": 5e-6}
# Written between two calls, so that the second finds none of its inputs in the cache.
FLUSH_BYTES = 512 * 2**20
FLOOR = -0.6065306597


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """Search the layout of the Triton kernels of WKV-7 on the current GPU."""

    keys: tuple[int, ...] = (32, 64)
    """Widths K = V to tune for."""

    dtypes: tuple[Literal["bf16", "f16", "f32"], ...] = ("bf16", "f16", "f32")
    """Dtypes of the inputs."""

    batch: int = 8
    """Sequences."""

    steps: int = 4096
    """Steps of each."""

    heads: int = 32
    """Heads."""

    rounds: int = 20
    """Calls per layout, of which the median counts."""


def main(options: TuneOptions) -> None:
    """Tune every width in every dtype and print the rows."""
    if not torch.cuda.is_available():
        raise SystemExit("tuning needs a CUDA device; torch.cuda.is_available() is False.")
    console = Console()
    rows = [tune(k, d, options, console) for k in options.keys for d in options.dtypes]
    console.print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__},")
    console.print(f"# triton {triton.__version__}, {' '.join(sys.argv[1:])}")
    for row in rows:
        console.print(row, highlight=False, soft_wrap=True)


def tune(keys: int, dtype: str, options: TuneOptions, console: Console) -> str:
    """Return the row of the table for one width and dtype."""
    inputs = make_inputs(options.batch, options.steps, options.heads, keys, DTYPES[dtype])
    small = make_inputs(1, 200, 2, keys, DTYPES[dtype])
    truth = truth_of(small)
    name = tuned.architecture(torch.device("cuda"))
    products = wkv7.precision(*(inputs[i] for i in (0, 2, 3, 4, 5)))
    best = tuned.choose(name, padded(keys), padded(keys), products)
    times: dict[Config, float] = {}
    for candidates in (forward_candidates, state_candidates, gradient_candidates):
        for config in dict.fromkeys((best, *candidates(best, keys))):
            if config not in times:
                times[config] = time_of(config, inputs, small, truth, dtype, options.rounds)
                console.print(f"{keys} {dtype} {1e3 * times[config]:8.3f} ms {config}")
        best = min(times, key=times.__getitem__)
    layout = ", ".join(f"{field}={tuple(blocks)}" for field, blocks in best._asdict().items())
    console.print(f"best of {len(times)}: {1e3 * times[best]:.3f} ms; {layout}")
    blocks = ", ".join(f"Blocks{tuple(blocks)}" for blocks in best)
    return f'    ("{name}", {padded(keys)}, {padded(keys)}, "{products}"): Config({blocks}),'


def candidates_of(keys: int) -> Iterator[Blocks]:
    """Yield blocks of a kernel, all combinations that may be worth a try."""
    values = [n for n in (16, 32, 64, 128) if n <= padded(keys)]
    for numbers in itertools.product((16, 32, 64), values, (2, 4, 8), (1, 2)):
        yield Blocks(*numbers)


def forward_candidates(best: Config, keys: int) -> Iterator[Config]:
    """Yield layouts with another forward, the span of stored states as it is or as it must be."""
    for blocks in candidates_of(keys):
        span = max(best.gradient.steps, blocks.steps)
        yield best._replace(forward=blocks, gradient=best.gradient._replace(steps=span))


def state_candidates(best: Config, keys: int) -> Iterator[Config]:
    """Yield layouts with another gradient of the states."""
    for blocks in candidates_of(keys):
        span = max(best.gradient.steps, blocks.steps)
        yield best._replace(state_gradient=blocks, gradient=best.gradient._replace(steps=span))


def gradient_candidates(best: Config, keys: int) -> Iterator[Config]:
    """Yield layouts with another gradient of the inputs."""
    serial = max(best.forward.steps, best.state_gradient.steps)
    for blocks in candidates_of(keys):
        if blocks.steps >= serial:
            yield best._replace(gradient=blocks)


def make_inputs(batch: int, steps: int, heads: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    """Return r, w, k, v, a, b as an RWKV-7 layer makes them, on the GPU."""
    random = torch.Generator("cuda").manual_seed(0)
    shape = (batch, steps, heads, keys)
    r, w, k, v, key, rate = (torch.randn(shape, generator=random, device="cuda") for _ in range(6))
    key = normalize(key, dim=-1)
    inputs = (r, FLOOR * w.sigmoid(), k, v, -key, key * rate.sigmoid())
    return [x.to(dtype).requires_grad_() for x in inputs]


def outputs_and_gradients(call: Callable[..., object], inputs: list[Tensor]) -> list[Tensor]:
    """Return y and the gradients of its product with fixed random numbers."""
    y = call(*inputs)[0]
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(y.shape, generator=random).to(y)
    return [y, *torch.autograd.grad(y, inputs, weight)]


def truth_of(inputs: list[Tensor]) -> list[Tensor]:
    """Return outputs and gradients of the float64 reference."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    return outputs_and_gradients(lambda *tensors: public_wkv7(*tensors, backend="reference"), exact)


def time_of(
    config: Config, inputs: list[Tensor], small: list[Tensor], truth: list[Tensor], dtype: str,
    rounds: int,
) -> float:  # fmt: skip
    """Return the median seconds of forward and backward, infinity if wrong or too large."""
    try:
        found = outputs_and_gradients(lambda *x: wkv7.wkv7(*x, config=config), small)
        for i, (x, y) in enumerate(zip(found, truth, strict=True)):
            check_close(f"entry {i}", x, y, TOLERANCES[dtype])
        return measure(lambda: wkv7.wkv7(*inputs, config=config)[0], inputs, rounds)
    except (WrongNumbers, triton.runtime.errors.OutOfResources):
        return float("inf")


def measure(forward: Callable[[], Tensor], inputs: list[Tensor], rounds: int) -> float:
    """Return the median seconds of a forward and a backward, the cache flushed before each."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    weight = torch.randn_like(inputs[3])
    times = []
    for _ in range(rounds + 2):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.autograd.grad(forward(), inputs, weight)
        end.record()
        end.synchronize()
        times.append(1e-3 * start.elapsed_time(end))
    # The first two warm up.
    return statistics.median(times[2:])


if __name__ == "__main__":
    main(tyro.cli(TuneOptions))
