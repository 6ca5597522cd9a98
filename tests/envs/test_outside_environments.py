"""Environments of other packages train with the command that trains our own."""

import json
import runpy
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from doxastic.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ["--total-steps", "4096", "--env.num-envs", "16", "--evaluation.episodes", "8", "--quiet"]


@pytest.fixture
def example(monkeypatch):
    """Put examples/ on the path, and forget what was imported and registered from there."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    sys.modules.pop("outside_environments", None)
    gymnasium.registry.pop("Catch-v0", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("CartPole-v1", []),
        ("CartPole-v1", ["--env.noise-kind", "flicker", "--env.noise", "0.5"]),
        ("Pendulum-v1", []),
        ("popgym-RepeatPreviousEasy-v0", []),
        ("popgym-AutoencodeEasy-v0", []),
        ("popgym-BattleshipEasy-v0", []),
        ("popgym-RepeatPreviousEasy-v0", ["--env.noise-kind", "delay", "--env.noise", "2"]),
        ("MiniGrid-MemoryS7-v0", []),
        ("MiniGrid-MemoryS7-v0", ["--env.noise-kind", "flicker", "--env.noise", "0.3"]),
        ("outside_environments:Catch-v0", []),
    ],
)
def test_the_command_trains_and_evaluates(example, env_id, options, tmp_path):
    folder = tmp_path / "run"
    assert main(["train", "--env.id", env_id, *options, *SMALL, "--run-dir", str(folder)]) == 0
    files = {path.name for path in folder.rglob("*.json")}
    assert "evaluation.json" in files, files
    evaluation = json.loads(next(folder.rglob("evaluation.json")).read_text(encoding="utf-8"))
    assert np.isfinite(np.asarray(evaluation["returns"], dtype=float)).all()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_images_are_learned_from(example, tmp_path):
    script = runpy.run_path(str(EXAMPLES / "outside_environments.py"))
    evaluation = script["train"]("Catch-v0", 40_000, tmp_path / "run")
    # A paddle of three pixels that stays in the middle of sixteen earns -0.6.
    assert np.mean(evaluation.returns) > 0.0
