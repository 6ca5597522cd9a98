"""The command line: commands, options, precedence, help."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from doxastic import __version__
from doxastic.cli import main
from doxastic.experiment import from_dict
from doxastic.runs import RunFolder

_OPTIONS = {
    "--threads": 1,
    "--env.num-envs": 4,
    "--encoder.width": 16,
    "--memory.width": 16,
    "--memory.head-size": 8,
    "--policy.hidden-size": 16,
    "--ppo.segment-steps": 16,
    "--ppo.minibatches": 2,
    "--evaluation.episodes": 4,
    "--total-steps": 128,
}
SMALL = [str(word) for option in _OPTIONS.items() for word in option]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "agent"
    words = ["train", "noisy-cartpole", "--run-dir", str(folder), "--quiet", *SMALL]
    assert main(words) == 0
    return folder


def test_help_starts_within_two_seconds_and_teaches():
    began = time.monotonic()
    shown = subprocess.run(
        [sys.executable, "-m", "doxastic", "--help"], capture_output=True, text=True, check=True
    )
    assert time.monotonic() - began < 2.0
    assert "doxastic evaluate runs/noisy-cartpole --noise 0 0.1" in shown.stdout
    assert "presets: cartpole, noisy-cartpole" in shown.stdout


def test_help_does_not_import_torch():
    code = (
        "import sys; from doxastic.cli import main; main(['--help']); main(['--version']);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("words", [["train", "--help"], ["train", "--ppo.lerning-rate", "1"]])
def test_help_and_refusals_do_not_wait_for_what_trains_and_draws(words):
    code = (
        "import sys; from doxastic.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'matplotlib', 'scipy', 'stable_baselines3', 'tensordict', 'torchrl'}\n"
        "print('loaded:', *heavy & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines()[-1] == "loaded:"


def test_the_version_is_shown(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"doxastic {__version__}\n"


@pytest.mark.parametrize("command", ["train", "evaluate", "plot"])
def test_the_help_of_a_command_explains_its_options(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    expected = {
        "train": ["--ppo.learning-rate", "Environment steps of the whole run", "examples:"],
        "evaluate": ["--noise", "Episodes at each level"],
        "plot": ["--reference", "Lines to compare with in the noise sweep"],
    }
    assert all(text in shown for text in expected[command])


def test_options_override_the_preset(run):
    experiment = from_dict(RunFolder(run).config)
    assert (experiment.total_steps, experiment.env.num_envs) == (128, 4)
    assert experiment.env.noise == (0.0, 0.1, 0.2, 0.3)
    assert experiment.ppo.learning_rate == 1.5e-3


def test_training_shows_plain_lines_and_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--evaluation.noise", "0", "0.3"]) == 0
    shown = capsys.readouterr().out
    assert "training doxastic/CartPole-v0 into runs/noisy-cartpole" in shown
    assert "128 of 128 (100%)" in shown
    assert "95 % interval" in shown
    assert "runs/noisy-cartpole/evaluation.png" in shown


def test_an_environment_alone_starts_from_the_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "--env.id", "doxastic/SequentialTest-v0", "--env.kwargs", "variant=hard"]
    assert main([*words, "--quiet", *SMALL]) == 0
    experiment = from_dict(RunFolder("runs/doxastic-SequentialTest-v0").config)
    assert experiment.env.noise is None
    assert experiment.env.kwargs == {"variant": "hard"}


def test_evaluate_writes_table_json_and_figure(run, capsys):
    words = ["evaluate", str(run), "--noise", "0", "0.25", "--episodes", "8", "--which", "last"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "0.25" in shown and str(run / "evaluation.png") in shown
    data = json.loads((run / "evaluation.json").read_text())
    assert data["levels"] == [0.0, 0.25]
    assert len(data["returns"][0]) == 8


def test_plot_puts_several_runs_into_one_figure(run, tmp_path, capsys):
    words = ["plot", str(run), str(run), "--labels", "a", "b", "--reference", "optimum=200"]
    assert main([*words, "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split()[0] == str(tmp_path / "evaluation.png")
    assert (tmp_path / "evaluation.png").read_bytes()[:4] == b"\x89PNG"


def test_references_without_a_noise_sweep_are_refused(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "evaluation.json").unlink()
    assert main(["plot", str(copy), "--reference", "optimum=200"]) == 1
    assert f"no noise levels were tested in {copy}; run doxastic" in capsys.readouterr().err


def test_a_run_in_which_no_episode_ended_ends_well_and_has_nothing_to_draw(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["train", "--env.id", "Acrobot-v1", "--run-dir", str(folder), *SMALL]
    assert main(words) == 0
    assert not list(folder.glob("*.png"))
    assert (folder / "evaluation.json").exists()
    assert main(["plot", str(folder)]) == 1
    assert "there is nothing to draw" in capsys.readouterr().err


def test_resume_goes_on_with_more_steps(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    assert main(["train", "--resume", str(copy), "--total-steps", "192", "--quiet"]) == 0
    assert [record["steps"] for record in RunFolder(copy).metrics()] == [64, 128, 192]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["train", "noisy-cart"], "did you mean noisy-cartpole?"),
        (["train", "--ppo.lerning-rate", "1"], "did you mean --ppo.learning-rate?"),
        (["train", "--memory.kind", "grü"], "invalid choice 'grü'"),
        (["train", "--seed", "x"], "--seed"),
        (["train", "--ppo.learning-rate", "-1"], "ppo.learning_rate is -1.0; expected above 0"),
        (["train", "--env.kwargs", "variant"], "'variant' is not KEY=VALUE"),
        (["train", "--device", "gpu"], "device is 'gpu'"),
        (["train", "cartpole", "--resume", "x"], "both given"),
        (["evaluate"], "RUN"),
        (["evaluate", "absent"], "absent is not a run folder: it does not exist"),
        (["plot", "absent"], "absent is not a run folder"),
        (["train", "--resume", "absent"], "absent is not a run folder"),
    ],
)
def test_a_users_error_is_one_line_and_a_non_zero_exit_code(words, message, capsys):
    assert main(words) in (1, 2)
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert errors.startswith("doxastic: error: ")
    assert message in errors


def test_debug_shows_the_traceback():
    with pytest.raises(RuntimeError):
        main(["--debug", "evaluate", "absent"])


def test_a_defect_is_named_as_such(monkeypatch, capsys):
    from doxastic import commands

    def fail(words: list[str]) -> None:
        raise KeyError("x")

    monkeypatch.setattr(commands, "train", fail)
    assert main(["train"]) == 1
    assert "KeyError: 'x' (unexpected; run again with --debug" in capsys.readouterr().err


def test_the_package_runs_as_a_module():
    shown = subprocess.run(
        [sys.executable, "-m", "doxastic", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("doxastic ")
    assert Path(sys.executable).exists()
