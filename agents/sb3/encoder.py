"""Doxastic's encoders as features extractors, for observations that are not preprocessed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import (
    is_image_space,
    is_image_space_channels_first,
)
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import Tensor, nn

from doxastic.agents.config import EncoderConfig
from doxastic.agents.encoders import Encoder, Observation, build_encoder


class ObservationEncoder(BaseFeaturesExtractor):
    """The encoder of an observation space: symbols by a table, images by convolutions.

    Args:
        observation_space: Observations of one environment.
        config: Widths; `config.width` is the width of the features.
    """

    encoder: Encoder

    def __init__(self, observation_space: gym.Space[Any], config: EncoderConfig) -> None:
        super().__init__(observation_space, config.width)
        self.space = self.own_space = observation_space
        # Asked at every step, and to compare two spaces takes longer than to encode.
        self._is_turned = False
        self.encoder = build_encoder(observation_space, config)
        self.normalizer: nn.Module | None = None

    def forward(self, observation: Observation) -> Tensor:
        """Return vectors `[B, E]` of raw observations, as environments and buffers give them."""
        raw = raw_observation(observation, self.space)
        if self._is_turned:
            raw = _turned_back(raw, self.own_space)
        features: Tensor = self.encoder(raw if self.normalizer is None else self.normalizer(raw))
        return features

    def take(self, encoder: Encoder, normalizer: nn.Module | None, space: gym.Space[Any]) -> None:
        """Take a trained encoder, whose observations of `space` SB3 may have turned around."""
        self.encoder, self.normalizer, self.own_space = encoder, normalizer, space
        self._is_turned = space != self.space


def turned_space(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return the space that SB3 makes of one: its images with the channels first."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: turned_space(part) for key, part in space.items()})
    if not isinstance(space, spaces.Box) or not is_image_space(space):
        return space
    if is_image_space_channels_first(space):
        return space
    return VecTransposeImage.transpose_space(space)


def _turned_back(observation: Any, space: gym.Space[Any]) -> Any:
    """Return a batch of observations of `turned_space(space)` as observations of `space`."""
    if isinstance(space, spaces.Dict):
        return {key: _turned_back(observation[key], part) for key, part in space.items()}
    return observation if turned_space(space) == space else observation.movedim(-3, -1)


def raw_observation(observation: Any, space: gym.Space[Any]) -> Any:
    """Return a batch as `to_tensors` would give it; buffers store a symbol as `[B, 1]`."""
    if isinstance(space, spaces.Dict):
        return {key: raw_observation(observation[key], part) for key, part in space.items()}
    if isinstance(space, spaces.Discrete):
        return observation.reshape(-1).long()
    if isinstance(space, spaces.MultiDiscrete):
        return observation.long()
    if observation.dtype in (torch.float32, torch.uint8):
        return observation
    return observation.float()
