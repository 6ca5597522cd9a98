"""Partially observed tasks as pure functions over N environments at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium
import numpy as np
from array_api_compat import array_namespace, device

if TYPE_CHECKING:
    import torch

Array = Any
State = dict[str, Array]


class Random(Protocol):
    """A stream of random arrays; what it returns decides the library the task computes with."""

    def uniform(self, shape: tuple[int, ...]) -> Array:
        """Return independent draws from the uniform distribution on [0, 1)."""

    def normal(self, shape: tuple[int, ...]) -> Array:
        """Return independent draws from the standard normal distribution."""


class NumpyRandom:
    """Draws float64 NumPy arrays from a `numpy.random.Generator`."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def uniform(self, shape: tuple[int, ...]) -> Array:
        """Return independent draws from the uniform distribution on [0, 1)."""
        return self.generator.random(shape)

    def normal(self, shape: tuple[int, ...]) -> Array:
        """Return independent draws from the standard normal distribution."""
        return self.generator.standard_normal(shape)


class TorchRandom:
    """Draws tensors on the device of a `torch.Generator`.

    Args:
        generator: Source of the draws; its device is where the task lives.
        dtype: Floating-point type of the draws, torch's default type if not given.
    """

    def __init__(self, generator: torch.Generator, dtype: torch.dtype | None = None) -> None:
        import torch

        self.generator = generator
        self.dtype = dtype or torch.get_default_dtype()

    def uniform(self, shape: tuple[int, ...]) -> Array:
        """Return independent draws from the uniform distribution on [0, 1)."""
        import torch

        g = self.generator
        return torch.rand(shape, generator=g, dtype=self.dtype, device=g.device)

    def normal(self, shape: tuple[int, ...]) -> Array:
        """Return independent draws from the standard normal distribution."""
        import torch

        g = self.generator
        return torch.randn(shape, generator=g, dtype=self.dtype, device=g.device)


class BatchedPOMDP(ABC):
    """A partially observed task over N environments, written once for NumPy and PyTorch.

    The methods are pure: they return fresh arrays and leave their arguments alone. A state is
    a dictionary of arrays whose leading dimension is N, among them `"noise"` `[N]`, the level
    of the observation noise of each environment's episode. How many numbers a method draws
    depends on N alone, never on the state or the noise levels: two runs from the same seed
    under different noise see the same draws (common random numbers).

    Attributes:
        observation_space: Space of the observation of one environment: a Box of one dimension,
            or symbols from 0, Discrete or MultiDiscrete.
        action_space: Action space of one environment: a Box, Discrete or MultiDiscrete.
        max_episode_steps: Steps after which an episode is truncated; `None` for no limit.
        reward_range: Smallest and largest reward of one step.
        noise: Noise levels, one of which is drawn uniformly for every episode.
        hidden_names: Names of the columns of `hidden`.
    """

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]
    max_episode_steps: int | None
    reward_range: tuple[float, float]
    noise: tuple[float, ...]
    hidden_names: tuple[str, ...]

    @abstractmethod
    def reset(self, n: int, random: Random) -> State:
        """Return the state of `n` environments at the start of an episode."""

    @abstractmethod
    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards `[N]` and whether each episode terminated `[N]`.

        Args:
            state: State of N environments, none of which has ended.
            action: One action per environment, `[N]` for Discrete actions, else `[N, A]`.
            random: Stream of the dynamics' randomness.
        """

    @abstractmethod
    def observe(self, state: State, random: Random) -> Array:
        """Return a noisy observation of every environment, `[N]` if Discrete, else `[N, D]`."""

    @abstractmethod
    def hidden(self, state: State) -> Array:
        """Return what a filter would infer, `[N, len(hidden_names)]`."""

    def draw_noise(self, n: int, random: Random) -> Array:
        """Return one of the noise levels for each of `n` episodes, `[n]`.

        One uniform number is spent per episode however many levels there are.
        """
        u = random.uniform((n,))
        xp = namespace(u)
        # Below 1, u times a whole number is never rounded up to that number.
        return constant(self.noise, u)[xp.astype(u * len(self.noise), xp.int64)]


_NAMESPACES: dict[type, Any] = {}


def namespace(array: Array) -> Any:
    """Return the array API of `array`'s library; remembered by type, as tasks ask often."""
    kind = type(array)
    if kind not in _NAMESPACES:
        _NAMESPACES[kind] = array_namespace(array)
    return _NAMESPACES[kind]


def constant(values: tuple[Any, ...], like: Array) -> Array:
    """Return nested tuples of numbers as an array of the library, dtype and device of `like`.

    The array is shared between calls and must not be written to.
    """
    return _constant(values, namespace(like), like.dtype, device(like))


def picked(values: Array, index: Array) -> Array:
    """Return the entry `index` `[N]` of every row of `values` `[N, M]`, as `[N]`."""
    return values[indices(index.shape[0], index), index]


def replaced(values: Array, index: Array, entry: Array) -> Array:
    """Return `values` `[N, M]` with the entry `index` `[N]` of every row replaced by `entry`.

    Args:
        values: What is copied.
        index: Place of the entry in each row.
        entry: The entries `[N]`, or one number for all rows.
    """
    out = namespace(values).asarray(values, copy=True)
    out[indices(index.shape[0], index), index] = entry
    return out


def indices(count: int, like: Array) -> Array:
    """Return 0 .. count - 1 in the library and on the device of `like`.

    The array is shared between calls and must not be written to.
    """
    return _indices(count, namespace(like), device(like))


@lru_cache(maxsize=64)
def _indices(count: int, xp: Any, where: Any) -> Array:
    return xp.arange(count, device=where)


def columns(*arrays: Array) -> Array:
    """Return arrays `[N]` as the columns of one, `[N, len(arrays)]`, a fourfold faster `stack`."""
    xp = namespace(arrays[0])
    return xp.reshape(xp.concat(arrays), (len(arrays), -1)).T


@lru_cache(maxsize=256)
def _constant(values: tuple[Any, ...], xp: Any, dtype: Any, where: Any) -> Array:
    return xp.asarray(values, dtype=dtype, device=where)
