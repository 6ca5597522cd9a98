"""Progress in a terminal and elsewhere."""

from __future__ import annotations

import io
import math
import re

import pytest

from doxastic import progress
from doxastic.progress import Display, clock, make_reporter, number


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_stream_that_is_no_terminal_gets_plain_lines_with_return_speed_and_time_left(
    monkeypatch,
):
    times = iter([0.0, 10.0, 10.0, 10.0, 12.0, 12.0, 20.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    stream = io.StringIO()
    reporter = make_reporter(4000, 0, stream=stream)
    reporter.update(1000, {"return_mean": 12.5})
    reporter.update(1200, {"return_mean": 13.5})
    reporter.close()
    first, last = stream.getvalue().splitlines()
    assert "1,000 of 4,000 ( 25%)" in first
    assert "12.500" in first and "100 steps/s" in first and "0:30 left" in first
    assert "1,200" in last
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_a_bar():
    stream = _Terminal()
    reporter = make_reporter(4000, 1000, stream=stream)
    reporter.update(2000, {"return_mean": 0.5})
    reporter.close()
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", stream.getvalue())
    assert "2,000 return 0.500" in shown


def test_another_display_shows_its_own_metric_and_units():
    display = Display("update", "loss", "loss", "tokens", units_per_step=100)
    for stream in (io.StringIO(), _Terminal()):
        reporter = make_reporter(50, 0, stream=stream, display=display)
        reporter.update(5, {"loss": 1.5})
        reporter.close()
        shown = re.sub(r"\x1b\[[\d;?]*\w", "", stream.getvalue())
        assert re.search(r"loss +1\.500 +[\d,]{3,} tokens/s", shown), shown
    assert shown and "return" not in shown


def test_silence_writes_nothing(capsys):
    reporter = make_reporter(10, shown=False)
    reporter.update(5, {})
    reporter.close()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "0:05"), (65, "1:05"), (3700, "1:01:40"), (math.inf, "-:--")]
)
def test_durations_are_read_as_on_a_clock(seconds, text):
    assert clock(seconds) == text


def test_a_return_not_known_yet_is_a_dash():
    assert [number(None), number(math.nan), number(0.25)] == ["-", "-", "0.250"]
