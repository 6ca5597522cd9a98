"""Training end to end: run folder, resume bit for bit, interruption, failures."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import doxastic
from doxastic.agents.agent import Agent
from doxastic.agents.ppo import PPO
from doxastic.cli import main
from doxastic.configuration import ConfigError
from doxastic.experiment import Experiment, from_dict, load_preset, override
from doxastic.interruption import TrainingInterrupted
from doxastic.runs import RunFolder
from doxastic.training import EvaluationFailed

UPDATE_STEPS = 4 * 16


def _experiment(updates: int = 4, **changes: object) -> Experiment:
    small = {
        "total_steps": updates * UPDATE_STEPS,
        "threads": 1,
        "checkpoint_updates": 2,
        "env": {"num_envs": 4},
        "encoder": {"width": 16},
        "memory": {"width": 16, "head_size": 8, "low_rank": 4, "belief_size": 4},
        "policy": {"hidden_size": 16},
        "ppo": {"segment_steps": 16, "epochs": 2, "minibatches": 2},
        "evaluation": {"noise": [0.0, 0.4], "episodes": 4},
    }
    return override(override(load_preset("noisy-cartpole"), small), changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return doxastic.train(
        _experiment(), run_dir=tmp_path_factory.mktemp("runs") / "whole", progress=False
    )


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = RunFolder(run).load("last", with_trainer=True)
    return {**checkpoint.weights, **checkpoint.trainer}


def _metrics_without_times(run: Path) -> list[dict[str, object]]:
    return [
        {key: value for key, value in record.items() if "second" not in key}
        for record in RunFolder(run).metrics()
    ]


def _assert_same_run(first: Path, second: Path) -> None:
    tensors, others = _tensors(first), _tensors(second)
    assert tensors.keys() == others.keys()
    different = [name for name in tensors if not torch.equal(tensors[name], others[name])]
    assert different == []
    assert _metrics_without_times(first) == _metrics_without_times(second)


def test_a_run_leaves_its_folder_complete(run):
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "evaluation.json",
        "evaluation.png",
    }
    assert from_dict(RunFolder(run).config) == _experiment()
    assert [record["update"] for record in RunFolder(run).metrics()] == [1, 2, 3, 4]
    assert [record["steps"] for record in RunFolder(run).metrics()] == [64, 128, 192, 256]


def test_the_same_experiment_gives_the_same_run(run, tmp_path):
    again = doxastic.train(_experiment(), run_dir=tmp_path / "again", progress=False)
    _assert_same_run(run, again)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(run, tmp_path, monkeypatch):
    half = _stopped_after(2, _experiment(), tmp_path / "half", monkeypatch)
    assert [record["update"] for record in RunFolder(half).metrics()] == [1, 2]
    assert doxastic.train(resume=half, progress=False) == half
    _assert_same_run(run, half)


def test_a_crash_between_checkpoints_loses_nothing_and_resumes_bit_for_bit(
    run, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        _raise_at_update(4, ZeroDivisionError("a defect"), patch)
        with pytest.raises(ZeroDivisionError):
            doxastic.train(_experiment(), run_dir=tmp_path / "run", progress=False)
    assert RunFolder(tmp_path / "run").load("last").update == 3
    doxastic.train(resume=tmp_path / "run", progress=False)
    _assert_same_run(run, tmp_path / "run")


def test_a_killed_run_resumes_from_its_checkpoint_and_drops_the_metrics_after_it(run, tmp_path):
    folder = tmp_path / "killed"
    code = (
        "import os, sys\n"
        "from doxastic import training\n"
        "from doxastic.agents.ppo import PPO\n"
        "from doxastic.runs import RunFolder\n"
        "log = RunFolder.log\n"
        "def log_then_die(self, metrics):\n"
        "    log(self, metrics)\n"
        "    if metrics['update'] == 3: os._exit(9)\n"
        "RunFolder.log = log_then_die\n"
        "training.train(sys.argv[1], run_dir=sys.argv[2], progress=False)\n"
    )
    config = run / "config.yaml"
    killed = subprocess.run([sys.executable, "-c", code, str(config), str(folder)], check=False)
    assert killed.returncode == 9
    assert [record["update"] for record in RunFolder(folder).metrics()] == [1, 2, 3]
    doxastic.train(resume=folder, progress=False)
    _assert_same_run(run, folder)


def test_resuming_from_an_earlier_checkpoint_repeats_the_rest(run, tmp_path):
    whole = doxastic.train(_experiment(), run_dir=tmp_path / "run", progress=False)
    step = f"step-{2 * UPDATE_STEPS}"
    doxastic.train(resume=whole / "checkpoints" / step, progress=False)
    _assert_same_run(run, whole)


def test_a_finished_run_can_be_prolonged(tmp_path):
    folder = doxastic.train(_experiment(2), run_dir=tmp_path / "run", progress=False)
    doxastic.train(resume=folder, total_steps=3 * UPDATE_STEPS, progress=False)
    assert [record["update"] for record in RunFolder(folder).metrics()] == [1, 2, 3]
    assert from_dict(RunFolder(folder).config).total_steps == 3 * UPDATE_STEPS


def test_the_best_checkpoint_is_the_one_with_the_highest_score(tmp_path, monkeypatch):
    scores = iter([0.1, 0.7, 0.7, 0.3])
    seeds = []

    def scored(agent, env, noise, episodes, seed, *, deterministic):
        seeds.append(seed)
        assert noise == env.noise and episodes == 8 and deterministic
        return SimpleNamespace(mean=np.full(len(noise), next(scores)))

    monkeypatch.setattr("doxastic.training.evaluate", scored)
    experiment = _experiment(8, evaluation={"noise": [0.0], "episodes": 4, "selection_episodes": 8})
    run = RunFolder(doxastic.train(experiment, run_dir=tmp_path / "run", progress=False))
    assert run.checkpoint_path("best").name == f"step-{6 * UPDATE_STEPS}"
    assert run.checkpoint_path("last").name == f"step-{8 * UPDATE_STEPS}"
    logged = [record.get("score") for record in run.metrics()]
    assert logged == [None, 0.1, None, 0.7, None, 0.7, None, 0.3]
    # Always the same episodes, and others than those of the evaluation.
    assert len(set(seeds)) == 1 and seeds[0] != experiment.evaluation.seed


def test_the_record_of_a_checkpoint_that_was_removed_does_not_keep_a_worse_one_best(
    tmp_path, monkeypatch
):
    scores = iter([0.9, 0.2, 0.95, 0.5])
    monkeypatch.setattr(
        "doxastic.training.evaluate",
        lambda agent, env, noise, *_, **__: SimpleNamespace(mean=np.full(len(noise), next(scores))),
    )
    evaluation = {"noise": [0.0], "episodes": 4, "selection_episodes": 8}
    experiment = _experiment(8, evaluation=evaluation)
    run = RunFolder(_stopped_after(6, experiment, tmp_path / "run", monkeypatch))
    assert run.checkpoint_path("best").name == f"step-{6 * UPDATE_STEPS}"
    earlier = run.path / "checkpoints" / f"step-{4 * UPDATE_STEPS}"
    assert not (run.path / "checkpoints" / f"step-{2 * UPDATE_STEPS}").exists()
    _raise_at_update(7, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        doxastic.train(resume=earlier, progress=False)
    assert run.checkpoint_path("best").name == f"step-{6 * UPDATE_STEPS}"


def test_a_stop_between_two_checkpoints_does_not_change_the_best_one(tmp_path, monkeypatch):
    updates, merits = [0], {0: -math.inf, 1: 0.0, 2: 5.0, 3: 9.0, 4: 7.0}
    update = PPO.update

    def counted(self: PPO) -> dict[str, float]:
        metrics = update(self)
        updates[0] = self.updates
        return metrics

    monkeypatch.setattr(PPO, "update", counted)
    monkeypatch.setattr("doxastic.loop._mean_and_error", lambda _: (merits[updates[0]], 0.0))
    experiment = _experiment(evaluation={"selection_episodes": 0})
    half = _stopped_after(3, experiment, tmp_path / "half", monkeypatch)
    assert RunFolder(half).checkpoint_path("best").name == f"step-{2 * UPDATE_STEPS}"
    doxastic.train(resume=half, progress=False)
    assert RunFolder(half).checkpoint_path("best").name == f"step-{4 * UPDATE_STEPS}"


def test_judging_checkpoints_leaves_the_training_as_it_was(run, tmp_path):
    experiment = _experiment(
        evaluation={"noise": [0.0, 0.4], "episodes": 4, "selection_episodes": 4}
    )
    judged = doxastic.train(experiment, run_dir=tmp_path / "run", progress=False)
    ours, others = _tensors(judged), _tensors(run)
    assert all(torch.equal(value, others[name]) for name, value in ours.items())
    assert [record["score"] for record in RunFolder(judged).metrics() if "score" in record]


def test_a_resumed_run_may_not_become_another_experiment(run):
    with pytest.raises(ConfigError, match=r"memory differs from .* may change only total_steps"):
        doxastic.train(resume=run, memory={"kind": "gru"}, progress=False)


def test_a_run_trained_on_a_gpu_is_opened_and_continued_without_one(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    copy = shutil.copytree(run, tmp_path / "copy")
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda"))
    assert doxastic.load(copy).device.type == "cpu"
    assert main(["plot", str(copy)]) == 0
    with pytest.raises(ConfigError, match=r"device is 'cuda', which this machine does not have"):
        doxastic.train(resume=copy, progress=False)
    assert from_dict(RunFolder(copy).config).device == "cuda"
    doxastic.train(resume=copy, device="cpu", progress=False)
    assert from_dict(RunFolder(copy).config).device == "cpu"


def test_an_outside_environment_trains_and_resumes(tmp_path, caplog):
    experiment = _experiment(
        2,
        env={"id": "CartPole-v1", "noise": None},
        evaluation={"noise": None},
        ppo={"normalize_observation": True},
    )
    folder = doxastic.train(experiment, run_dir=tmp_path / "run", progress=False)
    doxastic.train(resume=folder, total_steps=3 * UPDATE_STEPS, progress=False)
    assert "cannot restore its state" in caplog.text
    agent = doxastic.load(folder)
    assert agent.normalizer is not None
    assert not (folder / "evaluation.png").exists()
    assert json.loads((folder / "evaluation.json").read_text())["levels"] == [None]


def test_overrides_are_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key totl_steps; did you mean total_steps"):
        doxastic.train("cartpole", run_dir=tmp_path / "run", totl_steps=3)
    assert not (tmp_path / "run").exists()


def test_a_loaded_agent_acts_as_the_trained_one(run):
    agent = doxastic.load(run)
    assert isinstance(agent, Agent)
    observation = agent.observation_space.sample()
    action, state = agent.predict(observation, None, np.array([True]))
    assert agent.action_space.contains(action)
    action, state = agent.predict(observation, state, np.array([False]))
    assert agent.action_space.contains(action)
    weights = RunFolder(run).load("last").weights
    loaded = doxastic.load(run, "last").policy.state_dict()
    assert all(torch.equal(loaded[name], weights[f"policy/{name}"]) for name in loaded)


def test_sb3_evaluates_a_loaded_agent(run):
    import gymnasium
    from stable_baselines3.common.evaluation import evaluate_policy

    env = gymnasium.make("doxastic/CartPole-v0", noise=0.1)
    mean, _ = evaluate_policy(doxastic.load(run), env, n_eval_episodes=2, warn=False)
    assert mean > 0


def test_the_callers_threads_are_given_back(run, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        doxastic.train(_experiment(1), run_dir=tmp_path / "run", progress=False)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_update_and_the_run_resumes(number, run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    update = PPO.update

    def update_and_signal(self: PPO) -> dict[str, float]:
        if self.updates == 2:
            os.kill(os.getpid(), number)
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(PPO, "update", update_and_signal)
        with pytest.raises(
            TrainingInterrupted, match=r"saved after update 3; .*--resume"
        ) as raised:
            doxastic.train(_experiment(), run_dir=folder, progress=False)
    assert raised.value.signal_number == number
    assert RunFolder(folder).load("last").update == 3
    doxastic.train(resume=folder, progress=False)
    _assert_same_run(run, folder)


def test_the_command_ends_with_the_signals_exit_code(run, tmp_path):
    config = tmp_path / "long.yaml"
    config.write_text(
        (run / "config.yaml").read_text().replace("total_steps: 256", "total_steps: 10000000")
    )
    command = [sys.executable, "-m", "doxastic", "train", str(config), "--run-dir", "out"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "continue with: doxastic train --resume out" in errors
    assert "Traceback" not in errors
    assert doxastic.load(tmp_path / "out", "last")


def test_a_failed_evaluation_says_that_the_training_is_saved(tmp_path, monkeypatch):
    from doxastic import results

    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("the wheel came off.")

    monkeypatch.setattr(results, "evaluate", fail)
    message = r"ZeroDivisionError: the wheel came off; the training is saved; .* doxastic evaluate"
    with pytest.raises(EvaluationFailed, match=message):
        doxastic.train(_experiment(1), run_dir=tmp_path / "run", progress=False)
    assert RunFolder(tmp_path / "run").load("last").update == 1


def test_an_interrupted_evaluation_says_that_the_training_is_saved(tmp_path, monkeypatch):
    from doxastic import results

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"training is saved; .* doxastic evaluate"):
        doxastic.train(_experiment(1), run_dir=tmp_path / "run", progress=False)
    assert RunFolder(tmp_path / "run").load("last").update == 1


def _raise_at_update(number: int, error: BaseException, patch: pytest.MonkeyPatch) -> None:
    update = PPO.update

    def update_or_raise(self: PPO) -> dict[str, float]:
        if self.updates == number - 1:
            raise error
        return update(self)

    patch.setattr(PPO, "update", update_or_raise)


def _stopped_after(
    updates: int, experiment: Experiment, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Train only so many updates of an experiment, as if interrupted."""
    with monkeypatch.context() as patch:
        _raise_at_update(updates + 1, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            doxastic.train(experiment, run_dir=folder, progress=False)
    return folder
