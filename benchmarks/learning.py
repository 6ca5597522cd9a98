"""What agents learn: the presets over several seeds, against targets, the optimum and a GRU.

`python benchmarks/learning.py` trains every cell that has no result yet, one thread each and two at
a time (some ten minutes on 2 cores), and prints the returns; stopped and started again, it goes on
where it was. Runs lie under `runs/learning/`, results in `results/learning.json`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from harness import ROOT, Options, Report
from scipy import stats


@dataclass(frozen=True)
class Cell:
    """One agent on one task."""

    preset: str
    """Preset to train."""

    seeds: int
    """Seeds 0 to this."""

    target: float | None
    """Least mean return over the noise levels of training; None for a peer."""

    options: tuple[str, ...] = ()
    """Further words for `doxastic train`."""


CELLS = {
    "sequential-test-easy": Cell("sequential-test-easy", 3, 0.885),
    "sequential-test-hard": Cell("sequential-test-hard", 3, 0.79),
    "sequential-test-hard-long": Cell("sequential-test-hard-long", 3, 0.837),
    "cartpole": Cell("cartpole", 5, 0.98),
    "noisy-cartpole": Cell("noisy-cartpole", 5, 0.69),
    # A GRU of equal size: 53,488 parameters in all, the belief agent has 53,251.
    "noisy-cartpole-gru": Cell(
        "noisy-cartpole", 5, None, ("--memory.kind", "gru", "--memory.width", "91")
    ),
}


@dataclass(frozen=True, kw_only=True)
class LearningOptions(Options):
    """What this benchmark can be told."""

    runs: Path = ROOT / "runs" / "learning"
    """Folder of the runs."""

    workers: int = 2
    """Runs at a time."""

    cells: tuple[str, ...] = tuple(CELLS)
    """Which cells to train and report."""


def jobs(options: LearningOptions) -> Iterator[list[str]]:
    """Yield the commands of the runs that have no result yet."""
    for name in options.cells:
        cell = CELLS[name]
        for seed in range(1 if options.quick else cell.seeds):
            folder = options.runs / f"{name}-{seed}"
            if (folder / "evaluation.json").is_file():
                continue
            words = ["--resume", str(folder)]
            if not (folder / "checkpoints").is_dir():
                words = [cell.preset, *cell.options, "--seed", str(seed), "--run-dir", str(folder)]
                if options.quick:
                    words += ["--total-steps", "4096", "--evaluation.episodes", "16"]
            yield [sys.executable, "-m", "doxastic", "train", *words, "--threads", "1", "--quiet"]


def returns(folder: Path) -> tuple[list[float], np.ndarray, list[float]]:
    """Return the test noise levels, the mean return at each, and the levels of training."""
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    import doxastic.experiment

    levels = doxastic.experiment.load_preset(str(folder / "config.yaml")).env.noise
    means = np.asarray(evaluation["returns"]).mean(axis=1)
    return evaluation["levels"], means, list(levels or ())


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % t interval of the mean over seeds."""
    if len(values) < 2 or not values.std():
        return float(values.mean()), float(values.mean())
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    return float(low), float(high)


def main(options: LearningOptions) -> None:
    """Train what is missing, then report."""
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(lambda words: subprocess.run(words, check=True), jobs(options)))
    report, by_cell = Report("learning", options), {}
    for name in options.cells:
        cell = CELLS[name]
        folders = [
            options.runs / f"{name}-{seed}" for seed in range(1 if options.quick else cell.seeds)
        ]
        levels, _, trained = returns(folders[0])
        means = np.stack([returns(folder)[1] for folder in folders])
        seen = np.isin(levels, trained)
        mixture = means[:, seen].mean(axis=1)
        rows = [
            (f"{level:g}", f"{column.mean():.3f}", "{:.3f} to {:.3f}".format(*interval(column)))
            for level, column in zip(levels, means.T, strict=True)
        ]
        rows.append(
            ("mixture", f"{mixture.mean():.4f}", " ".join(f"{value:.4f}" for value in mixture))
        )
        report.table(f"{name}: {len(folders)} seeds", ("noise", "mean", "95 % interval"), rows)
        by_cell[name] = means
        entry = {
            "levels": levels,
            "trained_levels": trained,
            "returns": means.tolist(),
            "mixture": mixture.tolist(),
            "mixture_interval": interval(mixture),
        }
        report.add(name, entry)
        if cell.target is not None:
            report.target(f"{name}: mean over the mixture", mixture.mean(), least=cell.target)
    if {"noisy-cartpole", "noisy-cartpole-gru"} <= set(by_cell):
        lead = by_cell["noisy-cartpole"].mean(axis=0) - by_cell["noisy-cartpole-gru"].mean(axis=0)
        report.target("noisy-cartpole: least lead over the GRU at any noise", lead.min(), least=0.0)
    report.save()


if __name__ == "__main__":
    main(tyro.cli(LearningOptions, description=__doc__))
