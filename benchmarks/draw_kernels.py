"""The figure of `kernels-cuda.json`: WKV-7 against fla, and what fusing its neighbours gains.

python benchmarks/draw_kernels.py benchmarks/results/kernels-cuda.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu.cases import BOTH, COMPOSED, FORWARD, OURS, OURS_RESETS, PASSES
from gpu.targets import fastest_fla
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from peers import fla_wkv7

from doxastic.plotting import PALETTE

_INK, _FAINT = "#333333", "#8A8A8A"
# Colour, marker and face of every contender; hollow is a variant of the filled one.
_STYLES = {
    OURS: (PALETTE[0], "o", PALETTE[0]),
    OURS_RESETS: (PALETTE[0], "o", "white"),
    fla_wkv7.CHUNK_64: (PALETTE[1], "s", PALETTE[1]),
    fla_wkv7.CHUNK_64_STORED: (PALETTE[1], "s", "white"),
    fla_wkv7.CHUNK_16: (PALETTE[2], "^", PALETTE[2]),
    fla_wkv7.RECURRENT: (PALETTE[3], "v", PALETTE[3]),
}
_FLOOR = "least bytes at the speed of a copy"
# Inches of a row of times, and of gains.
_ROW, _NARROW_ROW = 0.4, 0.24
_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 10.5, "color": _INK}

Entry = Mapping[str, Any]


def draw_kernels(data: Mapping[str, Any]) -> Figure:
    """Return the figure of a file of results.

    Above, per dtype and pass, milliseconds of every contender at every shape of WKV-7; at the right
    how many times longer fla's fastest takes. Below, how many times longer PyTorch's operations
    take than the fused ones.

    Raises:
        ValueError: There is no measured case.
    """
    cases = [entry for entry in data["results"].get("cases", []) if entry["passes"]]
    if not cases:
        raise ValueError("there is no measured case to draw; run kernels.py --device cuda first")
    dtypes = [x for x in ("bfloat16", "float32") if any(e["dtype"] == x for e in cases)]
    panels = [x for x in (*PASSES, COMPOSED) if any(_entries(cases, y, x) for y in dtypes)]
    heights = [
        0.3 + max(len(_entries(cases, y, x)) for y in dtypes)
        * (_NARROW_ROW if x == COMPOSED else _ROW)
        for x in panels
    ]  # fmt: skip
    figure = Figure(
        figsize=(2.0 + 5.0 * len(dtypes), 1.3 + sum(height + 0.75 for height in heights)),
        dpi=160, layout="constrained", facecolor="white",
    )  # fmt: skip
    grid = figure.subplots(len(panels), len(dtypes), squeeze=False, height_ratios=heights)
    for panel, line in zip(panels, grid, strict=True):
        shown = [_entries(cases, dtype, panel) for dtype in dtypes]
        for dtype, entries, axes in zip(dtypes, shown, line, strict=True):
            _draw_panel(axes, entries, panel, dtype)
            if axes is not line[0] and _names(entries) == _names(shown[0]):
                axes.tick_params(axis="y", labelleft=False)
    title = f"WKV-7 on {data['device']}, shapes (B, T, H, K)" + (
        " (quick run)" if data["quick"] else ""
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=_INK)
    _draw_legend(figure, cases)
    return figure


def _entries(cases: Iterable[Entry], dtype: str, panel: str) -> list[Entry]:
    """Return what one panel shows, the first case on top."""
    if panel == COMPOSED:
        return [
            entry for entry in cases
            if entry["dtype"] == dtype and COMPOSED in entry["passes"][FORWARD]["arms"]
        ]  # fmt: skip
    return [e for e in cases if e["dtype"] == dtype and e["operation"] == "wkv7" and e["passes"]]


def _names(entries: Sequence[Entry]) -> list[str]:
    """Return the shapes, the first of each operation with the operation's name before it."""
    names, operation = [], "wkv7"
    for entry in entries:
        shape = ", ".join(map(str, entry["shape"]))
        is_first, operation = entry["operation"] != operation, entry["operation"]
        names.append(f"{operation}    {shape}" if is_first else shape)
    return names


