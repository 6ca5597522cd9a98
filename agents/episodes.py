"""Statistics of finished episodes."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

EPISODE_WINDOW = 100


class EpisodeLog:
    """Returns, lengths and hidden noise levels of the last finished episodes.

    Args:
        num_envs: Number of environments `N`.
        window: How many finished episodes are kept.
    """

    def __init__(self, num_envs: int, window: int = EPISODE_WINDOW) -> None:
        self.finished = 0
        self.returns: deque[float] = deque(maxlen=window)
        self.lengths: deque[float] = deque(maxlen=window)
        self.noise: deque[float] = deque(maxlen=window)
        # Return, length and noise level of the episodes under way.
        self._running = np.zeros((3, num_envs))

    def begin(self, info: dict[str, Any]) -> None:
        """Forget the unfinished episodes; read the noise levels of the ones that start."""
        self._running[:2] = 0.0
        self._running[2] = np.nan
        self._read_noise(info)

    def add(self, reward: np.ndarray, done: np.ndarray, info: dict[str, Any]) -> None:
        """Add one step of all environments; `reward` and `done` are `[N]`."""
        self._running[0] += reward
        self._running[1] += 1.0
        if done.any():
            returns, lengths, noise = self._running[:, done].tolist()
            self.finished += len(returns)
            self.returns.extend(returns)
            self.lengths.extend(lengths)
            self.noise.extend(noise)
            self._running[:2, done] = 0.0
        self._read_noise(info)

    def checkpoint(self) -> dict[str, Tensor]:
        """Return the log as tensors."""
        recent = np.array([self.returns, self.lengths, self.noise], dtype=np.float64)
        return {
            "episodes.finished": torch.tensor(self.finished),
            "episodes.recent": torch.from_numpy(recent),
            "episodes.running": torch.from_numpy(self._running.copy()),
        }

    def restore(self, tensors: dict[str, Tensor], *, unfinished: bool) -> None:
        """Go on from `checkpoint`, with the episodes then under way or without them."""
        self.finished = int(tensors["episodes.finished"])
        kept = (self.returns, self.lengths, self.noise)
        for window, recent in zip(kept, tensors["episodes.recent"].tolist(), strict=True):
            window.clear()
            window.extend(recent)
        if unfinished:
            self._running = tensors["episodes.running"].cpu().numpy().copy()

    def _read_noise(self, info: dict[str, Any]) -> None:
        """Take over the levels in `info`: after a reset, those of the new episodes."""
        if "noise" in info:
            given = info.get("_noise", True)
            self._running[2] = np.where(given, info["noise"], self._running[2])
