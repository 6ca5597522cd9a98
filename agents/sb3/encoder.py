"""Doxastic's encoders as features extractors, for observations that are not preprocessed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
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
        self.space = observation_space
        self.encoder = build_encoder(observation_space, config)
        self.normalizer: nn.Module | None = None

    def forward(self, observation: Observation) -> Tensor:
        """Return vectors `[B, E]` of raw observations, as environments and buffers give them."""
        raw = raw_observation(observation, self.space)
        features: Tensor = self.encoder(raw if self.normalizer is None else self.normalizer(raw))
        return features


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
