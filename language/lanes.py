"""Documents side by side in a batch: one behind the other in lanes of about equal length."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np


class Lane:
    """Documents one behind the other, as the model reads them."""

    def __init__(
        self,
        documents: Sequence[np.ndarray],
        masks: Sequence[np.ndarray] | None,
        chosen: Sequence[int],
    ) -> None:
        lengths = np.array([len(documents[index]) for index in chosen])
        begins = lengths.cumsum() - lengths
        self.tokens = np.concatenate([documents[index] for index in chosen])
        self._begins = np.zeros(len(self.tokens), bool)
        self._begins[begins] = True
        # Of each token: the document in whose score it counts, or -1.
        self._owner = np.repeat(np.array(chosen), lengths)
        if masks is not None:
            counted = np.concatenate([masks[index] for index in chosen])
            self._owner[~counted.astype(bool)] = -1
        self._owner[begins] = -1

    def window(
        self, begin: int, length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return inputs, targets, reset and the targets' documents, `[length]` each."""
        end = begin + length
        return (
            _padded(self.tokens[begin:end].astype(np.int64), length, 0),
            _padded(self.tokens[begin + 1 : end + 1].astype(np.int64), length, 0),
            _padded(self._begins[begin:end], length, False),
            _padded(self._owner[begin + 1 : end + 1], length, -1),
        )


def grouped(documents: Sequence[np.ndarray], lanes: int, may_join: bool) -> list[list[list[int]]]:
    """Return the documents' indices as groups of lanes.

    If documents may follow each other, one group: the longest first, each to the shortest lane.
    """
    order = sorted(range(len(documents)), key=lambda index: -len(documents[index]))
    if not may_join:
        alone = [[index] for index in order]
        return [alone[begin : begin + lanes] for begin in range(0, len(alone), lanes)]
    heap: list[tuple[int, int]] = [(0, lane) for lane in range(min(lanes, len(documents)))]
    chosen: list[list[int]] = [[] for _ in heap]
    for index in order:
        length, lane = heapq.heappop(heap)
        chosen[lane].append(index)
        heapq.heappush(heap, (length + len(documents[index]), lane))
    return [chosen]


def _padded(values: np.ndarray, length: int, filler: int) -> np.ndarray:
    return np.pad(values, (0, length - len(values)), constant_values=filler)
