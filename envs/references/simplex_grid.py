"""A regular grid over the probability distributions on a few outcomes."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# Outcomes -> steps per edge, for grids of a thousand points or so.
_RESOLUTION = {1: 1, 2: 300, 3: 48, 4: 20}


class SimplexGrid:
    """Distributions whose probabilities are multiples of `1 / resolution`.

    Between the points, a function is interpolated linearly on the simplices of Freudenthal's
    triangulation (Lovejoy, Computationally feasible bounds for partially observed Markov decision
    processes, 1991): of a convex function, such as a POMDP's value, that is an upper bound.

    Args:
        outcomes: Number of outcomes L.
        resolution: Steps per edge; chosen by the number of outcomes if not given.

    Attributes:
        points: The distributions, `[P, L]`.
    """

    def __init__(self, outcomes: int, resolution: int | None = None) -> None:
        self.resolution = resolution or _RESOLUTION.get(outcomes, 12)
        # Tails y_i = resolution * (p_i + ... + p_L), i >= 2, fall from at most the resolution.
        tails = [
            tail[::-1]
            for tail in combinations_with_replacement(range(self.resolution + 1), outcomes - 1)
        ]
        y = np.array(tails, dtype=np.int64).reshape(len(tails), outcomes - 1)
        self._strides = (self.resolution + 1) ** np.arange(outcomes - 1)
        self._index = np.zeros((self.resolution + 1) ** (outcomes - 1), dtype=np.int64)
        self._index[y @ self._strides] = np.arange(len(y))
        edges = np.zeros((len(y), 1))
        self.points = -np.diff(np.hstack([edges + self.resolution, y, edges])) / self.resolution

    def weights(self, distributions: FloatArray) -> tuple[IntArray, FloatArray]:
        """Return the grid points around distributions `[..., L]` and their weights.

        Returns:
            Indices and weights `[..., L]`: the interpolated value is the weighted sum of a table
            `[P]` at the indices.
        """
        tails = np.cumsum(distributions[..., ::-1], axis=-1)[..., -2::-1] * self.resolution
        y = np.minimum(tails, self.resolution)
        base = np.floor(y)
        order = np.argsort(base - y, axis=-1, kind="stable")
        fraction = np.take_along_axis(y - base, order, axis=-1)
        ones = np.ones((*y.shape[:-1], 1))
        weight = -np.diff(np.concatenate([ones, fraction, 0 * ones], axis=-1))
        # Walk from the base corner along the axes, the largest fraction first.
        flat = base.astype(np.int64) @ self._strides
        walk = np.concatenate([flat[..., None], self._strides[order]], axis=-1).cumsum(-1)
        # A corner beyond the edge has weight 0.
        index = self._index[np.minimum(walk, self._index.size - 1)]
        return index, weight
