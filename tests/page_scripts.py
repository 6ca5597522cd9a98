"""The scripts of a page of docs, run by the tests with small sizes."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def scripts_of(page: str) -> dict[str, str]:
    """Return the marked scripts of a page of docs/, by name."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- script: (\w+) -->\n```python\n(.*?)^```$", text, re.M | re.S))


def execute(script: str, sizes: str | None = None) -> None:
    """Run a script, its line of sizes replaced by `sizes`."""
    if sizes is not None:
        first = sizes.partition(",")[0].partition(" ")[0]
        script, replaced = re.subn(rf"^{first}\b.*$", sizes, script, flags=re.M)
        assert replaced == 1
    exec(compile(script, "script", "exec"), {"__name__": "__main__"})


def assert_short(script: str) -> None:
    """Assert that a script has fewer than sixty lines, none above 100 characters."""
    lines = script.splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 100
