"""Symbol noise: what observations of discrete symbols have in place of Gaussian noise."""

from __future__ import annotations

from collections.abc import Sequence

from doxastic.envs.batched import Array, Random, namespace
from doxastic.envs.noise import noise_levels


def symbol_noise_levels(noise: float | Sequence[float]) -> tuple[float, ...]:
    """Return the probabilities of symbol noise as a tuple.

    Args:
        noise: A probability, or several of which one is drawn for each episode.

    Raises:
        ValueError: If there is none, or one is outside [0, 1].
    """
    # Bounded as a flicker is, the probability that an observation is lost.
    return noise_levels(noise, "flicker")


def noisy_symbols(symbols: Array, choices: int, level: Array, random: Random) -> Array:
    """Return symbols of which each was replaced by a uniform one with probability `level`.

    A replaced symbol may come out as it was: it is seen right with probability
    `1 - level * (1 - 1 / choices)`. Two uniform numbers are spent per symbol.

    Args:
        symbols: Symbols from 0 to `choices - 1`, `[N]` or `[N, D]` of any type of integer.
        choices: How many symbols there are.
        level: Probability of a replacement in each environment, `[N]`.
        random: Stream of the noise.

    Returns:
        int64 symbols of the shape of `symbols`.
    """
    u = random.uniform((2, *symbols.shape))
    xp = namespace(u)
    if symbols.ndim == 2:
        level = level[:, None]
    drawn = xp.astype(u[1] * choices, symbols.dtype)
    # Not `where`, which branches on a mask that is random: half as quick for many symbols.
    return xp.astype(symbols + (u[0] < level) * (drawn - symbols), xp.int64)
