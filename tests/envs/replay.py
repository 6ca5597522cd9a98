"""One stream of draws for two libraries: what NumPy draws, as torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from doxastic.envs import BatchedPOMDP, NumpyRandom


class ReplayedRandom(NumpyRandom):
    """Draws what `NumpyRandom` draws from the same generator, as float64 tensors on the CPU."""

    def uniform(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the draws of `NumpyRandom.uniform` as a tensor."""
        return torch.from_numpy(super().uniform(shape))

    def normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the draws of `NumpyRandom.normal` as a tensor."""
        return torch.from_numpy(super().normal(shape))


def assert_numpy_equals_torch(
    pomdp: BatchedPOMDP, *, n: int = 64, steps: int = 30, seed: int = 0, atol: float = 1e-12
) -> None:
    """Fail unless the task does the same with NumPy arrays and with tensors, step by step.

    Plays random actions in `n` environments from the same draws in both libraries, and starts
    the episodes that ended anew.
    """
    ours, theirs = (kind(np.random.default_rng(seed)) for kind in (NumpyRandom, ReplayedRandom))
    pomdp.action_space.seed(seed)
    x, y = pomdp.reset(n, ours), pomdp.reset(n, theirs)
    assert_same("the state", x, y, atol)
    for _ in range(steps):
        action = np.stack([pomdp.action_space.sample() for _ in range(n)])
        x, reward_x, ended_x = pomdp.step(x, action, ours)
        y, reward_y, ended_y = pomdp.step(y, torch.from_numpy(action), theirs)
        assert_same("the state", x, y, atol)
        assert_same("the reward", reward_x, reward_y, atol)
        assert_same("the termination", ended_x, ended_y, atol)
        assert_same("the observation", pomdp.observe(x, ours), pomdp.observe(y, theirs), atol)
        assert_same("hidden", pomdp.hidden(x), pomdp.hidden(y), atol)
        fresh_x, fresh_y = pomdp.reset(n, ours), pomdp.reset(n, theirs)
        x = {key: np.where(_rows(ended_x, x[key]), fresh_x[key], x[key]) for key in x}
        y = {key: torch.where(_rows(ended_y, y[key]), fresh_y[key], y[key]) for key in y}


def _rows(ended: Any, entry: Any) -> Any:
    """Return `ended` `[N]` with as many dimensions as an entry of the state."""
    return ended.reshape(-1, *[1] * (entry.ndim - 1))


def assert_same(name: str, array: Any, tensor: Any, atol: float) -> None:
    """Fail unless a NumPy array and a tensor, or dictionaries of them, agree in kind and value."""
    if isinstance(array, dict):
        assert array.keys() == tensor.keys(), name
        for key in array:
            assert_same(f"{name}[{key!r}]", array[key], tensor[key], atol)
        return
    assert isinstance(array, np.ndarray) and isinstance(tensor, torch.Tensor), name
    assert array.dtype == tensor.numpy().dtype, f"{name}: {array.dtype} and {tensor.dtype}"
    assert array.shape == tuple(tensor.shape), f"{name}: {array.shape} and {tensor.shape}"
    np.testing.assert_allclose(tensor.numpy(), array, rtol=0, atol=atol, err_msg=name)
