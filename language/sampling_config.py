"""How a continuation is chosen, as data; reading it does not wait for torch."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How a continuation is chosen and when it ends.

    In the order in which they apply, which is that of Hugging Face's `generate` where both have
    a step: repetition penalty; presence and frequency penalty; temperature; top-k; top-p; min-p.
    Each filter sees the probabilities renormalised over what the one before it left.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the most probable token, always."""

    top_k: int = 0
    """Keep this many of the most probable tokens; 0 keeps all."""

    top_p: float = 1.0
    """Keep the fewest most probable tokens whose probabilities reach this sum; 1 keeps all."""

    min_p: float = 0.0
    """Keep tokens at least this probable relative to the most probable one; 0 keeps all."""

    repetition_penalty: float = 1.0
    """Divides positive logits of every token in prompt and continuation and multiplies negative
    ones (CTRL); 1 is none."""

    presence_penalty: float = 0.0
    """Subtracted from the logits of every token of the continuation."""

    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it stands in the continuation."""

    penalty_decay: float = 1.0
    """Multiplies those counts at every token, so that old ones fade; RWKV's demos have 0.996."""

    max_new_tokens: int = 256
    """The continuation ends after this many tokens."""

    stop: tuple[str, ...] = ()
    """The continuation ends before the first of these strings."""

    seed: int = 0
    """Seed of the random streams, one for each row."""

    def __post_init__(self) -> None:
        """Check every value."""
        _check("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or above")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (keep all) or above")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "a number in (0, 1]")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "a number in [0, 1]")
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, 0 < penalty < math.inf, "above 0 (1: none)")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(name, value, math.isfinite(value), "a finite number")
        decay = self.penalty_decay
        _check("penalty_decay", decay, 0 <= decay <= 1, "a number in [0, 1]")
        _check("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "1 or above")
        is_tuple = isinstance(self.stop, tuple) and all(isinstance(s, str) and s for s in self.stop)
        _check("stop", self.stop, is_tuple, "a tuple of strings, none empty")
        _check("seed", self.seed, self.seed >= 0, "0 or above")


def _check(name: str, value: object, fits: bool, expected: str) -> None:
    if not fits:
        raise ValueError(f"{name} is {value!r}; expected {expected}.")
