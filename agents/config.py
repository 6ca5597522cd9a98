"""The settings of acting and learning, as data.

They stand apart from the classes they configure, and nothing heavy is imported here, so that
`doxastic train --help` and an error in a YAML file do not wait for TorchRL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

AuxiliaryKind = Literal["none", "privileged", "next_observation", "auto"]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """How observations become vectors."""

    width: int = 64
    """Width of the encoder's hidden layer and of the vector it returns."""

    image_channels: tuple[int, ...] = (16, 32, 64)
    """Channels of the convolutions; further ones keep the last number."""

    image_scale: float | None = None
    """Images are divided by this. By default the upper bound of the space, but 10 for unsigned
    bytes of at most 16 x 16: such images are grids of small codes, as MiniGrid's."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for sizes and scales that no encoder can have."""
        if self.width < 1:
            raise ValueError(f"width must be >= 1, got {self.width}")
        if not self.image_channels or min(self.image_channels) < 1:
            raise ValueError(
                f"image_channels must be one or more numbers >= 1, got {list(self.image_channels)}"
            )
        if self.image_scale is not None and self.image_scale <= 0:
            raise ValueError(f"image_scale must be > 0, got {self.image_scale}")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """What stands between the memory's features and the two heads."""

    hidden_size: int = 64
    """Width of the body's layers."""

    hidden_layers: int = 1
    """Number of the body's layers, each linear and tanh."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for sizes that no network can have."""
        if self.hidden_size < 1:
            raise ValueError(f"hidden_size must be >= 1, got {self.hidden_size}")
        if self.hidden_layers < 1:
            raise ValueError(f"hidden_layers must be >= 1, got {self.hidden_layers}")


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """Settings of proximal policy optimisation (Schulman et al., arXiv 1707.06347)."""

    learning_rate: float = 2e-3
    """Adam's step size at the top of its schedule."""

    anneal_learning_rate: bool = True
    """Lower the learning rate linearly to 0 over the run."""

    warmup_updates: int = 5
    """Updates over which the learning rate rises linearly to its top; 0 for none."""

    segment_steps: int = 64
    """Steps of each environment between updates, over which gradients flow through time."""

    epochs: int = 4
    """Passes over the rollout per update."""

    minibatches: int = 4
    """Parts into which the environments are shuffled in each epoch; time is never split."""

    clip: float = 0.2
    """Half width of the interval around 1 outside which the probability ratio is clipped."""

    value_coefficient: float = 0.5
    """Weight of the squared error of the value."""

    clip_value: bool = False
    """Clip the value's change to `clip` as well."""

    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus."""

    anneal_entropy: bool = True
    """Lower the entropy's weight linearly to 0 over the run."""

    discount: float = 0.99
    """Discount of future rewards per step, in [0, 1]."""

    gae_lambda: float = 0.95
    """Decay of the generalised advantage estimate, in [0, 1]."""

    max_grad_norm: float = 0.5
    """Norm over all parameters to which gradients are scaled down."""

    target_kl: float | None = None
    """Stop an update before the first minibatch whose approximate divergence from the
    acting policy exceeds this; None never stops."""

    normalize_advantage: bool = True
    """Give the advantages of each rollout mean 0 and standard deviation 1."""

    normalize_value: bool = True
    """Let the value head learn returns scaled by their running mean and deviation."""

    normalize_observation: bool = False
    """Scale observations by running statistics of all episodes."""

    privileged_critic: bool = False
    """Take the advantages from a critic that also sees the task's hidden state: in training only,
    for tasks of doxastic. The policy never sees it."""

    def __post_init__(self) -> None:
        """Raise `ValueError` where a field breaks its contract."""
        for name in ("segment_steps", "epochs", "minibatches"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "clip", "max_grad_norm"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "above 0")
        for name in ("warmup_updates", "value_coefficient", "entropy_coefficient"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        for name in ("discount", "gae_lambda"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "in [0, 1]")
        _check("target_kl", self.target_kl, self.target_kl is None or self.target_kl > 0, "above 0")


@dataclass(frozen=True, kw_only=True)
class AuxiliaryConfig:
    """A likelihood under the belief that is learned beside PPO's loss, in training only."""

    kind: AuxiliaryKind = "none"
    """Of what: privileged is the task's hidden state, which only the tasks of doxastic tell;
    next_observation is the observation that follows the action; auto is privileged where the task
    tells its hidden state, else none. A memory without a belief is read by a linear mean and
    log-variance."""

    coefficient: float = 0.1
    """Weight of the mean negative log-likelihood."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for an unknown kind or a weight that is none."""
        if self.kind not in get_args(AuxiliaryKind):
            raise ValueError(
                f"auxiliary.kind is {self.kind!r}; expected one of "
                f"{', '.join(get_args(AuxiliaryKind))}."
            )
        if not 0 <= self.coefficient < math.inf:
            raise ValueError(
                f"auxiliary.coefficient is {self.coefficient}; expected a finite number >= 0."
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Which episodes an agent is evaluated on."""

    noise: tuple[float, ...] | None = None
    """Levels of hidden noise, each evaluated on the same episodes; None for the noise the
    environment has by itself."""

    episodes: int = 256
    """Episodes per level."""

    deterministic: bool = True
    """Take the most probable action instead of a random one."""

    seed: int = 1_000_000
    """Seed of the first episode, away from those of training."""

    selection_episodes: int = 0
    """Episodes at each level of training by which every checkpoint is judged, to keep the best;
    0 judges them by the returns met in training."""

    def __post_init__(self) -> None:
        """Raise `ValueError` where a field breaks its contract."""
        if self.episodes < 1:
            raise ValueError(f"evaluation.episodes is {self.episodes}; expected at least 1.")
        if self.selection_episodes < 0:
            raise ValueError(
                f"evaluation.selection_episodes is {self.selection_episodes}; expected at least 0."
            )
        if self.seed < 0:
            raise ValueError(f"evaluation.seed is {self.seed}; expected at least 0.")
        if self.noise is not None and not (self.noise and all(map(_is_level, self.noise))):
            raise ValueError(
                f"evaluation.noise is {self.noise}; expected finite levels of at least 0, or None."
            )


def _is_level(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _check(name: str, value: object, holds: bool, contract: str) -> None:
    if not holds:
        raise ValueError(f"ppo.{name} is {value}; expected {contract}.")
