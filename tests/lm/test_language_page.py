"""The commands and scripts of docs/language.md run, in the order in which they stand there."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from doxastic.configuration import to_dict
from doxastic.lm.commands import HELP, lm
from doxastic.lm.experiment import DataConfig, Experiment
from doxastic.lm.methods import METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "language.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- (\w+): ([\w.]+) -->\n```\w+\n(.*?)^```$", PAGE, re.M | re.S)
SCRIPTS = {name: text for kind, name, text in BLOCKS if kind in ("script", "file")}
# What makes a command short enough for a test; nothing else of it is changed.
TRAINING = (
    "--training.updates 2 --training.evaluation-batches 1 --data.batch-size 4 --data.block 64 "
    "--threads 1 --quiet"
)
SHRUNK = {
    "pretrain": f"{TRAINING} --samples.updates 0",
    "finetune": TRAINING,
    "generate": "--max-new-tokens 4",
    "chat": "--max-new-tokens 4",
    "evaluate": "--quiet",
}
MODULE = '''\
"""Functions, and what they say about themselves."""


def {name}(value):
    """Return {name} of the value."""
    return value
'''


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A small folder in place of Python's library, laid out like it."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "json").mkdir()
    (folder / "json" / "decoder.py").write_text(MODULE.format(name="decode"))
    for number in range(12):
        functions = "\n\n".join(MODULE.format(name=f"part_{number}_{i}") for i in range(4))
        (folder / f"module_{number}.py").write_text(functions)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("page")


def _doxastic(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one line with `doxastic lm`, a message before its pipe on standard input."""
    said, _, command = line.rpartition(" | ")
    if said:
        shown = subprocess.run(["bash", "-c", said], capture_output=True, text=True, check=True)
        monkeypatch.setattr(sys, "stdin", io.StringIO(shown.stdout))
    words = shlex.split(os.path.expandvars(command))
    assert words[:2] == ["doxastic", "lm"]
    # The last one of an option given twice is the one that counts.
    lm([*words[2:], *SHRUNK.get(words[2], "").split()])


def _library_found_by(line: str) -> Path:
    """Return what the line of a shell, with this Python first in its path, makes of LIB."""
    own = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shown = subprocess.run(
        ["bash", "-c", f'{line}; echo "$LIB"'],
        capture_output=True, text=True, check=True, env={**os.environ, "PATH": own},
    )  # fmt: skip
    return Path(shown.stdout.strip())


def _script(name: str) -> None:
    script = SCRIPTS[name]
    if name == "api":
        script, replaced = re.subn(r"^UPDATES = \d+$", "UPDATES = 2", script, flags=re.M)
        assert replaced == 1
    exec(compile(script, name, "exec"), {"__name__": "__main__"})


def test_the_page_runs_from_its_beginning_to_its_end(folder, library, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for kind, name, text in BLOCKS:
        if kind == "script":
            _script(name)
        elif kind == "file":
            Path(name).write_text(text)
        for line in text.splitlines() if kind == "commands" else []:
            if line.startswith("LIB="):
                found = _library_found_by(line)
                assert (found / "os.py").is_file() and (found / "json").is_dir()
                monkeypatch.setenv("LIB", str(library))
            elif line.startswith("python "):
                _script(line.split()[1])
            elif "doxastic lm" in line:
                _doxastic(line, monkeypatch)
            else:
                subprocess.run(["bash", "-c", line], check=True)
    output = capsys.readouterr().out
    assert output.count("nats_per_token") == 4
    assert output.count("User: What does copy do?") == 3
    for made in ("answers.pth", "further.pth", "runs/lora/adapter", "start.safetensors"):
        assert (folder / made).exists(), made


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_have_fewer_than_sixty_lines_and_short_ones(name):
    lines = SCRIPTS[name].splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 100


def test_the_tables_have_every_command_method_and_kind_of_batches():
    rows = set(re.findall(r"^\| `([\w-]+)", PAGE, re.M))
    commands = set(re.findall(r"^  ([a-z]+)  ?[A-Z\[-]", HELP, re.M))
    batches = set(get_args(get_type_hints(DataConfig, include_extras=True)["batches"])) - {"auto"}
    assert {"pretrain", "finetune", "evaluate", "generate", "chat", "convert", "info"} == commands
    assert rows >= commands | set(METHODS) | batches


def test_the_options_it_names_are_there():
    options = set(re.findall(r"--((?:adaptation|data|model|samples|training)\.[\w.-]+)", PAGE))
    assert len(options) > 5
    for option in options:
        section = to_dict(Experiment())
        for key in option.replace("-", "_").split("."):
            assert key in section, option
            section = section[key]
