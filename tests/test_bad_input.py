"""What a user can do wrong, and what can go wrong underneath: one clear line each.

Every case goes through the command line, must end with a non-zero exit code and a single line
that says what, where and what to do, and must leave the run so far loadable.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import doxastic
from doxastic.cli import main
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
    "--checkpoint-updates": 1,
    "--evaluation.noise": 0,
}
SMALL = [str(word) for option in _OPTIONS.items() for word in option]


class _Fragile(gymnasium.Env):
    """A walk that misbehaves after a number of steps of one environment."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, fault: str, after: int = 40) -> None:
        self._fault, self._after, self._steps = fault, after, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self._fault == "reset":
            raise ZeroDivisionError("the wheel never was on")
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self._steps += 1
        observation, reward = np.full(2, 0.1 * action, np.float32), 1.0
        if self._steps > self._after:
            if self._fault == "raise":
                raise ZeroDivisionError("the wheel came off")
            if self._fault == "observation":
                observation[1] = np.nan
            if self._fault == "reward":
                reward = float("nan")
        return observation, reward, self._steps % 10 == 0, False, {}


class _Worded(gymnasium.Env):
    """Observations that no encoder takes."""

    observation_space = spaces.Sequence(spaces.Discrete(2))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return (), {}


class _Counted(gymnasium.Env):
    """Observations that no noise can be added to."""

    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}


for _name, _class in (("Fragile", _Fragile), ("Worded", _Worded), ("Counted", _Counted)):
    gymnasium.register(f"test/{_name}-v0", entry_point=_class)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "agent"
    words = ["train", "--run-dir", str(folder), "--total-steps", "128", "--quiet", *SMALL]
    assert main(words) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "agent")


@pytest.fixture
def refused(capsys):
    """Return a function that runs a command, requires one line of error, and returns it."""

    def run(*words: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) in (1, 2)
        errors = capsys.readouterr().err
        assert errors.startswith("doxastic: error: ")
        assert errors.count("\n") == 1, errors
        return errors

    return run


def _train(folder: Path, *words: str) -> list[str]:
    return ["train", "--run-dir", str(folder), "--total-steps", "640", "--quiet", *SMALL, *words]


def test_an_unknown_preset_names_the_nearest(refused):
    assert "did you mean noisy-cartpole?" in refused("train", "noisy-cartpol")


