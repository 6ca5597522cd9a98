"""What small language models learn, ours beside two GPTs: nanoGPT's small protocol for the CPU.

4 layers, 128 wide, 4 heads, blocks of 64, batches of 12, 2,000 iterations of AdamW, 1e-3 -> 1e-4,
beta2 .99, decay .1, clipping 1, no dropout, on characters. The peers are a GPT after nanoGPT and a
modern one (rotary positions, normalised queries and keys, squared ReLU) of the size of ours. All
see the same batches in the same order; each has its own groups of parameters.

    python benchmarks/language_learning.py
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from harness import ROOT, Options, Report
from language_models import (
    LAST_RATE,
    MODERN,
    NANO,
    OURS,
    RATE,
    build,
    descend,
    logits_of,
    optimizer_of,
    size,
)
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class LearningOptions(Options):
    """Held-out loss after equal training."""

    data: Path = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
    """Text to learn; Python's own sources where there is no such file."""

    seeds: int = 3
    """Trainings of each model."""

    iterations: int = 2000
    """Iterations of each training."""


def main(options: LearningOptions) -> None:
    """Train, print and write `language_learning.json`."""
    torch.set_num_threads(1)
    report = Report("language_learning", options)
    compare_learning(report, options)
    report.save()


def compare_learning(report: Report, options: LearningOptions) -> None:
    """Train every model on the same batches and compare their losses on held-out text."""
    tokens, vocab_size, source = characters(options.data)
    cut = int(0.9 * len(tokens))
    iterations = 3 if options.quick else options.iterations
    losses: dict[str, list[float]] = {}
    for seed in range(1 if options.quick else options.seeds):
        for name in (OURS, NANO, MODERN):
            torch.manual_seed(seed)
            model = build(name, vocab_size, 64)
            begin = time.process_time()
            train(model, tokens[:cut], iterations, seed)
            seconds = time.process_time() - begin
            loss = held_out_loss(model, tokens[cut:], 2 if options.quick else 200)
            losses.setdefault(name, []).append(loss)
            report.add(
                "learning",
                {
                    "arm": name, "seed": seed, "loss": loss, "parameters": size(model),
                    "iterations": iterations, "cpu_seconds": seconds, "text": source,
                },
            )  # fmt: skip
            report.console.print(f"seed {seed}, {name}: {loss:.4f} ({seconds:.0f} s)")
            report.write()
    rows = [
        (name, f"{size(build(name, vocab_size, 64)):,}", f"{np.mean(found):.4f}",
         " ".join(f"{loss:.4f}" for loss in found))
        for name, found in losses.items()
    ]  # fmt: skip
    report.table("held-out loss, nats per character", ("", "parameters", "mean", "seeds"), rows)
    report.target("held-out loss", max(losses[OURS]), most=1.66)
    report.target(
        f"held-out loss - {MODERN}, worst pair",
        max(a - b for a, b in zip(losses[OURS], losses[MODERN], strict=True)),
        most=0.0,
    )


def train(model: nn.Module, tokens: Tensor, iterations: int, seed: int) -> None:
    """Train by nanoGPT's small protocol; the batches depend on the seed alone."""
    optimizer = optimizer_of(model)
    for step, (inputs, targets) in enumerate(batches(tokens, iterations, seed)):
        warmup = min(1.0, (step + 1) / 101)
        progress = max(0.0, (step - 100) / max(iterations - 100, 1))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        descend(
            model, optimizer, inputs, targets, warmup * (LAST_RATE + cosine * (RATE - LAST_RATE))
        )


@torch.no_grad()
def held_out_loss(model: nn.Module, tokens: Tensor, number: int) -> float:
    """Return the mean loss over random blocks, the same for every model."""
    losses = [
        F.cross_entropy(logits_of(model, inputs).flatten(0, 1), targets.flatten()).item()
        for inputs, targets in batches(tokens, number, seed=10_000)
    ]
    return sum(losses) / len(losses)


def batches(tokens: Tensor, number: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets `[12, 64]` from random places."""
    draw = torch.Generator().manual_seed(seed)
    for _ in range(number):
        places = torch.randint(len(tokens) - 64, (12, 1), generator=draw)
        rows = tokens[places + torch.arange(65)]
        yield rows[:, :-1], rows[:, 1:]


def characters(path: Path) -> tuple[Tensor, int, str]:
    """Return a text as numbers of its characters, how many there are, and its name."""
    if path.is_file():
        text, source = path.read_text(encoding="utf-8"), path.name
    else:
        folder = Path(os.__file__).parent
        files = sorted(folder.glob("*.py"))[:60]
        text = "".join(file.read_text(encoding="utf-8") for file in files)
        source = f"{len(files)} modules of Python {sys.version.split()[0]}"
    alphabet = {character: i for i, character in enumerate(sorted(set(text)))}
    return torch.tensor([alphabet[character] for character in text]), len(alphabet), source


if __name__ == "__main__":
    main(tyro.cli(LearningOptions))
