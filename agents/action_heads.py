"""Action heads by space: from features to a distribution, and a quick path for acting.

Each `ActionHead` is a layer that returns the parameters of a distribution, a distribution class
for TorchRL's probabilistic modules, and `sample`, which draws actions and their log-probabilities
without building a distribution. Both give the same log-probabilities (tested).
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
from torch import distributions as D
from torch.nn import functional as F

from doxastic.agents.distributions import (
    BETA_MARGIN,
    BoundedBeta,
    Categorical,
    DiagonalNormal,
    MultiBernoulli,
    MultiCategorical,
    beta_log_prob,
    beta_mode,
)

# The logit of a category that does not exist: its probability is exactly 0 in float32, and
# unlike minus infinity it gives no NaN in the gradient of the entropy.
_ABSENT_LOGIT = -1e9
_LOG_STD_RANGE = (-5.0, 2.0)
_LOG_SQRT_2_PI = 0.5 * math.log(2 * math.pi)

Parameters = dict[str, Tensor]


class ActionHead(nn.Module, ABC):
    """A layer from features to a distribution of actions.

    Attributes:
        in_keys: Names of the distribution's parameters, in the order of `distribution_class`.
        distribution_class: Distribution for TorchRL; takes the parameters by name.
        action_shape: Shape of one action as a tensor: `()` or `(A,)`; spaces of more
            dimensions are flattened.
        action_dtype: Dtype of the action tensors.
    """

    in_keys: tuple[str, ...]
    distribution_class: type[Any]
    action_shape: tuple[int, ...]
    action_dtype: torch.dtype

    def __init__(self, space: gym.Space[Any], input_size: int, parameters_size: int) -> None:
        super().__init__()
        self.space = space
        self.linear = nn.Linear(input_size, parameters_size)
        # A new policy is close to uniform whatever the features are.
        nn.init.orthogonal_(self.linear.weight, gain=0.01)
        nn.init.zeros_(self.linear.bias)

    @property
    def distribution_kwargs(self) -> dict[str, Tensor]:
        """Constant arguments of `distribution_class`."""
        return {}

    def distribution(self, parameters: Parameters) -> D.Distribution:
        """Return the distribution with these parameters."""
        arguments = {**parameters, **self.distribution_kwargs}
        distribution: D.Distribution = self.distribution_class(**arguments)
        return distribution

    @abstractmethod
    def forward(self, features: Tensor) -> Parameters:
        """Return the parameters of the distribution for features `[..., F]`."""

    @abstractmethod
    def sample(
        self,
        parameters: Parameters,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return actions `[..., *action_shape]` and their log-probabilities `[...]`.

        Args:
            parameters: What `forward` returned.
            generator: Source of the noise, on the device of the parameters; by default torch's
                global one.
            deterministic: Whether to take the most probable action instead of a random one.
        """

    def to_env(self, action: Tensor) -> np.ndarray[Any, Any]:
        """Return action tensors `[N, *action_shape]` as the array a vector environment takes."""
        array = action.detach().cpu().numpy()
        shape = self.space.shape or ()
        return array.reshape(len(array), *shape).astype(self.space.dtype, copy=False)


