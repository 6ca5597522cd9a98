"""Environments that do what a script says, and the comparison of a wrapper with its vector form."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

MODES = (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP)
# Steps of one episode after the other; environments start at different places of the list.
LENGTHS = (3, 1, 4, 2, 6)


class Scripted(gymnasium.Env):
    """Shows which episode and which step it is; ends every second episode by truncation.

    A seed starts the script over.

    Args:
        start: Place in `LENGTHS` of the first episode.
        kind: Space of the observation: "vector", "symbol", "dict" or "tuple".
    """

    def __init__(self, start: int = 0, kind: str = "vector") -> None:
        vector = spaces.Box(-100.0, 100.0, (2,), np.float32)
        symbol = spaces.Discrete(10, start=3)
        self.observation_space = {
            "vector": vector,
            "symbol": symbol,
            "dict": spaces.Dict(v=vector, s=symbol),
            "tuple": spaces.Tuple([spaces.MultiDiscrete([9, 10], start=[1, 0]), vector]),
        }[kind]
        self.action_space = spaces.Discrete(3)
        self.kind, self.start, self.episode, self.steps = kind, start, start - 1, 0

    def seen(self) -> Any:
        vector = np.array([self.episode, self.steps], dtype=np.float32)
        symbol = np.int64(3 + self.steps)
        pair = np.array([1 + self.steps, self.steps])
        kinds = {"vector": vector, "symbol": symbol, "dict": {"v": vector, "s": symbol}}
        return {**kinds, "tuple": (pair, vector)}[self.kind]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.steps = self.start if seed is not None else self.episode + 1, 0
        return self.seen(), {}

    def step(self, action):
        self.steps += 1
        ended = self.steps == LENGTHS[self.episode % len(LENGTHS)]
        by_truncation = self.episode % 2 == 1
        return (
            self.seen(),
            0.5 * self.steps,
            ended and not by_truncation,
            ended and by_truncation,
            {},
        )


def vector_of(n: int, mode: AutoresetMode, wrapped: Callable = lambda env: env, kind="vector"):
    """Return `n` scripted environments in a vector."""

    def make(start: int) -> Callable[[], gymnasium.Env]:
        return lambda: wrapped(Scripted(start, kind))

    return SyncVectorEnv([make(i) for i in range(n)], autoreset_mode=mode)


def check_wrapped(env: gymnasium.Env) -> None:
    """Let Gymnasium's checker judge a wrapped environment."""
    with warnings.catch_warnings():
        # It says so of every environment that has a wrapper, and of every unbounded Box.
        warnings.filterwarnings("ignore", ".*different from the unwrapped version", UserWarning)
        warnings.filterwarnings("ignore", ".*Box observation space m[a-z]+imum value", UserWarning)
        check_env(env, skip_render_check=True)


def assert_vector_equals_single(
    single: Callable, vector: Callable, mode: AutoresetMode, *, n: int = 3, kind: str = "vector"
) -> None:
    """Fail unless wrapping each of `n` environments and wrapping all at once give the same."""
    a, b = vector_of(n, mode, single, kind), vector(vector_of(n, mode, kind=kind))
    assert a.single_observation_space == b.single_observation_space
    assert a.observation_space == b.observation_space
    (x, info_x), (y, info_y) = a.reset(seed=5), b.reset(seed=5)
    a.action_space.seed(0)
    endings = 0
    for _ in range(40):
        assert b.observation_space.contains(y)
        assert_same_tree(x, y)
        assert_same_tree(info_x, info_y)
        endings += int(np.sum(info_y.get("_final_obs", 0)))
        action = a.action_space.sample()
        x, *results_x, info_x = a.step(action)
        y, *results_y, info_y = b.step(action)
        assert_same_tree(results_x, results_y)
    assert endings > 10 or mode is not AutoresetMode.SAME_STEP


def assert_same_tree(x: Any, y: Any) -> None:
    """Fail unless two nested structures of arrays hold the same."""
    if isinstance(x, dict):
        assert x.keys() == y.keys()
        x, y = list(x.values()), [y[name] for name in x]
    if isinstance(x, tuple | list) or (isinstance(x, np.ndarray) and x.dtype == object):
        assert len(x) == len(y)
        for one, other in zip(x, y, strict=True):
            assert_same_tree(one, other)
        return
    assert np.asarray(x).dtype == np.asarray(y).dtype
    np.testing.assert_array_equal(x, y)
