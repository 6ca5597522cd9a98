"""`doxastic calibrate`: what it writes into the run folder, and what its figures show."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

import doxastic
from doxastic import calibration_command
from doxastic.agents.agent import Agent
from doxastic.agents.calibration.measures import Estimate
from doxastic.agents.calibration.report import Calibration
from doxastic.calibration_command import calibrate_run, figures_of
from doxastic.configuration import ConfigError
from doxastic.experiment import load_preset, override
from doxastic.runs import RunFolder

FIGURES = {"actions", "control", "episodes", "reliability", "shift", "variance"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    small = {
        "total_steps": 128,
        "threads": 1,
        "env": {"num_envs": 4},
        "encoder": {"width": 16},
        "memory": {"width": 16, "head_size": 8, "low_rank": 4, "belief_size": 4},
        "policy": {"hidden_size": 16},
        "ppo": {"segment_steps": 16, "epochs": 1, "minibatches": 2},
        "evaluation": {"noise": [1.0, 3.0], "episodes": 4, "selection_episodes": 0},
    }
    experiment = override(load_preset("sequential-test-hard"), small)
    folder = tmp_path_factory.mktemp("runs") / "small"
    return doxastic.train(experiment, run_dir=folder, progress=False)


@pytest.fixture(scope="module")
def result(run: Path) -> tuple[Calibration, str]:
    """Return the calibration and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        agent = doxastic.load(run)
        found = calibrate_run(RunFolder(run), agent=agent, noise=(6.0,), episodes=24)
    return found, printed.getvalue()


def test_json_and_figures_are_written_into_the_run_folder(
    run: Path, result: tuple[Calibration, str]
) -> None:
    data = json.loads((run / "calibration.json").read_text())
    assert data["levels"] == [0.25, 0.5, 1.0, 2.0, 4.0, 6.0] and data["episodes"] == 24
    assert data["versions"]["doxastic"] == doxastic.__version__ and data["command"]
    for name in FIGURES:
        path = run / f"calibration-{name}.png"
        assert path.stat().st_size > 10_000 and str(path) in result[1]
    assert "SequentialTest-v0, BeliefMemory with MomentsReadout" in result[1]


def test_the_options_reach_the_study(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        calibration_command, "calibrate_run", lambda run, **rest: given.update(rest, run=run)
    )
    words = ["--noise", "6", "0.5", "--episodes", "24", "--variables", "sign", "--which", "last"]
    calibration_command.calibrate([str(run), *words, "--seed", "3"])
    assert given.pop("run").path == run and isinstance(given.pop("agent"), Agent)
    assert given == {"noise": (6.0, 0.5), "episodes": 24, "variables": ("sign",), "seed": 3}


def test_several_runs_are_summed_up_in_a_file(
    run: Path,
    result: tuple[Calibration, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = result[0]
    sign = first.variables[0]
    measured = sign.measures["belief"]["held out"]
    other = replace(measured, calibration_error=Estimate(0.5, 0.4, 0.6))
    belief = {**sign.measures["belief"], "held out": other}
    changed = replace(sign, measures={**sign.measures, "belief": belief})
    second = replace(first, variables=[changed, *first.variables[1:]])
    found = iter([first, second])
    monkeypatch.setattr(calibration_command, "calibrate_run", lambda run, **rest: next(found))
    path = tmp_path / "new" / "summary.md"
    calibration_command.calibrate([str(run), str(run), "--summary", str(path)])
    text = path.read_text()
    assert "### doxastic/SequentialTest-v0, BeliefMemory with MomentsReadout, 2 agents" in text
    low, high = sorted([measured.calibration_error.value, 0.5])
    mean = (low + high) / 2
    assert f"| sign | held out | {mean:.3f} [{low:.3f}, {high:.3f}] |" in text
    assert "| variance clamped | trained |" in text


def test_no_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="no run is given"):
        calibration_command.calibrate([])


def test_an_unknown_option_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="--episode"):
        calibration_command.calibrate([str(run), "--episode", "24"])


@pytest.fixture(scope="module")
def figures(result: tuple[Calibration, str]) -> dict[str, Figure]:
    drawn = figures_of(result[0])
    return {name.removeprefix("calibration-").removesuffix(".png"): f for name, f in drawn.items()}


def _words(figure: Figure) -> str:
    texts = [axes.get_title(loc="left") for axes in figure.axes]
    texts += [text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel())]
    legends = [axes.get_legend() for axes in figure.axes]
    texts += [entry.get_text() for legend in legends if legend for entry in legend.get_texts()]
    return "\n".join(texts)


def test_every_figure_says_what_it_shows(figures: dict[str, Figure]) -> None:
    assert set(figures) == FIGURES
    for figure in figures.values():
        suptitle = figure.get_suptitle()
        assert "doxastic/SequentialTest-v0, BeliefMemory with MomentsReadout" in suptitle
    assert "predicted probability of 1" in _words(figures["reliability"])
    assert "sign: levels held out" in _words(figures["reliability"])
    assert {"exact posterior", "belief (probe)", "true"} <= set(
        _words(figures["episodes"]).splitlines()
    )
    assert "noise 6, held out" in _words(figures["episodes"])
    assert {"wait", "answer -1", "answer +1", "deviation of sign"} <= set(
        _words(figures["actions"]).splitlines()
    )
    assert "variance of the posterior" in _words(figures["variance"])
    assert "levels trained: return" in _words(figures["control"])


def test_held_out_levels_are_hollow(figures: dict[str, Figure]) -> None:
    axes = figures["shift"].axes[0]
    points = [line for line in axes.lines if line.get_linestyle() == "None"]
    hollow = [line for line in points if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 3 and all(len(line.get_xdata()) == 1 for line in hollow)
    assert sum(len(line.get_xdata()) for line in points) == 3 * 6
    assert [label.get_text() for label in axes.get_xticklabels()][-1] == "6"


def test_probabilities_stay_within_their_values_in_the_episodes(
    figures: dict[str, Figure],
) -> None:
    axes = figures["episodes"].axes[0]
    ends = [path.vertices[:, 1] for band in axes.collections for path in band.get_paths()]
    assert len(ends) == 2 and np.abs(np.concatenate(ends)).max() <= 1