def test_an_unknown_key_in_a_file_names_the_nearest(refused, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("memory: {readuot: none}\n")
    message = refused("train", path)
    assert "mine.yaml: unknown key memory.readuot; did you mean memory.readout?" in message


def test_an_unknown_environment_names_the_nearest_and_leaves_no_folder(refused, tmp_path):
    message = refused(*_train(tmp_path / "run", "--env.id", "CartPoll-v1"))
    assert "'CartPoll-v1'" in message and "CartPole-v1" in message
    assert not (tmp_path / "run").exists()


def test_an_unknown_device_names_those_present(refused):
    assert re.search(r"device is 'cuda:7'.* it has cpu", refused("train", "--device", "cuda:7"))


def test_a_space_that_cannot_be_encoded_is_named(refused, tmp_path):
    words = ["--env.id", "test/Worded-v0", "--env.noise", "None", "--env.no-previous-action"]
    assert "Sequence" in refused(*_train(tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


def test_noise_for_an_environment_that_cannot_take_it_is_refused(refused, tmp_path):
    words = ["--env.id", "test/Counted-v0", "--env.noise", "0.1"]
    assert "Discrete(3)" in refused(*_train(tmp_path / "run", *words))


def test_levels_of_the_evaluation_are_checked_before_the_training(refused, tmp_path):
    words = ["--env.noise-kind", "delay", "--env.noise", "0", "1", "--evaluation.noise", "0", "0.1"]
    message = refused(*_train(tmp_path / "run", *words))
    assert "evaluation.noise is (0.0, 0.1): noise is (0.1,); every level is a number" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seed", "-1"], "seed is -1; expected at least 0"),
        (["--noise"], "the noise levels are empty; expected at least one"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(refused, run, words, expected):
    assert expected in refused("evaluate", run, *words)


def test_an_argument_the_environment_does_not_take_is_named(refused, tmp_path):
    assert "colour" in refused(*_train(tmp_path / "run", "--env.kwargs", "colour=red"))


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_truncated_checkpoint_is_refused(refused, run, which):
    path = RunFolder(run).checkpoint_path(which) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert "weights.safetensors is damaged: it has 100 bytes" in refused(
        "evaluate", run, "--which", which
    )


def test_a_checkpoint_of_another_version_is_refused(refused, run):
    path = RunFolder(run).checkpoint_path("best") / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    message = refused("evaluate", run)
    assert "has checkpoint format 2; this doxastic" in message and "reads format 1" in message


@pytest.mark.parametrize("command", [["evaluate"], ["train", "--quiet", "--resume"]])
def test_a_checkpoint_for_another_observation_space_is_refused(refused, run, command):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("previous_action: true", "previous_action: false"))
    message = refused(*command, run)
    assert "observation space is Box" in message and "was trained with Box" in message


def test_a_configuration_that_does_not_fit_the_checkpoint_is_refused(refused, run):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("hidden_size: 16", "hidden_size: 8"))
    assert "the checkpoint does not fit" in refused("evaluate", run)


@pytest.mark.parametrize(
    ("edit", "words", "expected"),
    [
        (("hidden_size: 16", "hidden_size: 8"), [], "the checkpoint does not fit"),
        (
            ("noise_kind: gaussian", "noise_kind: flicker"),
            ["--evaluation.noise", "2"],
            "evaluation.noise is (2.0,): noise is (2.0,); every level is a probability",
        ),
        (("", ""), ["--ppo.privileged-critic"], "ppo.privileged_critic differs from"),
    ],
)
def test_a_run_that_cannot_go_on_is_left_as_it_was(refused, run, edit, words, expected):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(*edit))
    before = _contents(run)
    checkpoint = run / "checkpoints" / "step-64"
    words = ["--resume", checkpoint, "--total-steps", "192", *words]
    assert expected in refused("train", "--quiet", *words)
    assert _contents(run) == before


def _contents(run: Path) -> dict[Path, bytes]:
    files = (path for path in run.rglob("*") if path.is_file() and path.name != "run.lock")
    return {path: path.read_bytes() for path in files}


def test_a_folder_in_use_is_refused_with_the_process(refused, run):
    with RunFolder(run) as other:
        other.lock()
        message = refused("train", "--quiet", "--resume", run)
    assert f"{run} is in use by process {os.getpid()}; wait" in message


def test_a_folder_with_other_content_is_refused(refused, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty; choose another --run-dir" in refused(*_train(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(refused, tmp_path):
    tmp_path.chmod(0o500)
    assert "Permission denied; change its permissions" in refused(*_train(tmp_path / "run"))


def test_a_refused_folder_is_one_clear_line(refused, tmp_path, monkeypatch):
    def refuse(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    message = refused(*_train(tmp_path / "run"))
    assert "run: Permission denied; change its permissions, or choose a folder" in message


@pytest.mark.parametrize("where", ["checkpoint", "metrics"])
def test_a_disk_that_fills_up_stops_the_run_and_keeps_it_loadable(
    refused, tmp_path, monkeypatch, where
):
    folder = tmp_path / "run"
    owner, name = {
        "checkpoint": (os, "fsync"),
        "metrics": (RunFolder, "_log_events"),
    }[where]
    original = getattr(owner, name)

    def refuse_when_full(*arguments: object) -> None:
        index = folder / "checkpoints" / "index.json"
        if index.exists() and "step-64" in index.read_text():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(*arguments)

    monkeypatch.setattr(owner, name, refuse_when_full)
    message = refused(*_train(folder))
    assert "No space left on device; free some space" in message
    assert f"saved after update 1; continue with: doxastic train --resume {folder}" in message
    monkeypatch.undo()
    assert doxastic.load(folder, "last")
    assert main(["train", "--quiet", "--resume", str(folder), "--total-steps", "192"]) == 0


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit on file sizes here")
def test_a_file_that_may_not_grow_is_one_clear_line(tmp_path):
    code = (
        "import resource, signal, sys\n"
        "from doxastic.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = _train(tmp_path / "run")
    stopped = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert stopped.returncode == 1
    assert "File too large" in stopped.stderr
    assert "Traceback" not in stopped.stderr


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("raise", "raised ZeroDivisionError at step 40 (step 8 of the segment): the wheel"),
        ("observation", "gave an observation that is not finite"),
        ("reward", "gave a reward that is not finite"),
    ],
)
def test_an_environment_that_fails_in_training_keeps_the_run_loadable(
    refused, tmp_path, fault, expected
):
    folder = tmp_path / "run"
    words = ["--env.id", "test/Fragile-v0", "--env.noise", "None", "--env.kwargs"]
    message = refused(*_train(folder, *words, f"fault={fault}"))
    assert expected in message
    assert f"saved after update 2; continue with: doxastic train --resume {folder}" in message
    assert doxastic.load(folder, "last")
    assert [record["update"] for record in RunFolder(folder).metrics()] == [1, 2]


def test_diverging_training_names_the_update_and_keeps_the_last_good_checkpoint(
    refused, tmp_path, monkeypatch
):
    from doxastic.agents.ppo import PPO

    update = PPO.update

    def update_from_bad_weights(self: PPO) -> dict[str, float]:
        if self.updates == 2:
            self.policy.value_head.weight.data.fill_(float("nan"))
        return update(self)

    monkeypatch.setattr(PPO, "update", update_from_bad_weights)
    folder = tmp_path / "run"
    message = refused(*_train(folder))
    assert re.search(r"[Uu]pdate 3", message)
    assert "saved after update 2" in message
    monkeypatch.undo()
    agent = doxastic.load(folder, "last")
    assert all(bool(tensor.isfinite().all()) for tensor in agent.policy.state_dict().values())


def test_a_failure_in_the_first_update_still_leaves_a_loadable_run(refused, tmp_path):
    words = ["--env.id", "test/Fragile-v0", "--env.noise", "None"]
    folder = tmp_path / "run"
    refused(*_train(folder, *words, "--env.kwargs", "fault=raise", "after=3"))
    assert doxastic.load(folder)


def test_an_environment_that_fails_in_its_first_reset_is_named(refused, tmp_path):
    words = ["--env.id", "test/Fragile-v0", "--env.noise", "None", "--env.kwargs", "fault=reset"]
    message = refused(*_train(tmp_path / "run", *words))
    assert "test/Fragile-v0 raised ZeroDivisionError at reset: the wheel never was on" in message
