"""What is built, installed and declared is what stands in the folders."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata, resources
from pathlib import Path

import pytest
import yaml

import doxastic

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
PACKAGE_DIR = PROJECT["tool"]["setuptools"]["package-dir"]
# The folders beside doxastic/; its own subpackages are below it.
FOLDERS = sorted(name.removeprefix("doxastic.") for name in PACKAGE_DIR if name.count(".") == 1)

# What tests use where it is installed, and skip without: too large for every test environment.
ONLY_IF_INSTALLED = {"lm-eval"}

# Import names whose distribution has another name; llvmlite comes with numba, which pins it.
DISTRIBUTION = {"yaml": "pyyaml", "llvmlite": "numba", "PIL": "pillow"}


def folder_of(package: str) -> Path:
    """Return the folder a package is built from, following the map in pyproject.toml."""
    parts = package.split(".")
    for depth in range(len(parts), 0, -1):
        mapped = PACKAGE_DIR.get(".".join(parts[:depth]))
        if mapped is not None:
            return ROOT.joinpath(mapped, *parts[depth:])
    return ROOT.joinpath(*parts)


def source_files() -> list[Path]:
    """Return every Python file of the package under its real path."""
    return sorted(
        file for package in PACKAGES for file in folder_of(package).glob("*.py") if file.is_file()
    )


def requirement_names(requirements: list[str]) -> set[str]:
    names = (re.match(r"[A-Za-z0-9._-]+", text) for text in requirements)
    return {re.sub(r"[-_.]+", "-", name.group()).lower() for name in names if name}


def third_party_imports(files: list[Path]) -> set[str]:
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    found -= set(sys.stdlib_module_names) | {"doxastic"}
    return {DISTRIBUTION.get(name, name.replace("_", "-")) for name in found}


def test_every_folder_with_an_init_is_in_the_list_of_packages() -> None:
    found = set()
    for top in ("doxastic", *FOLDERS):
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            # rglob does not enter the links, so each folder is seen once, under its real path.
            found.add(".".join(parts if parts[0] == "doxastic" else ("doxastic", *parts)))
    assert found == set(PACKAGES)


def test_every_folder_of_python_files_has_an_init() -> None:
    folders = {file.parent for top in FOLDERS for file in (ROOT / top).rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_link_for_tools_is_relative_and_leads_to_the_folder(folder: str) -> None:
    link = ROOT / "doxastic" / folder
    assert link.is_symlink()
    assert os.readlink(link) == f"../{folder}"
    assert link.resolve() == ROOT / folder


def test_no_other_link_stands_in_the_package() -> None:
    assert {p.name for p in (ROOT / "doxastic").iterdir() if p.is_symlink()} == set(FOLDERS)


def test_versions_agree() -> None:
    version = PROJECT["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, flags=re.MULTILINE)
    assert doxastic.__version__ == version
    assert str(citation["version"]) == version
    assert newest is not None
    assert newest.group(1) == version


def test_the_installed_version_is_the_version_of_the_source() -> None:
    assert metadata.version("doxastic") == PROJECT["project"]["version"], (
        "the installed metadata is stale; run pip install -e . again"
    )


def test_presets_are_package_data() -> None:
    on_disk = {file.name for file in (ROOT / "configs").glob("*.yaml")}
    packaged = {file.name for file in resources.files("doxastic.configs").iterdir()}
    assert on_disk
    assert on_disk <= packaged


def test_the_package_is_marked_as_typed() -> None:
    assert (ROOT / "doxastic" / "py.typed").is_file()


def test_every_import_of_the_package_is_a_declared_dependency() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    declared = requirement_names(PROJECT["project"]["dependencies"])
    declared |= {
        name
        for extra in extras
        if extra not in ("test", "dev")
        for name in requirement_names(extras[extra])
    }
    assert third_party_imports(source_files()) <= declared


def test_every_import_of_the_tests_is_installed_by_the_test_extra() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    declared = requirement_names(
        PROJECT["project"]["dependencies"] + extras["popgym"] + extras["minigrid"] + extras["test"]
    )
    files = sorted((ROOT / "tests").rglob("*.py"))
    # The tests' own modules, and those of the benchmarks, which some tests put within reach.
    benchmarks = (ROOT / "benchmarks").iterdir()
    helpers = {path.stem.replace("_", "-") for path in (*files, *benchmarks)}
    assert third_party_imports(files) - helpers - ONLY_IF_INSTALLED <= declared


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Build a wheel from a copy of the sources; return the names of the files in it."""
    work = tmp_path_factory.mktemp("wheel")
    tree = work / "tree"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("doxastic", *FOLDERS):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--quiet"]
    run = subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", str(work), str(tree)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    (wheel,) = work.glob("doxastic-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_a_wheel_contains_every_module_and_preset(wheel_names: set[str]) -> None:
    expected = {"doxastic/py.typed"}
    for package in PACKAGES:
        inside = package.replace(".", "/")
        files = [*folder_of(package).glob("*.py"), *folder_of(package).glob("*.yaml")]
        expected |= {f"{inside}/{file.name}" for file in files}
    assert expected <= wheel_names


def test_a_wheel_puts_nothing_outside_its_own_name(wheel_names: set[str]) -> None:
    tops = {name.split("/")[0] for name in wheel_names}
    assert tops == {"doxastic", f"doxastic-{doxastic.__version__}.dist-info"}


def test_a_wheel_carries_the_licence(wheel_names: set[str]) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in wheel_names)