def _draw_panel(axes: Axes, entries: Sequence[Entry], panel: str, dtype: str) -> None:
    _prepare(axes, _names(entries))
    if panel == COMPOSED:
        axes.set_title(f"PyTorch's operations / fused, {dtype}", **_TITLE)
        axes.axvline(1.0, color=_FAINT, linewidth=1.0, zorder=1)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.set_xlabel("times as long")
    else:
        axes.set_title(f"{panel[0].upper()}{panel[1:]}, {dtype}", **_TITLE)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.set_xlabel("milliseconds, median")
        if any(fastest_fla(entry["passes"][panel]["arms"]) for entry in entries):
            _write_right(axes, -0.75, "fla / ours", _FAINT)
    for y, entry in enumerate(entries):
        if panel == COMPOSED:
            _draw_gain(axes, y, entry)
        else:
            _draw_times(axes, y, entry["passes"][panel])


def _prepare(axes: Axes, names: Sequence[str]) -> None:
    """Give a panel its rows and a logarithmic axis."""
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.grid(axis="both", color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_INK, length=0, pad=5)
    axes.tick_params(axis="x", labelsize=8.5)
    axes.xaxis.label.set_color(_INK)
    axes.xaxis.label.set_fontsize(9)


def _draw_times(axes: Axes, y: int, measured: Mapping[str, Any]) -> None:
    """Draw one shape: a marker per contender, the floor, and the ratio to fla at the right."""
    arms = measured["arms"]
    floor = measured["least_bytes"] / measured["copy_gb_per_second"] / 1e6
    axes.plot([floor] * 2, [y - 0.3, y + 0.3], color="black", linewidth=1.6, zorder=2)
    for name, numbers in arms.items():
        _mark(axes, numbers["ms_median"], y, _STYLES[name], zorder=5 if name == OURS else 4)
    if fla := fastest_fla(arms):
        _write_right(axes, y, f"{arms[fla]['times_ours']:.1f}x", _INK)


def _write_right(axes: Axes, y: float, text: str, color: str) -> None:
    axes.annotate(
        text, xy=(1.0, y), xycoords=("axes fraction", "data"), xytext=(4, 0),
        textcoords="offset points", va="center", fontsize=8.5, color=color,
    )  # fmt: skip


def _draw_gain(axes: Axes, y: int, entry: Entry) -> None:
    """Draw one operation: how many times longer the composed form takes, in both passes."""
    for name, measured in entry["passes"].items():
        face = PALETTE[0] if name == FORWARD else "white"
        times = measured["arms"][COMPOSED]["times_ours"]
        _mark(axes, times, y, (PALETTE[0], "D", face), zorder=4)


def _mark(axes: Axes, x: float, y: int, style: tuple[str, str, str], zorder: int) -> None:
    color, marker, face = style
    axes.plot(
        x, y, linestyle="none", marker=marker, markersize=6.5, markeredgecolor=color,
        markerfacecolor=face, markeredgewidth=1.5, zorder=zorder,
    )  # fmt: skip


def _draw_legend(figure: Figure, cases: Iterable[Entry]) -> None:
    """Name what is drawn, below all panels."""
    drawn = {arm for entry in cases for x in entry["passes"].values() for arm in x["arms"]}
    styles = {name: style for name, style in _STYLES.items() if name in drawn}
    if COMPOSED in drawn:
        styles |= {f"gain, {FORWARD}": (PALETTE[0], "D", PALETTE[0])}
        styles |= {f"gain, {BOTH}": (PALETTE[0], "D", "white")}
    handles = [
        Line2D(
            [], [], linestyle="none", marker=marker, markersize=6.5, markeredgecolor=color,
            markerfacecolor=face, markeredgewidth=1.5, label=name,
        )
        for name, (color, marker, face) in styles.items()
    ]  # fmt: skip
    handles.append(
        Line2D([], [], linestyle="none", marker="|", markersize=11, markeredgewidth=1.6,
               color="black", label=_FLOOR)
    )  # fmt: skip
    figure.legend(
        handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=9,
        labelcolor=_INK,
    )  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/draw_kernels.py RESULTS.json")
    path = Path(sys.argv[1])
    results = json.loads(path.read_text(encoding="utf-8"))
    draw_kernels(results).savefig(path.with_suffix(".png"))
