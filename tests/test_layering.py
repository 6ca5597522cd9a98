"""Imports run one way: kernels <- memory <- {agents, language}; envs leans on nothing here."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("agents", "configs", "envs", "kernels", "language", "memory")

# What the files of a folder may import of this project, beside their own folder.
ALLOWED = {
    "kernels": set(),
    "memory": {"kernels"},
    "envs": set(),
    "configs": set(),
    "agents": {"kernels", "memory", "envs"},
    "language": {"kernels", "memory"},
}
TORCH_ALONE = ("kernels", "memory", "language")
# What is nothing without numba or Triton; the backend that needs it imports it on first use.
COMPILED = ("kernels/cpu/*.py", "kernels/triton/*.py")
NOT_TORCH = (
    "array_api_compat",
    "gymnasium",
    "llvmlite",
    "matplotlib",
    "minigrid",
    "numba",
    "popgym",
    "rich",
    "safetensors",
    "sb3_contrib",
    "scipy",
    "stable_baselines3",
    "tensorboard",
    "tensordict",
    "torchrl",
    "transformers",
    "triton",
    "tyro",
    "yaml",
)


def imported_names(source: str) -> Iterator[str]:
    """Yield the dotted name of everything imported anywhere in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level
            else:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offences(folder: str, source: str) -> list[str]:
    """Return the imports that a file of this folder must not have."""
    found = []
    for name in imported_names(source):
        top, _, rest = name.partition(".")
        room = rest.partition(".")[0]
        foreign = top == "doxastic" and room not in ALLOWED[folder] | {folder}
        if foreign or top in FOLDERS or name.startswith("."):
            found.append(name)
    return found


def test_the_rule_covers_every_folder_of_the_package() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"doxastic", "tests"} == set(FOLDERS) == set(ALLOWED)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("kernels", "from doxastic.memory import core"),
        ("memory", "import doxastic.agents.policy"),
        ("memory", "from doxastic import experiment"),
        ("envs", "def late():\n    from doxastic.kernels.wkv7 import wkv7"),
        ("language", "from doxastic.agents.policy import ActorCritic"),
        ("agents", "from memory.core import Core"),
        ("agents", "from .policy import ActorCritic"),
    ],
)
def test_the_rule_bites(folder: str, source: str) -> None:
    assert offences(folder, source)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_what_stands_below_it(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    found = {
        str(file.relative_to(ROOT)): wrong
        for file in files
        if (wrong := offences(folder, file.read_text(encoding="utf-8")))
    }
    assert files, f"{folder}/ holds no source"
    assert not found, f"{folder}/ may import {sorted(ALLOWED[folder])} of this project: {found}"


def module_name(file: Path) -> str:
    """Return the dotted name of a source file, `doxastic.kernels.wkv7`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(["doxastic", *parts]).removesuffix(".__init__")


def needs_a_compiler(file: Path) -> bool:
    return any(file.relative_to(ROOT).match(pattern) for pattern in COMPILED)


@pytest.mark.parametrize("folder", TORCH_ALONE)
def test_a_folder_imports_with_torch_alone(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    modules = [module_name(file) for file in files if not needs_a_compiler(file)]
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED_IMPORT.format(blocked=set(NOT_TORCH), modules=modules)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr


def test_importing_the_umbrella_loads_nothing_heavy() -> None:
    code = "import sys, doxastic; sys.exit(','.join({'numpy', 'torch', 'yaml'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stderr.strip() == ""


BLOCKED_IMPORT = """
import importlib, sys
import torch

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)

sys.meta_path.insert(0, Absent())
for module in {modules}:
    importlib.import_module(module)
"""
