"""The pictures of an episode as a GIF, or a few of them as a strip."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from doxastic.envs.rendering import metadata
from doxastic.episode_figure import EpisodeFigure, Frame

# Frames per second at most: there is much to look at in each.
_FASTEST = 8
_LAST_SECONDS = 2.5
_STRIP_ROWS = 4
_COLORS = 256
# Bits of a colour's parts that do not count in the search for the nearest one.
_COARSE = 3


def gif(figure: EpisodeFigure) -> bytes:
    """Return all steps as a GIF that starts over; the last one stays for a while."""
    frames = [figure.frame(t) for t in range(len(figure.episode.moments))]
    palette = _palette(frames)
    images = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    rate = min(metadata(figure.episode.task)["render_fps"], _FASTEST)
    durations = [round(1000 / rate)] * (len(frames) - 1) + [round(1000 * _LAST_SECONDS)]
    file = io.BytesIO()
    style: dict[str, Any] = {"duration": durations, "loop": 0, "optimize": True}
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], **style)
    return file.getvalue()


def _palette(frames: Sequence[Frame]) -> Image.Image:
    """Return the commonest colours as the palette of all frames.

    One for all, so that nothing flickers; as they are, so that large areas keep their colour. Of
    colours that Pillow does not tell apart only the commonest is taken.
    """
    some = np.stack([frames[i] for i in sorted({0, len(frames) // 2, len(frames) - 1})])
    colors, counts = np.unique(some.reshape(-1, 3), axis=0, return_counts=True)
    ranked = colors[np.argsort(-counts, kind="stable")]
    _, first = np.unique(ranked >> _COARSE, axis=0, return_index=True)
    commonest = ranked[np.sort(first)[:_COLORS]]
    palette = Image.new("P", (1, 1))
    palette.putpalette(commonest.tobytes())
    return palette


def strip(figure: EpisodeFigure) -> bytes:
    """Return up to four steps, evenly spaced from first to last, below each other as a PNG."""
    count = len(figure.episode.moments)
    chosen = np.linspace(0, count - 1, min(_STRIP_ROWS, count)).round().astype(int)
    rows = np.concatenate([figure.frame(int(t)) for t in chosen])
    file = io.BytesIO()
    Image.fromarray(rows).save(file, "PNG", optimize=True)
    return file.getvalue()
