"""The scripts of docs/sb3.md run."""

import sys

import pytest
from page_scripts import assert_short, execute, scripts_of

import doxastic

SCRIPTS = scripts_of("sb3.md")
SIZES = {
    "ppo": "STEPS, EPISODES = 1024, 2",
    "sac": "STEPS, WINDOW = 420, 4",
    "run": "STEPS, EPISODES = 1024, 8",
}


@pytest.fixture
def run(tmp_path):
    return doxastic.train(
        "noisy-cartpole",
        run_dir=tmp_path / "run",
        total_steps=128,
        env={"num_envs": 4},
        ppo={"segment_steps": 16, "minibatches": 2},
        evaluation={"episodes": 4},
        progress=False,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_have_fewer_than_sixty_lines_and_short_ones(name):
    assert_short(SCRIPTS[name])


@pytest.mark.parametrize(("name", "lines"), [("ppo", 1), ("sac", 1), ("run", 3)])
def test_a_script_of_the_page_runs(name, lines, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script", str(run)])
    execute(SCRIPTS[name], SIZES[name])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == lines
    assert all(float(line.rsplit(" ", 1)[1]) != 0 for line in printed)
