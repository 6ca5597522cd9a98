"""The scripts of docs/sb3.md run."""

import re
import sys
from pathlib import Path

import pytest

import doxastic

PAGE = (Path(__file__).parents[2] / "docs" / "sb3.md").read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r"<!-- script: (\w+) -->\n```python\n(.*?)^```$", PAGE, re.M | re.S))
SIZES = {
    "ppo": "STEPS, EPISODES = 1024, 2",
    "sac": "STEPS, WINDOW = 420, 4",
    "run": "STEPS, EPISODES = 1024, 8",
}


def execute(name, sizes=None):
    script = SCRIPTS[name]
    if sizes is not None:
        script, replaced = re.subn(r"^STEPS\b.*$", sizes, script, flags=re.M)
        assert replaced == 1
    exec(compile(script, name, "exec"), {"__name__": "__main__"})


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
    lines = SCRIPTS[name].splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(("name", "lines"), [("ppo", 1), ("sac", 1), ("run", 3)])
def test_a_script_of_the_page_runs(name, lines, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script", str(run)])
    execute(name, SIZES[name])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == lines
    assert all(float(line.rsplit(" ", 1)[1]) != 0 for line in printed)
