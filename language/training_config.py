"""The settings of training a language model, as data; nothing heavy is imported here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from doxastic.language.schedules import Schedule, learning_rate_factor

SMALLEST_EPSILON = 1e-19
"""The root of float32's smallest normal number, 1.2e-38. Below it, a squared gradient vanishes
while the gradient over epsilon is still large, and Adam's step is no longer bounded."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a language model is trained. The defaults are RWKV-LM's where it has one."""

    updates: int = 2000
    """Steps of the optimiser."""

    accumulation: int = 1
    """Batches whose gradients are summed for one update; with streams they follow in time."""

    backpropagate_windows: int = 1
    """Consecutive windows of a stream through whose carried state the gradient flows: 1 stops it
    at every window, and as many as a document has windows give the whole gradient. An update takes
    this many batches for each of `accumulation`, and keeps what all of them need in memory."""

    learning_rate: float = 6e-4
    """The highest learning rate; the decay's bias w0 learns twice as fast."""

    final_learning_rate: float = 6e-5
    """The learning rate of the last update; constant schedules do not use it."""

    schedule: Schedule = "cosine"
    """How the rate falls: cosine, wsd (constant, then a steep fall at the end) or constant."""

    warmup_updates: int = 10
    """Updates over which the rate rises linearly."""

    decay_fraction: float = 0.2
    """Part of the run in which the schedule wsd falls."""

    weight_decay: float = 0.1
    """Pull of the matrices towards 0, times the learning rate; vectors do not decay."""

    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's averaging of gradients and of their squares."""

    epsilon: float = 1e-18
    """Added by Adam to the root of the squares: so small that rare tokens learn at full speed."""

    clip_norm: float = 1.0
    """Gradients of a larger norm are scaled down to it; 0 for never."""

    z_loss: float = 0.0
    """Weight of the squared log normaliser of the logits, such as 1e-4."""

    logit_penalty: float = 0.0
    """Weight of half the squared highest logit; 1e-4 is RWKV-LM's L2Wrap."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """What matrices are multiplied in. Weights, state, loss and optimiser are float32 always."""

    checkpoint_blocks: bool = False
    """Compute a block's inner results again in the backward pass instead of keeping them."""

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: a copy of the model in every process, or its parameters split over them."""

    evaluation_updates: int = 250
    """Updates between two evaluations on held-out text; the last update is followed by one."""

    evaluation_batches: int = 50
    """Batches of an evaluation, always the same ones."""

    patience: int = 0
    """Evaluations in a row without a better loss after which training stops; 0 for never."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for values that no training can use."""
        counts = ("updates", "accumulation", "backpropagate_windows")
        self._require((*counts, "evaluation_updates", "evaluation_batches"), 1, math.inf)
        self._require(("warmup_updates", "patience", "weight_decay", "clip_norm"), 0, math.inf)
        self._require(("z_loss", "logit_penalty", "final_learning_rate"), 0, math.inf)
        self._require(("decay_fraction",), 0, 1)
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected more than 0")
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate is {self.final_learning_rate}; expected at most "
                f"learning_rate, {self.learning_rate}"
            )
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas is {list(self.betas)}; expected two numbers in [0, 1)")
        if not SMALLEST_EPSILON <= self.epsilon < math.inf:
            raise ValueError(
                f"epsilon is {self.epsilon}; expected at least {SMALLEST_EPSILON}: with less, "
                "Adam's steps are unbounded in float32"
            )

    def learning_rate_factor(self, update: int) -> float:
        """Return the learning rate of an update, counted from 0, as a fraction of the highest."""
        return learning_rate_factor(
            update,
            self.updates,
            schedule=self.schedule,
            warmup=self.warmup_updates,
            final=self.final_learning_rate / self.learning_rate,
            decay_fraction=self.decay_fraction,
        )

    def _require(self, names: tuple[str, ...], low: float, high: float) -> None:
        for name in names:
            value = getattr(self, name)
            if not low <= value <= high or math.isinf(value):
                bound = f"{low} or more" if math.isinf(high) else f"{low} to {high}"
                raise ValueError(f"{name} is {value}; expected {bound}")
