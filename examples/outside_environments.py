"""Train on environments of other packages: `python examples/outside_environments.py [ID ...]`.

Any registered Gymnasium id will do; the command line takes it as well:

    doxastic train --env.id MiniGrid-MemoryS7-v0
    doxastic train --env.id CartPole-v1 --env.noise-kind flicker --env.noise 0.5
    cd examples && doxastic train --env.id outside_environments:Catch-v0

The last one is the environment below, with images for observations: "module:id" imports the
module, which registers the id.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

import doxastic

IDS = (
    "CartPole-v1",  # a vector
    "popgym-RepeatPreviousEasy-v0",  # a symbol; pip install 'doxastic[popgym]'
    "popgym-AutoencodeEasy-v0",  # a Tuple of symbols
    "popgym-BattleshipEasy-v0",  # a symbol, and actions of several parts
    "MiniGrid-MemoryS7-v0",  # a Dict of an image and a symbol; pip install 'doxastic[minigrid]'
    "Catch-v0",  # an image
)


class Catch(gymnasium.Env[np.ndarray, int]):
    """A ball falls on a black image of 16 x 16 pixels; a paddle at the bottom is to catch it."""

    size = 16

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (self.size, self.size, 1), np.uint8)
        self.action_space = spaces.Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the image of a ball at the top and the paddle in the middle."""
        super().reset(seed=seed)
        self.row, self.paddle = 0, self.size // 2
        self.column = int(self.np_random.integers(self.size))
        return self.image(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Return what follows when the paddle goes left (0), stays (1) or goes right (2)."""
        self.row += 1
        self.paddle = int(np.clip(self.paddle + action - 1, 0, self.size - 1))
        landed = self.row == self.size - 1
        reward = float(landed) * (1.0 if abs(self.paddle - self.column) <= 1 else -1.0)
        return self.image(), reward, landed, False, {}

    def image(self) -> np.ndarray:
        """Return the pixels."""
        pixels = np.zeros(self.observation_space.shape or (), np.uint8)
        pixels[self.row, self.column] = 255
        pixels[-1, max(0, self.paddle - 1) : self.paddle + 2] = 255
        return pixels


gymnasium.register("Catch-v0", entry_point=Catch)


def train(env_id: str, total_steps: int, run_dir: Path | None = None) -> doxastic.Evaluation:
    """Train a small agent and return its returns after that."""
    experiment = doxastic.Experiment(
        env=doxastic.EnvConfig(id=env_id, num_envs=16), total_steps=total_steps
    )
    run = doxastic.train(experiment, run_dir=run_dir, progress=False)
    return doxastic.evaluate(doxastic.load(run), experiment.env, episodes=64)


if __name__ == "__main__":
    for name in sys.argv[1:] or IDS:
        print(name, train(name, 20_000), sep="\n")
