"""Observation spaces to vectors: one encoder for each kind of Gymnasium space.

Every encoder maps an observation with any leading dimensions, `[B, ...]` in acting and
`[B, T, ...]` in learning, to `[B, E]` or `[B, T, E]`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from doxastic.agents.config import EncoderConfig

Observation = Tensor | dict[str, Any]

# The largest code in a MiniGrid image (object 10); see `image_scale`.
_LARGEST_GRID_CODE = 10.0
_LARGEST_GRID_SIDE = 16


class Encoder(nn.Module, ABC):
    """A map from observations with any leading dimensions to vectors.

    Attributes:
        output_size: Width `E` of the vectors.
    """

    output_size: int

    @abstractmethod
    def forward(self, observation: Any) -> Tensor:
        """Return vectors `[..., E]` in float32 for observations `[..., *space.shape]`."""


def build_encoder(space: gym.Space[Any], config: EncoderConfig) -> Encoder:
    """Return the encoder for a space.

    Raises:
        ValueError: If the space is of a kind that cannot be encoded.
    """
    if isinstance(space, spaces.Dict) and len(space.spaces) > 0:
        return DictEncoder(space, config)
    if isinstance(space, spaces.Discrete):
        return CategoryEncoder(np.array([space.n]), np.array([space.start]), (), config)
    if isinstance(space, spaces.MultiDiscrete):
        return CategoryEncoder(space.nvec, space.start, space.shape, config)
    if is_image(space):
        return ImageEncoder(space, config)
    if isinstance(space, spaces.Box | spaces.MultiBinary) and math.prod(space.shape) > 0:
        return VectorEncoder(space.shape, config)
    raise ValueError(
        f"observation space {space} cannot be encoded; supported are Box, Discrete, "
        "MultiDiscrete, MultiBinary and a Dict of these, none of them empty. Wrap the environment "
        "so that it has one of these, e.g. in gymnasium.wrappers.FlattenObservation."
    )


def is_image(space: gym.Space[Any]) -> bool:
    """Whether a space holds images: three dimensions, or two of unsigned bytes."""
    if not isinstance(space, spaces.Box) or math.prod(space.shape) == 0:
        return False
    return len(space.shape) == 3 or (len(space.shape) == 2 and space.dtype == np.uint8)


def to_tensors(
    observation: Any, space: gym.Space[Any], device: torch.device | str | None = None
) -> Observation:
    """Return an observation of a vector environment as tensors that its encoder takes.

    Box and MultiBinary become float32, but unsigned bytes stay bytes (images are large);
    Discrete and MultiDiscrete become int64. On the CPU a tensor may share memory with the array
    it came from: copy what must outlive the environment's next step.

    Args:
        observation: Array `[N, *space.shape]`, or a dict of such for a Dict space.
        space: Space of one environment.
        device: Where to put the tensors; by default the CPU.
    """
    if isinstance(space, spaces.Dict):
        return {k: to_tensors(observation[k], part, device) for k, part in space.spaces.items()}
    tensor = torch.as_tensor(observation)
    return tensor.to(device=device, dtype=observation_dtype(space))


def observation_dtype(space: gym.Space[Any]) -> torch.dtype:
    """Return the dtype in which `to_tensors` gives the observations of a space."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return torch.int64
    if isinstance(space, spaces.Box) and space.dtype == np.uint8:
        return torch.uint8
    return torch.float32


class VectorEncoder(Encoder):
    """Linear, SiLU, linear on the flattened observation."""

    def __init__(self, shape: tuple[int, ...], config: EncoderConfig) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.output_size = config.width
        self.hidden = nn.Linear(math.prod(shape), config.width)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, observation: Tensor) -> Tensor:
        """Return `[..., E]` for observations `[..., *shape]`."""
        if len(self.shape) != 1:
            observation = _flatten_last(observation, len(self.shape))
        if observation.dtype != torch.float32:
            observation = observation.float()
        # The functional form saves a quarter of the dispatch of one acting step.
        hidden = F.silu(F.linear(observation, self.hidden.weight, self.hidden.bias))
        return F.linear(hidden, self.output.weight, self.output.bias)


