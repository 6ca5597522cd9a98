"""Running means and standard deviations, of observations and of returns."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from doxastic.agents.encoders import Observation, is_image

OBSERVATION_CLIP = 10.0
MINIMUM_RETURN_STD = 1e-2


class RunningMeanStd(nn.Module):
    """Mean and variance of everything seen, updated batch by batch in float64.

    Batches merge by the rule of Chan, Golub and LeVeque (1979): with counts `n, m` and means
    `x, y`, the merged sum of squared deviations is the sum of both plus
    `(x - y)^2 n m / (n + m)`. Before the first update the statistics are those of the
    identity: mean 0, variance 1.

    The statistics are buffers, so `state_dict` saves them exactly. `forward` never changes
    them: only `update` does.

    Args:
        shape: Shape of one sample.
        minimum_std: Smallest divisor: a constant input is centred, not blown up.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, shape: Sequence[int] = (), *, minimum_std: float = 1e-4) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.minimum_std = minimum_std
        self.register_buffer("mean", torch.zeros(self.shape, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(self.shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, batch: Tensor) -> None:
        """Merge a batch `[..., *shape]`; every leading dimension counts samples."""
        samples = batch.to(torch.float64).reshape(-1, *self.shape)
        number = samples.shape[0]
        total = self.count + number
        delta = samples.mean(0) - self.mean
        squares = self.count * self.variance + number * samples.var(0, correction=0)
        squares += delta.square() * self.count * number / total
        self.mean += delta * number / total
        self.variance.copy_(squares / total)
        self.count.copy_(total)

    @property
    def std(self) -> Tensor:
        """The standard deviation, at least `minimum_std`, in float64."""
        return self.variance.sqrt().clamp_min(self.minimum_std)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(x - mean) / std` in the dtype of `x`."""
        return (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)


class ObservationNormalizer(nn.Module):
    """Centres and scales the float vectors of an observation and clips them to +-10.

    The statistics are global: over all episodes, environments and noise levels. Statistics
    per episode or per level would hide from the agent the very noise it has to infer.
    Images, categories, bits and integers pass through.

    Args:
        space: Observation space of one environment.
    """

    def __init__(self, space: gym.Space) -> None:
        super().__init__()
        self._children: dict[str, int] = {}
        self._parts = nn.ModuleList()
        self.statistics: RunningMeanStd | None = None
        if isinstance(space, gym.spaces.Dict):
            for key, part in space.spaces.items():
                self._children[key] = len(self._parts)
                self._parts.append(ObservationNormalizer(part))
        elif _is_float_vector(space):
            self.statistics = RunningMeanStd(space.shape or ())

    def forward(self, observation: Observation) -> Observation:
        """Return the observation on the scale of the statistics, its structure kept."""
        if isinstance(observation, Tensor):
            if self.statistics is None:
                return observation
            scaled: Tensor = self.statistics(observation)
            return scaled.clamp_(-OBSERVATION_CLIP, OBSERVATION_CLIP)
        return {key: self._part(key)(part) for key, part in observation.items()}

    def update(self, observation: Observation) -> None:
        """Merge raw observations, whose leading dimensions count samples."""
        if not isinstance(observation, Tensor):
            for key, part in observation.items():
                self._part(key).update(part)
        elif self.statistics is not None:
            self.statistics.update(observation)

    def _part(self, key: str) -> ObservationNormalizer:
        part = self._parts[self._children[key]]
        assert isinstance(part, ObservationNormalizer)
        return part


@torch.no_grad()
def rescale_outputs(
    head: nn.Linear,
    old: tuple[Tensor | float, Tensor | float],
    new: tuple[Tensor | float, Tensor | float],
) -> None:
    """Change a head's weights so that `head * std + mean` stays the same in other units.

    With `v = (w x + b) old_std + old_mean` the new weights are `w old_std / new_std` and
    `(b old_std + old_mean - new_mean) / new_std`.

    Args:
        head: Changed in place.
        old: Mean and standard deviation before.
        new: Mean and standard deviation from now on.

    Source: van Hasselt et al., "Learning values across many orders of magnitude", 2016,
    equation 5 (Pop-Art).
    """
    (old_mean, old_std), (new_mean, new_std) = old, new
    head.weight.mul_(old_std / new_std)
    head.bias.mul_(old_std).add_(old_mean - new_mean).div_(new_std)


def value_statistics() -> RunningMeanStd:
    """Return fresh statistics of returns, by which the value head's outputs are scaled.

    The floor of the standard deviation keeps a first rare reward from becoming an enormous
    target.
    """
    return RunningMeanStd((), minimum_std=MINIMUM_RETURN_STD)


def _is_float_vector(space: gym.Space) -> bool:
    is_float = isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating)
    return is_float and not is_image(space)