class DiscreteHead(ActionHead):
    """Categorical actions of a Discrete space, counted from 0 whatever the space's start."""

    in_keys = ("logits",)
    distribution_class = Categorical
    action_shape = ()
    action_dtype = torch.int64

    def __init__(self, space: spaces.Discrete, input_size: int) -> None:
        super().__init__(space, input_size, int(space.n))
        self.start = int(space.start)

    def forward(self, features: Tensor) -> Parameters:
        """Return `logits` `[..., A]`."""
        return {"logits": F.linear(features, self.linear.weight, self.linear.bias)}

    def sample(
        self,
        parameters: Parameters,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return actions `[...]` and their log-probabilities `[...]`."""
        log_probs = parameters["logits"].log_softmax(-1)
        action = _sample_category(log_probs, generator, deterministic)
        return action.squeeze(-1), log_probs.gather(-1, action).squeeze(-1)

    def to_env(self, action: Tensor) -> np.ndarray[Any, Any]:
        """Return actions `[N]` counted from the space's start."""
        array = super().to_env(action)
        return array + self.start if self.start else array


class MultiDiscreteHead(ActionHead):
    """Independent categorical actions of a MultiDiscrete space, all counted from 0."""

    in_keys = ("logits",)
    distribution_class = MultiCategorical
    action_dtype = torch.int64
    space: spaces.MultiDiscrete
    absent: Tensor

    def __init__(self, space: spaces.MultiDiscrete, input_size: int) -> None:
        counts = torch.as_tensor(space.nvec.flatten())
        self.most = int(counts.max())
        super().__init__(space, input_size, len(counts) * self.most)
        self.action_shape = (len(counts),)
        absent = torch.arange(self.most) >= counts.unsqueeze(-1)
        self.register_buffer("absent", absent, persistent=False)

    def forward(self, features: Tensor) -> Parameters:
        """Return `logits` `[..., A, N]` for A variables of at most N categories."""
        flat = F.linear(features, self.linear.weight, self.linear.bias)
        logits = flat.unflatten(-1, (*self.action_shape, self.most))
        return {"logits": logits.masked_fill(self.absent, _ABSENT_LOGIT)}

    def sample(
        self,
        parameters: Parameters,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return actions `[..., A]` and their log-probabilities `[...]`."""
        log_probs = parameters["logits"].log_softmax(-1)
        action = _sample_category(log_probs, generator, deterministic)
        return action.squeeze(-1), log_probs.gather(-1, action).squeeze(-1).sum(-1)

    def to_env(self, action: Tensor) -> np.ndarray[Any, Any]:
        """Return actions `[N, *nvec.shape]` counted from the space's starts."""
        array = super().to_env(action)
        start = self.space.start
        return array + start.astype(array.dtype) if start.any() else array


class MultiBinaryHead(ActionHead):
    """Independent bits of a MultiBinary space."""

    in_keys = ("logits",)
    distribution_class = MultiBernoulli
    action_dtype = torch.int8

    def __init__(self, space: spaces.MultiBinary, input_size: int) -> None:
        size = math.prod(space.shape)
        super().__init__(space, input_size, size)
        self.action_shape = (size,)

    def forward(self, features: Tensor) -> Parameters:
        """Return `logits` `[..., A]`."""
        return {"logits": F.linear(features, self.linear.weight, self.linear.bias)}

    def sample(
        self,
        parameters: Parameters,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return bits `[..., A]` and their log-probabilities `[...]`."""
        logits = parameters["logits"]
        if deterministic:
            action = logits > 0
        else:
            action = torch.rand(logits.shape, generator=generator, device=logits.device)
            action = action < logits.sigmoid()
        log_prob = F.logsigmoid(torch.where(action, logits, -logits)).sum(-1)
        return action.to(torch.int8), log_prob


class NormalHead(ActionHead):
    """Normal actions of a Box without bounds; the deviations do not depend on the features.

    Where a Box has some bounds but not all, actions are clipped on their way to the environment.
    """

    in_keys = ("loc", "scale")
    distribution_class = DiagonalNormal
    action_dtype = torch.float32
    space: spaces.Box

    def __init__(self, space: spaces.Box, input_size: int) -> None:
        size = math.prod(space.shape)
        super().__init__(space, input_size, size)
        self.action_shape = (size,)
        self.log_std = nn.Parameter(torch.zeros(size))

    def forward(self, features: Tensor) -> Parameters:
        """Return `loc` and `scale`, both `[..., A]`."""
        loc = F.linear(features, self.linear.weight, self.linear.bias)
        return {"loc": loc, "scale": self.log_std.clamp(*_LOG_STD_RANGE).exp().expand_as(loc)}

    def sample(
        self,
        parameters: Parameters,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return actions `[..., A]` and their log-densities `[...]`."""
        loc, scale = parameters["loc"], parameters["scale"]
        action = loc
        if not deterministic:
            noise = torch.randn(loc.shape, generator=generator, device=loc.device)
            action = torch.addcmul(loc, noise, scale)
        # From the rounded action, as the loss will compute it.
        z = (action - loc) / scale
        log_density = -0.5 * z * z - scale.log() - _LOG_SQRT_2_PI
        return action, log_density.sum(-1)

    def to_env(self, action: Tensor) -> np.ndarray[Any, Any]:
        """Return actions `[N, *space.shape]`, clipped to the bounds there are."""
        return np.clip(super().to_env(action), self.space.low, self.space.high)


class BetaHead(ActionHead):
    """Beta actions of a bounded Box; both concentrations are above 1, so there is one peak."""

    in_keys = ("concentration",)
    distribution_class = BoundedBeta
    action_dtype = torch.float32
    space: spaces.Box
    low: Tensor
    high: Tensor

    def __init__(self, space: spaces.Box, input_size: int) -> None:
        size = math.prod(space.shape)
        super().__init__(space, input_size, 2 * size)
        self.action_shape = (size,)
        low, high = (torch.as_tensor(bound.flatten()).float() for bound in (space.low, space.high))
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)

    @property
    def distribution_kwargs(self) -> dict[str, Tensor]:
        """The bounds."""
        return {"low": self.low, "high": self.high}

    def forward(self, features: Tensor) -> Parameters:
        """Return `concentration` `[..., A, 2]`."""
        raw = F.linear(features, self.linear.weight, self.linear.bias)
        raw = raw.view(*raw.shape[:-1], *self.action_shape, 2)
        # The margin keeps the mode defined where softplus underflows.
        return {"concentration": F.softplus(raw) + (1 + BETA_MARGIN)}

    def sample(
        self,
        parameters: Parameters,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return actions `[..., A]` within the bounds and their log-densities `[...]`."""
        concentration = parameters["concentration"]
        if deterministic:
            unit = beta_mode(concentration)
        else:
            gamma = torch._standard_gamma(concentration, generator=generator)
            unit = gamma[..., 0] / gamma.sum(-1)
        width = self.high - self.low
        action = torch.addcmul(self.low, width, unit)
        return action, beta_log_prob(concentration, action, self.low, width)

    def to_env(self, action: Tensor) -> np.ndarray[Any, Any]:
        """Return actions `[N, *space.shape]`; rounding never takes them out of the bounds."""
        return np.clip(super().to_env(action), self.space.low, self.space.high)


def build_action_head(space: gym.Space[Any], input_size: int) -> ActionHead:
    """Return the action head for a space.

    Raises:
        ValueError: If the space is of a kind that cannot be acted in.
    """
    if isinstance(space, spaces.Discrete):
        return DiscreteHead(space, input_size)
    if isinstance(space, spaces.MultiDiscrete):
        return MultiDiscreteHead(space, input_size)
    if isinstance(space, spaces.MultiBinary):
        return MultiBinaryHead(space, input_size)
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        # In float32, where the bounds of a float64 space may overflow.
        with np.errstate(over="ignore"):
            width = space.high.astype(np.float32) - space.low.astype(np.float32)
        if width.size > 0 and (width > 0).all():
            is_bounded = bool(np.isfinite(width).all())
            return BetaHead(space, input_size) if is_bounded else NormalHead(space, input_size)
    raise ValueError(
        f"action space {space} cannot be acted in; supported are Discrete, MultiDiscrete, "
        "MultiBinary and a Box of floats with low < high. Wrap the environment so that it has one "
        "of these, e.g. in gymnasium.wrappers.TransformAction."
    )


def _sample_category(
    log_probs: Tensor, generator: torch.Generator | None, deterministic: bool
) -> Tensor:
    """Return categories `[..., 1]`, random ones by the Gumbel-max trick."""
    if deterministic:
        return log_probs.argmax(-1, keepdim=True)
    exponential = torch.empty_like(log_probs).exponential_(generator=generator)
    return (log_probs - exponential.log_()).argmax(-1, keepdim=True)
