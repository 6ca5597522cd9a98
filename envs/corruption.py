"""What each kind of noise does to observations, written once for NumPy and PyTorch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np
from array_api_compat import device
from gymnasium import spaces

from doxastic.envs.batched import Array, Random, State, constant, namespace
from doxastic.envs.noise import noise_levels

Leaves = tuple[Array, ...]
_ARRAYS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class Corruption(ABC):
    """One kind of noise on the observations of N environments.

    The methods are pure, as those of a `BatchedPOMDP`: they return fresh arrays, and what they
    draw depends on N alone. An observation is a tuple of arrays `[N, *shape]`, one for each leaf
    of its space.

    Args:
        leaves: Spaces of the arrays.
        levels: Levels that occur.

    Raises:
        ValueError: If no leaf can have this kind of noise.
    """

    def __init__(self, leaves: tuple[gymnasium.Space[Any], ...], levels: tuple[float, ...]) -> None:
        self.leaves, self.levels = leaves, levels

    def start(self, observation: Leaves, level: Array, random: Random) -> State:
        """Return what an episode carries along, from its first noiseless observation."""
        return {}

    def advance(self, memory: State, observation: Leaves) -> State:
        """Return what the episode carries along after its next noiseless observation."""
        return memory

    @abstractmethod
    def apply(self, observation: Leaves, level: Array, memory: State, random: Random) -> Leaves:
        """Return the noisy observation.

        Args:
            observation: The noiseless one.
            level: Level of each environment's episode, `[N]`.
            memory: What `start` and `advance` returned, this observation included.
            random: Stream of the noise.
        """


class _Additive(Corruption):
    """Noise that is added to Box leaves; the sum is rounded for integers and bits, and clipped."""

    def __init__(self, leaves: tuple[gymnasium.Space[Any], ...], levels: tuple[float, ...]) -> None:
        super().__init__(leaves, levels)
        if not any(isinstance(leaf, spaces.Box) for leaf in leaves):
            raise ValueError(
                "This kind of noise is added to numbers and needs a Box observation, or a Dict or "
                f"Tuple with a Box entry; the observations are {_listed(leaves)}. Choose "
                'noise_kind="flicker" or "delay", or leave the noise out.'
            )
        self._bounds = [_bounds(leaf) if isinstance(leaf, spaces.Box) else None for leaf in leaves]

    def apply(self, observation: Leaves, level: Array, memory: State, random: Random) -> Leaves:
        """Return the observation plus the error, within its space."""
        return tuple(
            leaf
            if not isinstance(space, spaces.Box)
            else self._within(i, leaf + self._error(i, leaf, level, memory, random))
            for i, (space, leaf) in enumerate(zip(self.leaves, observation, strict=True))
        )

    @abstractmethod
    def _error(self, i: int, leaf: Array, level: Array, memory: State, random: Random) -> Array:
        """Return what is added to leaf `i`."""

    def _within(self, i: int, noisy: Array) -> Array:
        xp = namespace(noisy)
        # The nearest integer, or truth value.
        if np.dtype(self.leaves[i].dtype).kind in "iub":
            noisy = xp.round(noisy)
        bounds = self._bounds[i]
        if bounds is None:
            return noisy
        low, high = bounds
        return xp.minimum(xp.maximum(noisy, constant(low, noisy)), constant(high, noisy))


class Gaussian(_Additive):
    """Adds `level * z` to every entry, z standard normal."""

    def _error(self, i: int, leaf: Array, level: Array, memory: State, random: Random) -> Array:
        return per_row(level, leaf) * random.normal(tuple(leaf.shape))


class Student(_Additive):
    """Adds heavy-tailed noise with a standard deviation of `level` to every entry.

    Student's t with 3 degrees of freedom, the fewest at which the variance is finite, scaled to
    unit variance: `t / sqrt(3) = z_0 / sqrt(z_1^2 + z_2^2 + z_3^2)` for standard normal z.
    """

    def _error(self, i: int, leaf: Array, level: Array, memory: State, random: Random) -> Array:
        z = random.normal((4, *leaf.shape))
        length = namespace(z).sqrt(z[1] * z[1] + z[2] * z[2] + z[3] * z[3])
        return per_row(level, leaf) * (z[0] / length)


class Bias(_Additive):
    """Adds an error that is the same for a whole episode: `level * z` for every entry."""

    def start(self, observation: Leaves, level: Array, random: Random) -> State:
        """Return the errors, `"bias<i>"` `[N, *shape]`."""
        return {
            f"bias{i}": per_row(level, leaf) * random.normal(tuple(leaf.shape))
            for i, (space, leaf) in enumerate(zip(self.leaves, observation, strict=True))
            if isinstance(space, spaces.Box)
        }

    def _error(self, i: int, leaf: Array, level: Array, memory: State, random: Random) -> Array:
        return memory[f"bias{i}"]


class _Whole(Corruption):
    """Noise that concerns an observation as a whole, whatever its numbers mean."""

    def __init__(self, leaves: tuple[gymnasium.Space[Any], ...], levels: tuple[float, ...]) -> None:
        super().__init__(leaves, levels)
        others = tuple(leaf for leaf in leaves if not isinstance(leaf, _ARRAYS))
        if others:
            raise ValueError(
                f"The observation has entries that are no arrays of numbers: {_listed(others)}; "
                "it can be dropped or delayed only without them. Wrap the environment in "
                "doxastic.envs.wrappers.NumericEntries first."
            )


class Flicker(_Whole):
    """Blanks the whole observation with probability `level`, each time anew.

    A blank Box or MultiBinary is zero, or the nearest value in its space; a blank Discrete or
    MultiDiscrete is its first symbol. The flickering of Hausknecht and Stone (2015), "Deep
    recurrent Q-learning for partially observable MDPs".
    """

    def apply(self, observation: Leaves, level: Array, memory: State, random: Random) -> Leaves:
        """Return the observation, or its blank."""
        blank = random.uniform((level.shape[0],)) < level
        xp = namespace(level)
        return tuple(
            xp.where(per_row(blank, leaf), constant(_blank(space), leaf), leaf)
            for space, leaf in zip(self.leaves, observation, strict=True)
        )


class Delay(_Whole):
    """Shows the observation of `level` steps ago, and the episode's first one until then."""

    def start(self, observation: Leaves, level: Array, random: Random) -> State:
        """Return the last observations, `"buffer<i>"` `[N, 1 + largest delay, *shape]`."""
        length = 1 + int(max(self.levels))
        return {
            f"buffer{i}": namespace(leaf).stack([leaf] * length, axis=1)
            for i, leaf in enumerate(observation)
        }

    def advance(self, memory: State, observation: Leaves) -> State:
        """Return the last observations, the new one at index 0."""
        return {
            f"buffer{i}": namespace(leaf).concat(
                [leaf[:, None], memory[f"buffer{i}"][:, :-1]], axis=1
            )
            for i, leaf in enumerate(observation)
        }

    def apply(self, observation: Leaves, level: Array, memory: State, random: Random) -> Leaves:
        """Return the delayed observation; draws nothing."""
        xp = namespace(level)
        rows = xp.arange(level.shape[0], device=device(level))
        steps = xp.astype(level, xp.int64)
        return tuple(memory[f"buffer{i}"][rows, steps] for i in range(len(observation)))