class CategoryEncoder(Encoder):
    """One-hot categories through linear, SiLU, linear; the first product is a table look-up."""

    offset: Tensor

    def __init__(
        self,
        counts: np.ndarray[Any, Any],
        starts: np.ndarray[Any, Any],
        shape: tuple[int, ...],
        config: EncoderConfig,
    ) -> None:
        super().__init__()
        self.ndim = len(shape)
        self.output_size = config.width
        counts, starts = counts.flatten().astype(np.int64), starts.flatten().astype(np.int64)
        # Row of a category in the table: those of the earlier variables come first.
        first_row = np.concatenate([[0], np.cumsum(counts)[:-1]])
        self.register_buffer("offset", torch.as_tensor(first_row - starts), persistent=False)
        # Uniform with the bound a linear layer on as many hot inputs as variables would have.
        bound = 1 / math.sqrt(len(counts))
        table = torch.empty(int(counts.sum()), config.width).uniform_(-bound, bound)
        self.table = nn.Parameter(table)
        self.output = nn.Linear(config.width, config.width)

    def forward(self, observation: Tensor) -> Tensor:
        """Return `[..., E]` for integer observations `[..., *shape]`."""
        if self.ndim == 0:
            observation = observation.unsqueeze(-1)
        elif self.ndim > 1:
            observation = _flatten_last(observation, self.ndim)
        hidden = F.silu(F.embedding(observation + self.offset, self.table).sum(-2))
        return F.linear(hidden, self.output.weight, self.output.bias)


class ImageEncoder(Encoder):
    """Convolutions that halve the image until it is 4 x 4 or smaller, then one linear layer.

    At least two convolutions; the first of them keep the size where the image is small. The
    channel axis is the shorter one of the first and the last.
    """

    def __init__(self, space: gym.Space[Any], config: EncoderConfig) -> None:
        super().__init__()
        if not isinstance(space, spaces.Box):
            raise ValueError(f"an image is a Box of three dimensions, got {space}")
        self.ndim = len(space.shape)
        self.channels_last = self.ndim == 3 and space.shape[2] <= space.shape[0]
        height, width, channels = _image_size(space.shape, self.channels_last)
        self.scale = config.image_scale or _image_scale(space, max(height, width))
        self.output_size = config.width
        self.convolutions = _convolutions(height, width, channels, config.image_channels)
        with torch.no_grad():
            flat_size = self.convolutions(torch.zeros(1, channels, height, width)).numel()
        self.output = nn.Linear(flat_size, config.width)

    def forward(self, observation: Tensor) -> Tensor:
        """Return `[..., E]` for images `[..., H, W, C]`, `[..., C, H, W]` or `[..., H, W]`."""
        leading = observation.shape[: observation.ndim - self.ndim]
        image = observation.reshape(-1, *observation.shape[len(leading) :])
        if self.ndim == 2:
            image = image.unsqueeze(1)
        elif self.channels_last:
            image = image.movedim(-1, 1)
        hidden = self.convolutions(image.float() / self.scale).flatten(1)
        return F.silu(self.output(hidden)).reshape(*leading, self.output_size)


class DictEncoder(Encoder):
    """One encoder for each entry of a Dict, concatenated, then one linear layer."""

    def __init__(self, space: spaces.Dict, config: EncoderConfig) -> None:
        super().__init__()
        self.keys = tuple(space.spaces)
        self.encoders = nn.ModuleList(build_encoder(space[key], config) for key in self.keys)
        self.output_size = config.width
        self.output = nn.Linear(config.width * len(self.keys), config.width)

    def forward(self, observation: Any) -> Tensor:
        """Return `[..., E]` for a dict (or TensorDict) of observations."""
        pairs = zip(self.encoders, self.keys, strict=True)
        vectors = [encoder(observation[key]) for encoder, key in pairs]
        return self.output(F.silu(torch.cat(vectors, -1)))


def _flatten_last(x: Tensor, ndim: int) -> Tensor:
    """Return `x` with its last `ndim` dimensions as one; a new one where `ndim` is 0."""
    return x.reshape(*x.shape[: x.ndim - ndim], -1) if ndim else x.unsqueeze(-1)


def _image_size(shape: tuple[int, ...], channels_last: bool) -> tuple[int, int, int]:
    """Return height, width and channels."""
    if len(shape) == 2:
        return shape[0], shape[1], 1
    if channels_last:
        return shape[0], shape[1], shape[2]
    return shape[1], shape[2], shape[0]


def _image_scale(space: spaces.Box, longest_side: int) -> float:
    if space.dtype == np.uint8 and longest_side <= _LARGEST_GRID_SIDE:
        return min(_LARGEST_GRID_CODE, max(1.0, float(space.high.max())))
    high = float(np.abs(space.high).max())
    return high if math.isfinite(high) and high > 0 else 1.0


def _convolutions(
    height: int, width: int, channels: int, output_channels: tuple[int, ...]
) -> nn.Sequential:
    halvings = max(0, math.ceil(math.log2(max(height, width) / 4)))
    strides = [1] * (2 - halvings) + [2] * halvings
    layers: list[nn.Module] = []
    for i, stride in enumerate(strides):
        size = output_channels[min(i, len(output_channels) - 1)]
        layers += [nn.Conv2d(channels, size, 3, stride, padding=1), nn.SiLU()]
        channels = size
    return nn.Sequential(*layers)
