"""The speed of the language model against peers: how fast it trains, how fast it writes.

One process, one thread, everything in turn, tokens per second of the process's CPU time.
Training: whole iterations of 4 layers, 128 wide, against a GPT after nanoGPT and a modern one
(rotary positions, normalised queries and keys, squared ReLU) of the size of ours. Writing: greedy,
against the first GPT's generation, which has no cache, and the `rwkv` package on the same weights.

    python benchmarks/language.py                     # everything
    python benchmarks/language.py --parts decoding    # or training
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from harness import Arm, Options, Report, Timing, measure, ratio
from language_models import MODERN, NANO, OURS, RATE, build, descend, optimizer_of, ours, peer
from peers import rwkv_package
from torch import nn

from doxastic.language.formats import save_model
from doxastic.language.model import LanguageModel

Part = Literal["decoding", "training"]
PACKAGE = "rwkv package"
SHAPES = ((64, 12), (128, 6), (512, 4), (1024, 2))


@dataclass(frozen=True, kw_only=True)
class LanguageOptions(Options):
    """Training speed and decoding speed of the language model beside its peers."""

    parts: tuple[Part, ...] = ("decoding", "training")
    """What to measure."""


def main(options: LanguageOptions) -> None:
    """Measure, print and write `language.json`."""
    torch.set_num_threads(1)
    report = Report("language", options)
    parts: dict[str, Callable[[Report, LanguageOptions], None]] = {
        "decoding": compare_decoding,
        "training": compare_training,
    }
    for part in options.parts:
        parts[part](report, options)
    report.save()


# Training speed


def compare_training(report: Report, options: LanguageOptions) -> None:
    """Measure whole iterations at several lengths of context."""
    rows = []
    for block, batch in SHAPES[:1] if options.quick else SHAPES:
        arms = {name: Arm(iteration(name, block, batch)) for name in (OURS, NANO, MODERN)}
        timings = measure(arms, options.rounds_or(15), sample_seconds=0 if options.quick else 0.3)
        for name, timing in timings.items():
            entry = {"arm": name, "block": block, "batch": batch, **timing.to_json(block * batch)}
            report.add("training", entry)
        over = {name: ratio(timings[name], timings[OURS]) for name in (NANO, MODERN)}
        rates = (f"{block * batch / timing.median():.0f}" for timing in timings.values())
        rows.append((f"{block} x {batch}", *rates, f"{over[NANO]:.2f}", f"{over[MODERN]:.2f}"))
        if block in (64, 512, 1024):
            bound = 0.7 if block == 64 else 1.0
            report.target(f"training / {MODERN}, block {block}", over[MODERN], least=bound)
    columns = ("block x batch", OURS, NANO, MODERN, f"over {NANO}", f"over {MODERN}")
    report.table("training, tokens per CPU second", columns, rows)


def iteration(name: str, block: int, batch: int) -> Callable[[], None]:
    """Return one iteration of training, forward to optimiser."""
    torch.manual_seed(0)
    model, draw = build(name, 65, block), torch.Generator().manual_seed(0)
    optimizer = optimizer_of(model)
    tokens = torch.randint(65, (batch, block + 1), generator=draw)
    return lambda: descend(model, optimizer, tokens[:, :-1], tokens[:, 1:], RATE)


# Decoding


def compare_decoding(report: Report, options: LanguageOptions) -> None:
    """Measure greedy generation, one stream and 32, and its rate far into a text."""
    torch.manual_seed(0)
    number = 4 if options.quick else 200
    model = everywhere_different(ours(65))
    arms = {
        OURS: Arm(writer(model, 1, number)),
        f"{OURS}, 32 at once": Arm(writer(model, 32, number)),
    }
    nano = peer(65, 64, modern=False)
    full = torch.randint(65, (1, 64))
    arms[NANO] = Arm(lambda: nano.generate(full, number))
    package = package_arm(model, number)
    if package is not None:
        arms[PACKAGE] = Arm(package)
    timings = measure(arms, options.rounds_or(15))
    work = {name: number * (32 if "32" in name else 1) for name in arms}
    for name, timing in timings.items():
        report.add("decoding", {"arm": name, "tokens": work[name], **timing.to_json(work[name])})
    rates = {name: work[name] / timing.median() for name, timing in timings.items()}
    rows = [(name, f"{rate:.0f}", f"{rates[OURS] / rate:.2f}") for name, rate in rates.items()]
    report.table("decoding, tokens per CPU second", ("", "rate", f"{OURS} over it"), rows)
    for name in (NANO, PACKAGE):
        if name in timings:
            report.target(f"decoding / {name}", ratio(timings[name], timings[OURS]), least=2.0)
    many, one = f"{OURS}, 32 at once", OURS
    report.target("decoding, 32 at once / 1", 32 * ratio(timings[one], timings[many]), least=8.0)
    compare_lengths(report, options, model)


def compare_lengths(report: Report, options: LanguageOptions, model: LanguageModel) -> None:
    """Measure the rate at the beginning of a text of 100,000 tokens and at its end."""
    far, piece = (100, 20) if options.quick else (100_000, 2_000)
    write = writer(model, 1, piece)
    seconds = []
    for _ in range(far // piece):
        begin = time.process_time()
        write()
        seconds.append(time.process_time() - begin)
    early, late = (Timing(part, part) for part in (seconds[:5], seconds[-5:]))
    for name, timing in (("first 10,000", early), ("last 10,000", late)):
        report.add("lengths", {"arm": f"{OURS}, {name} of {far}", **timing.to_json(piece)})
    report.target(
        f"decoding, after {far:,} tokens / at first", early.median() / late.median(), least=0.9
    )


def writer(model: LanguageModel, batch: int, number: int) -> Callable[[], None]:
    """Return a greedy generation that goes on where it stopped."""
    carried: list[Any] = [torch.zeros(batch, dtype=torch.int64), model.initial_state(batch)]

    def write() -> None:
        tokens, state = carried
        for _ in range(number):
            logits, state = model.step(tokens, state)
            tokens = logits.argmax(-1)
        carried[:] = tokens, state

    return write


def package_arm(model: LanguageModel, number: int) -> Callable[[], None] | None:
    """Return the same of the `rwkv` package on the same weights; None if it is not installed."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pth"
            save_model(model, path, format="pth")
            theirs = rwkv_package.load(path)
    except ImportError:
        return None
    expected, _ = model(torch.tensor([[1, 2, 3]]))
    found, _ = theirs.forward([1, 2, 3], None)
    torch.testing.assert_close(found, expected[0, -1], atol=1e-4, rtol=1e-4)
    carried: list[Any] = [0, None]

    def write() -> None:
        token, state = carried
        for _ in range(number):
            logits, state = theirs.forward([token], state)
            token = int(logits.argmax())
        carried[:] = token, state

    return write


@torch.no_grad()
def everywhere_different(model: LanguageModel) -> LanguageModel:
    """Fill in what the initial values leave at zero, so that every weight matters."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    nn.init.normal_(model.emb.weight)
    return model


if __name__ == "__main__":
    main(tyro.cli(LanguageOptions))
