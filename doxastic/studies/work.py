"""What a worker does: train and test one cell, measure a speed, play a reference."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from doxastic.agents.evaluation import evaluate, run_episodes
from doxastic.agents.ppo import PPO
from doxastic.agents.study.references import random_return, reference_returns
from doxastic.checkpoints import CheckpointError
from doxastic.configuration import from_dict
from doxastic.envs.catalog import CATALOG
from doxastic.envs.make import EnvConfig, make_vector_env
from doxastic.envs.registration import TASKS
from doxastic.experiment import build_agent
from doxastic.runs import RunFolder
from doxastic.studies.cells import Cell
from doxastic.studies.records import Record, save_episodes
from doxastic.training import load, train

# Long enough that the clock does not matter, short enough that dozens of pairs can be measured.
_MEASURED_SECONDS = 1.5
_MEASURED_EPISODES, _MEASURED_SINGLE_EPISODES = 1024, 32


def train_cell(data: Mapping[str, Any], study: str) -> dict[str, Any]:
    """Train, test and return the record of a cell; what is there of it already is used.

    Args:
        data: The cell, as `Cell.to_dict` gives it.
        study: The study's folder.

    Raises:
        TrainingStopped: If training diverged or the environment failed.
        TrainingInterrupted: After SIGTERM, when the training is saved.
        RunError: If the disk refuses.
    """
    cell = Cell.from_dict(data)
    folder = Path(study) / cell.folder
    folder.mkdir(parents=True, exist_ok=True)
    run = _trained(cell, folder / "run")
    agent = load(run)
    began = time.perf_counter()
    evaluation = evaluate(
        agent, cell.experiment.env, cell.noise, cell.episodes, cell.evaluation_seed
    )
    seconds = time.perf_counter() - began
    save_episodes(folder / "episodes.npz", evaluation.levels, evaluation.returns)
    last = RunFolder(run).metrics()[-1]
    record = Record(
        digest=cell.digest,
        stage=cell.stage,
        task=cell.task,
        memory=cell.memory,
        seed=cell.experiment.seed,
        learning_rate=cell.settings.learning_rate,
        entropy=cell.settings.entropy,
        steps=last["steps"],
        parameters=sum(x.numel() for x in agent.policy.parameters() if x.requires_grad),
        episodes=cell.episodes,
        evaluation_seed=cell.evaluation_seed,
        seconds_training=round(last["seconds"], 3),
        seconds_evaluation=round(seconds, 3),
        versions=evaluation.versions,
        levels=evaluation.levels,
        means=tuple(float(x) for x in evaluation.mean),
        deviations=tuple(float(x) for x in evaluation.returns.std(1, ddof=1)),
    )
    return asdict(record)


def measure(data: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds per training step and per test episode of a cell's agent, untrained.

    Args:
        data: The cell, as `Cell.to_dict` gives it.
    """
    cell = Cell.from_dict(data)
    experiment = cell.experiment
    env = make_vector_env(experiment.env)
    try:
        agent = build_agent(experiment, env.single_observation_space, env.single_action_space)
        ppo = PPO(
            agent, env, experiment.ppo, experiment.total_steps, auxiliary=experiment.auxiliary
        )
        ppo.update()  # What is compiled on first use is not timed.
        began, steps = time.perf_counter(), ppo.steps
        while time.perf_counter() - began < _MEASURED_SECONDS:
            ppo.update()
        step = (time.perf_counter() - began) / (ppo.steps - steps)
    finally:
        env.close()
    noise = None if cell.noise is None else (cell.noise[-1],)
    episodes = _MEASURED_EPISODES if experiment.env.id in TASKS else _MEASURED_SINGLE_EPISODES
    tested = make_vector_env(experiment.env, num_envs=episodes, noise=noise)
    try:
        began = time.perf_counter()
        _, lengths = run_episodes(agent, tested, episodes, 0)
        seconds = (time.perf_counter() - began) / (episodes * lengths.max())
    finally:
        tested.close()
    # Many episodes are played at once until the last one has ended: at its limit, as a rule.
    limit = CATALOG[experiment.env.id].steps if experiment.env.id in CATALOG else lengths.max()
    return {"step": step, "episode": seconds * float(limit)}


def references(data: Mapping[str, Any], noise: Sequence[float] | None, seed: int) -> dict[str, Any]:
    """Return the return of random actions, and those of the best policy known.

    Args:
        data: The environment's configuration as plain data.
        noise: Levels at which the best policy is played; None does not play it.
        seed: Seed of the episodes.
    """
    config = from_dict(EnvConfig, data)
    best, mixture = None, None
    if noise is not None:
        levels, mixture = reference_returns(config, noise, seed)
        best = levels.tolist()
    return {"random": random_return(config, seed), "best": best, "mixture": mixture}


def _trained(cell: Cell, run: Path) -> Path:
    """Return the run folder of a cell, trained to its end."""
    if (run / "evaluation.json").is_file():
        return run
    if (run / "config.yaml").is_file() and (run / "checkpoints").is_dir():
        # Killed before its first checkpoint was whole, it starts again; what the disk refuses now
        # is no reason to give up what it took before.
        with contextlib.suppress(CheckpointError):
            return train(resume=run, progress=False)
    shutil.rmtree(run, ignore_errors=True)
    return train(cell.experiment, run_dir=run, progress=False)


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "train": train_cell,
    "measure": measure,
    "references": references,
}
"""What a worker can be asked for, by name."""

# Cells are small, and the cores are taken by processes.
torch.set_num_threads(1)
