"""The examples run."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import doxastic

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_an_episode_can_be_watched_with_the_agents_belief(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = doxastic.train(
        "sequential-test-hard",
        run_dir=tmp_path / "run",
        total_steps=4096,
        evaluation={"episodes": 8, "noise": (1.0,)},
        progress=False,
    )
    example = runpy.run_path(str(EXAMPLES / "watch_the_belief.py"))
    earned = example["watch"](str(run), noise=1.0, seed=0)
    lines = capsys.readouterr().out.splitlines()
    assert -3.4 <= earned <= 1.0
    assert (
        1 <= len([line for line in lines if line.split()[:1] and line.split()[0].isdigit()]) <= 40
    )
    assert all(word in lines[1] for word in ("evidence", "deviation"))
