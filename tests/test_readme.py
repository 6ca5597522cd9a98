"""What README.md shows runs, and what it points to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def marked_block(mark: str) -> str:
    """Return the content of the fenced block that follows `<!-- mark -->`."""
    found = re.search(rf"^<!-- {mark} -->\n```\w*\n(.*?)^```$", README, flags=re.M | re.S)
    assert found is not None, f"README.md has no block marked {mark!r}"
    return found.group(1)


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(marked_block("example"), "README.md", "exec"), {"__name__": "__main__"})
    assert re.search(r"^noise 0\.2: return \d", capsys.readouterr().out, flags=re.M)


def test_the_python_example_has_twelve_lines_of_code() -> None:
    assert len([line for line in marked_block("example").splitlines() if line.strip()]) == 12


@pytest.mark.parametrize("mark", ["command: train", "command: test"])
def test_a_command_is_one_line(mark: str) -> None:
    assert len(marked_block(mark).splitlines()) == 1


PAGES = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    "kernels/README.md",
]
PAGES += [str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES)
def test_local_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    missing = [target for target in targets if not ((ROOT / page).parent / target).exists()]
    assert not missing, f"{page} points to files that do not exist: {missing}"


def test_every_folder_of_the_package_is_on_the_map() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert {folder for folder in folders if f"| `{folder}/` |" not in README} == set()
