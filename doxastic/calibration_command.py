"""The command `doxastic calibrate`: is the belief of a trained agent a belief?"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from doxastic.configuration import ConfigError
from doxastic.options import parse

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from doxastic.agents.agent import Agent
    from doxastic.agents.calibration.report import Calibration
    from doxastic.runs import RunFolder


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Probe what a trained agent believes: is it calibrated, does it hold under other noise, and
    does the policy use it? Table, JSON and figures in the run folder; of several runs, such as the
    seeds of one memory, their means and ranges as well."""  # noqa: D205, D209

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...")]
    """Run folders."""
    noise: tuple[float, ...] | None = None
    """Noise levels to test at, beside those of training; by default those of the run's
    evaluation."""
    episodes: int = 1024
    """Episodes at each level: half of them fit the probes, the others test them."""
    variables: tuple[str, ...] = ()
    """Hidden variables to study; by default the first four that vary and the noise level."""
    which: str = "best"
    """The checkpoint: best, last, or step-N."""
    seed: int | None = None
    """Seed of the episodes; by default that of the run's evaluation."""
    device: str = "cpu"
    """Where the network runs: cpu, cuda, cuda:1, ..."""
    summary: Path | None = None
    """File for the means and ranges over the runs, in Markdown; by default they are printed."""


def calibrate(words: Sequence[str]) -> None:
    """Run `doxastic calibrate`."""
    options = parse(CalibrateOptions, words, "doxastic calibrate", CalibrateOptions.__doc__)
    if not options.runs:
        raise ConfigError("no run is given; expected run folders: doxastic calibrate RUN ...")
    from doxastic.calibration_summary import summary
    from doxastic.disk import check_output, disk_errors, write_atomically
    from doxastic.runs import RunFolder
    from doxastic.training import load

    if options.summary is not None:
        check_output(options.summary, "--summary")
    found = [
        calibrate_run(
            RunFolder(run),
            agent=load(run, options.which, options.device),
            noise=options.noise,
            episodes=options.episodes,
            variables=options.variables,
            seed=options.seed,
        )
        for run in options.runs
    ]
    if options.summary is not None:
        text = f"`doxastic calibrate {shlex.join(words)}`\n\n{summary(found)}"
        with disk_errors(options.summary, "--summary"):
            options.summary.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(options.summary, text.encode())
    elif len(found) > 1:
        print(f"\n{summary(found)}", flush=True)


def calibrate_run(
    run: RunFolder,
    *,
    agent: Agent,
    noise: Sequence[float] | None = None,
    episodes: int = 1024,
    variables: Sequence[str] = (),
    seed: int | None = None,
    shown: bool = True,
) -> Calibration:
    """Study the belief of a run's agent; write `calibration.json` and figures into its folder.

    Args:
        run: The run folder.
        agent: The agent of one of its checkpoints.
        noise: Noise levels beside those of training; by default those of the run's evaluation.
        episodes: Episodes at each level.
        variables: Names of hidden variables; by default the first few that vary.
        seed: Seed of the first episode; by default that of the run's evaluation.
        shown: Whether to print the table and the paths of the figures.

    Raises:
        ValueError: If the environment does not tell its hidden state, there is no such variable,
            or there are too few episodes.
        RunError: If the folder cannot be written.
    """
    from doxastic.agents.calibration.analysis import calibrate as study
    from doxastic.experiment import from_dict

    experiment = from_dict(run.config)
    settings = experiment.evaluation
    calibration = study(
        agent,
        experiment.env,
        settings.noise if noise is None else tuple(noise),
        episodes,
        settings.seed if seed is None else seed,
        deterministic=settings.deterministic,
        variables=variables or None,
    )
    if shown:
        print(f"\n{calibration.table()}\n", flush=True)
    run.write("calibration.json", calibration.to_json(_origin()).encode())
    for name, figure in figures_of(calibration).items():
        path = run.write(name, _png(figure))
        if shown:
            print(path, flush=True)
    return calibration


def figures_of(calibration: Calibration) -> dict[str, Figure]:
    """Return the figures by file name; without a belief, no returns without it."""
    from doxastic.calibration_figures import plot_reliability, plot_shift, plot_variance
    from doxastic.calibration_panels import plot_actions, plot_control, plot_episodes

    drawings: dict[str, Callable[[Calibration], Figure]] = {
        "reliability": plot_reliability,
        "episodes": plot_episodes,
        "variance": plot_variance,
        "actions": plot_actions,
        "shift": plot_shift,
    }
    if calibration.control:
        drawings["control"] = plot_control
    return {f"calibration-{name}.png": draw(calibration) for name, draw in drawings.items()}


def _png(figure: Figure) -> bytes:
    import io

    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def _origin() -> dict[str, object]:
    """Return what `calibration.json` says of where it comes from."""
    import sys

    from doxastic.checkpoints import package_versions

    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {"versions": package_versions(), "command": command}
