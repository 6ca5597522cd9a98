"""The commands of the command line: their options, read by tyro, and what they call.

What trains and what draws is imported once the options are read, so that help and refusals do
not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from doxastic.configuration import ConfigError, from_dict
from doxastic.experiment import DEFAULT_PRESET, Experiment, load_preset
from doxastic.options import parse, value_of

if TYPE_CHECKING:
    from doxastic.plotting import Reference


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train an agent, evaluate it over noise levels and draw the figures."""

    resume: Path | None = None
    """Continue this run from its last checkpoint, bit for bit."""
    run_dir: Path | None = None
    """A new folder for the run; by default runs/NAME."""
    quiet: bool = False
    """Show neither progress nor results."""
    experiment: Annotated[Experiment, tyro.conf.arg(name="")] = field(default_factory=Experiment)
    """The experiment."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Test a trained agent at chosen noise levels: table, JSON and figure in the run folder."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    noise: tuple[float, ...] | None = None
    """Noise levels; by default those of the run's configuration."""
    episodes: int | None = None
    """Episodes at each level; by default as in the run's configuration."""
    which: str = "best"
    """The checkpoint: best, last, or step-N."""
    seed: int | None = None
    """Seed of the episodes; the same for every level and agent, so that differences are theirs."""
    device: str = "cpu"
    """Where the network runs: cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True, kw_only=True)
class PlotOptions:
    """Draw the noise sweep and the learning curve of one run, or of several in one figure."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...")]
    """Run folders."""
    labels: tuple[str, ...] = ()
    """Names in the legend, one for each run; by default the folders' names."""
    reference: tuple[str, ...] = ()
    """Lines to compare with in the noise sweep, each as LABEL=RETURN, such as optimum=0.897."""
    output: Path | None = None
    """Folder of the figures; by default the run folder, for several runs the current folder."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write one step of a trained agent as a file that runs without doxastic."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    format: Literal["onnx", "torch"] = "onnx"
    """ONNX, or an archive for torch.export.load."""
    output: Path | None = None
    """The file; by default policy.onnx or policy.pt2 in the run folder. A description of its
    inputs and outputs is written beside it, with .json appended to the name."""
    which: str = "best"
    """The checkpoint: best, last, or step-N."""


def train(words: Sequence[str]) -> None:
    """Run `doxastic train`: the preset first, then what overrides it."""
    words = list(words)
    preset = words.pop(0) if words and not words[0].startswith("-") else None
    description = (
        "Train an agent, evaluate it over noise levels and draw the figures.\n\n"
        "usage: doxastic train [PRESET] [OPTIONS]. PRESET is a name or a path to a YAML file; "
        f"without one it is {DEFAULT_PRESET}, or, if --env.id is given, the defaults "
        "below. Options override the preset.\n\n"
        "examples:\n"
        "  doxastic train sequential-test-hard --seed 1\n"
        "  doxastic train --env.id MiniGrid-MemoryS7-v0 --memory.readout precision\n"
        "  doxastic train noisy-cartpole --env.noise 0 0.1 --env.num-envs 32"
    )
    base = _base_experiment(preset, words)
    options = parse(
        TrainOptions, words, "doxastic train", description, default=TrainOptions(experiment=base)
    )
    from doxastic.training import train as train_experiment

    train_experiment(
        options.experiment,
        run_dir=options.run_dir,
        resume=options.resume,
        progress=not options.quiet,
    )


def evaluate(words: Sequence[str]) -> None:
    """Run `doxastic evaluate`."""
    options = parse(EvaluateOptions, words, "doxastic evaluate", EvaluateOptions.__doc__)
    from doxastic.results import evaluate_run
    from doxastic.runs import RunFolder
    from doxastic.training import load

    evaluate_run(
        RunFolder(options.run),
        agent=load(options.run, options.which, options.device),
        noise=options.noise,
        episodes=options.episodes,
        seed=options.seed,
    )


def plot(words: Sequence[str]) -> None:
    """Run `doxastic plot`."""
    options = parse(PlotOptions, words, "doxastic plot", PlotOptions.__doc__)
    from doxastic.disk import RunError
    from doxastic.results import plot_runs
    from doxastic.runs import RunFolder

    if not options.runs:
        raise ConfigError("doxastic plot needs at least one RUN; see doxastic plot --help")
    if options.labels and len(options.labels) != len(options.runs):
        raise ConfigError(
            f"--labels names {len(options.labels)} runs; expected one name for each of the "
            f"{len(options.runs)} runs"
        )
    figures = plot_runs(
        [RunFolder(run) for run in options.runs],
        labels=options.labels,
        references=[_reference(text) for text in options.reference],
        output=options.output,
    )
    if not figures:
        raise RunError(
            f"there is nothing to draw in {', '.join(map(str, options.runs))}: no training episode "
            "has ended and no noise levels were tested; train on, or run doxastic evaluate --noise"
        )


def export(words: Sequence[str]) -> None:
    """Run `doxastic export`."""
    options = parse(ExportOptions, words, "doxastic export", ExportOptions.__doc__)
    from doxastic.exports import export as export_run

    path = export_run(options.run, options.format, output=options.output, which=options.which)
    print(f"wrote {path} and {path}.json")


def _base_experiment(preset: str | None, words: Sequence[str]) -> Experiment:
    """Return what the options override: a run to resume, a preset, or the defaults."""
    from doxastic.runs import RunFolder, run_and_checkpoint

    run = value_of("--resume", words)
    if run is not None:
        if preset is not None:
            raise ConfigError(
                f"the preset {preset} and --resume are both given; a resumed run has its own"
            )
        return from_dict(Experiment, RunFolder(run_and_checkpoint(Path(run))[0]).config)
    if preset is not None:
        return load_preset(preset)
    return Experiment() if value_of("--env.id", words) else load_preset(DEFAULT_PRESET)


def _reference(text: str) -> Reference:
    from doxastic.plotting import Reference

    label, _, value = text.rpartition("=")
    try:
        return Reference(label=label or text, value=float(value))
    except ValueError as error:
        raise ConfigError(f"--reference is {text!r}; expected LABEL=RETURN") from error