_KINDS: dict[str, type[Corruption]] = {
    "gaussian": Gaussian,
    "student": Student,
    "flicker": Flicker,
    "bias": Bias,
    "delay": Delay,
}


def make_corruption(
    kind: str, leaves: tuple[gymnasium.Space[Any], ...], levels: tuple[float, ...]
) -> Corruption:
    """Return the noise of a kind, for observations with these leaves.

    Raises:
        ValueError: If the kind is unknown, a level outside its range, or no leaf can have it.
    """
    return _KINDS[kind](leaves, noise_levels(levels, kind))


def per_row(values: Array, like: Array) -> Array:
    """Return `[N]` values with as many trailing axes of length 1 as `like` `[N, ...]` has."""
    if like.ndim == 1:
        return values
    return namespace(values).reshape(values, (-1,) + (1,) * (like.ndim - 1))


def _bounds(space: spaces.Box) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
    """Return the bounds as nested tuples that broadcast; None if there are none at all."""
    if np.all(np.isinf(space.low)) and np.all(np.isinf(space.high)):
        return None
    return _tuples(space.low), _tuples(space.high)


def _blank(space: gymnasium.Space[Any]) -> tuple[Any, ...]:
    if isinstance(space, spaces.Box):
        return _tuples(np.clip(0, space.low, space.high))
    if isinstance(space, spaces.MultiDiscrete):
        return _tuples(space.start)
    return (int(getattr(space, "start", 0)),)


def _tuples(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    """Return an array as nested tuples, as one number where all are equal."""
    if array.size and np.all(array == array.flat[0]):
        return (array.flat[0].item(),)
    return _nested(array.tolist())


def _nested(values: list[Any]) -> tuple[Any, ...]:
    return tuple(_nested(value) if isinstance(value, list) else value for value in values)


def _listed(leaves: tuple[gymnasium.Space[Any], ...]) -> str:
    return ", ".join(str(leaf) for leaf in leaves)
