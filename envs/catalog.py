"""What every registered task asks, how long it takes, and the best return that is known.

Returns are those of the tasks with their default arguments, over their own levels of noise. The
commands that compute them are in docs/envs, a page for each group; tests recompute those that
take seconds.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One row of the table."""

    group: str
    """Which page of docs/envs it stands on."""

    question: str
    """What an agent has to find out."""

    steps: int
    """Most steps of an episode."""

    reference: float | None
    """Best return known; None where none is."""

    source: str
    """Whose return that is."""


CATALOG: dict[str, Entry] = {
    "doxastic/SequentialTest-v0": Entry(
        "confidence", "answer now, or wait for more evidence?", 40, 0.897, "optimum"
    ),
    "doxastic/Tiger-v0": Entry(
        "confidence", "how often to listen before opening a door?", 30, 0.088, "optimum"
    ),
    "doxastic/LightDark-v0": Entry(
        "confidence", "stay in the dark, or go and look in the light?", 20, 0.682, "best known"
    ),
    "doxastic/NoisyBandit-v0": Entry(
        "confidence", "which arm, when some readings are unreliable?", 30, 0.723, "best known"
    ),
    "doxastic/CartPole-v0": Entry(
        "control", "balance a pole without seeing speeds", 200, 0.758, "best known"
    ),
    "doxastic/Pendulum-v0": Entry(
        "control", "swing up and hold without seeing speeds", 200, None, ""
    ),
    "doxastic/Acrobot-v0": Entry(
        "control", "swing up two links by the joint between them", 500, None, ""
    ),
    "doxastic/LinearGaussian-v0": Entry(
        "control", "hold a shaken mass on a spring", 200, -0.513, "optimum"
    ),
    "doxastic/TMaze-v0": Entry("memory", "to which side did the cue point?", 30, 1.0, "optimum"),
    "doxastic/RepeatFirst-v0": Entry(
        "memory", "which suit had the first card?", 51, 1.0, "optimum"
    ),
    "doxastic/RepeatPrevious-v0": Entry(
        "memory", "which suit was seen k - 1 steps ago?", 51, 1.0, "optimum"
    ),
    "doxastic/Autoencode-v0": Entry(
        "memory", "which suits were shown, from last to first?", 103, 1.0, "optimum"
    ),
    "doxastic/CountRecall-v0": Entry(
        "memory", "how often was this kind of card dealt?", 51, 1.0, "optimum"
    ),
    "doxastic/Copy-v0": Entry("memory", "which symbols were marked, in order?", 30, 1.0, "optimum"),
    "doxastic/HigherLower-v0": Entry(
        "games", "is the next card higher? count what is left", 51, 0.528, "optimum"
    ),
    "doxastic/Concentration-v0": Entry(
        "games", "where does the partner of this card lie?", 104, 0.814, "optimum"
    ),
    "doxastic/Battleship-v0": Entry("games", "where can the other ships still be?", 64, None, ""),
    "doxastic/MineSweeper-v0": Entry("games", "where can the mines be?", 14, None, ""),
}
