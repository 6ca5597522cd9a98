"""What a run shows for itself: the evaluation, its table, and the figures."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import gymnasium
from matplotlib.figure import Figure

from doxastic.agents.agent import Agent
from doxastic.agents.evaluation import Evaluation, evaluate
from doxastic.disk import RunError, disk_errors, write_atomically
from doxastic.envs.make import EnvConfig, make_vector_env
from doxastic.envs.registration import TASKS
from doxastic.experiment import Experiment, from_dict
from doxastic.plotting import (
    LearningCurve,
    Reference,
    Sweep,
    plot_learning_curves,
    plot_noise_sweep,
)
from doxastic.runs import RunFolder
from doxastic.spaces import check_same_space


def evaluate_run(
    run: RunFolder,
    *,
    agent: Agent,
    noise: Sequence[float] | None = None,
    episodes: int | None = None,
    seed: int | None = None,
    shown: bool = True,
) -> Evaluation:
    """Evaluate the agent of a run; write `evaluation.json` and the figures into its folder.

    Args:
        run: The run folder.
        agent: The agent of one of its checkpoints.
        noise: Noise levels; by default those of the run's configuration, as the rest.
        episodes: Episodes at each level.
        seed: Seed of the first episode.
        shown: Whether to print the table and the paths of the figures.

    Raises:
        ValueError: If the environment's spaces are not the agent's, or it takes no noise.
        RunError: If the folder cannot be written.
    """
    experiment = from_dict(run.config)
    settings = experiment.evaluation
    _check_spaces(experiment.env, agent)
    evaluation = evaluate(
        agent,
        experiment.env,
        settings.noise if noise is None else tuple(noise),
        settings.episodes if episodes is None else episodes,
        settings.seed if seed is None else seed,
        deterministic=settings.deterministic,
    )
    # The table first: a folder that cannot be written should not cost the episodes.
    if shown:
        print(f"\n{evaluation.table()}\n", flush=True)
    run.write("evaluation.json", evaluation.to_json().encode())
    plot_runs([run], shown=shown)
    return evaluation


def plot_runs(
    runs: Sequence[RunFolder],
    *,
    labels: Sequence[str] = (),
    references: Sequence[Reference] = (),
    output: Path | None = None,
    shown: bool = True,
) -> list[Path]:
    """Draw the noise sweep and the learning curve of runs and return the paths, if any.

    Args:
        runs: Run folders; each appears in the figures for which it has data.
        labels: Names in the legends; by default the folders' names.
        references: Lines to compare with in the noise sweep, which there must be then.
        output: Folder of the figures; by default the run folder, for several runs the current
            folder.
        shown: Whether to print the paths.

    Raises:
        RunError: If the folder cannot be written, or there are references and no noise sweep.
    """
    names = list(labels) or [run.path.resolve().name for run in runs]
    experiments = [from_dict(run.config) for run in runs]
    about = ", ".join(dict.fromkeys(experiment.env.id for experiment in experiments))
    evaluations = [_read_evaluation(run) for run in runs]
    sweeps = [
        _sweep(name, evaluation, experiment)
        for name, evaluation, experiment in zip(names, evaluations, experiments, strict=True)
        if evaluation is not None and None not in evaluation.levels
    ]
    if references and not sweeps:
        raise RunError(
            "references belong to the noise sweep, and no noise levels were tested in "
            f"{', '.join(str(run.path) for run in runs)}; run doxastic evaluate RUN --noise LEVELS "
            "first, or leave --reference out"
        )
    curves = [_curve(name, run) for name, run in zip(names, runs, strict=True)]
    figures: dict[str, Figure] = {}
    if sweeps:
        title = f"{about}: return under test noise"
        kinds = {noise_kind(experiment) for experiment in experiments}
        figures["evaluation.png"] = plot_noise_sweep(
            sweeps,
            references=references,
            title=title,
            kind=kinds.pop() if len(kinds) == 1 else "mixed",
        )
    if any(math.isfinite(value) for curve in curves for value in curve.returns):
        title = f"{about}: return during training"
        figures["learning.png"] = plot_learning_curves(curves, title=title)
    folder = output or (runs[0].path if len(runs) == 1 else Path())
    return [_save(figure, folder / name, shown) for name, figure in figures.items()]


def _check_spaces(config: EnvConfig, agent: Agent) -> None:
    env = make_vector_env(config, num_envs=1)
    try:
        check_same_space("observation", env.single_observation_space, agent.observation_space)
        check_same_space("action", env.single_action_space, agent.action_space)
    finally:
        env.close()


def _read_evaluation(run: RunFolder) -> Evaluation | None:
    path = run.path / "evaluation.json"
    if not path.exists():
        return None
    try:
        return Evaluation.from_json(path.read_text(encoding="utf-8"))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path} is damaged or of another version; make it again: doxastic evaluate {run.path}"
        ) from error


def _sweep(name: str, evaluation: Evaluation, experiment: Experiment) -> Sweep:
    levels = [0.0 if level is None else level for level in evaluation.levels]
    order = sorted(range(len(levels)), key=levels.__getitem__)
    interval = evaluation.interval()
    return Sweep(
        label=name,
        noise=[levels[i] for i in order],
        mean=[float(evaluation.mean[i]) for i in order],
        low=[float(interval[i, 0]) for i in order],
        high=[float(interval[i, 1]) for i in order],
        trained=experiment.env.noise or (),
    )


def noise_kind(experiment: Experiment) -> str:
    """Return the kind of noise for `plot_noise_sweep`; some tasks' own replaces symbols."""
    env = experiment.env
    is_symbol = env.id in TASKS and not isinstance(
        TASKS[env.id]().observation_space, gymnasium.spaces.Box
    )
    return "symbol" if is_symbol and env.noise_kind == "gaussian" else env.noise_kind


def _curve(name: str, run: RunFolder) -> LearningCurve:
    records = run.metrics()
    values = [record.get("return_mean") for record in records]
    return LearningCurve(
        label=name,
        steps=[record["steps"] for record in records],
        returns=[math.nan if value is None else value for value in values],
    )


def _save(figure: Figure, path: Path, shown: bool) -> Path:
    image = io.BytesIO()
    figure.savefig(image, format="png")
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, image.getvalue())
    if shown:
        print(path, flush=True)
    return path
