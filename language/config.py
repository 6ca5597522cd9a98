"""What a language model is made of, as data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from doxastic.memory.time_mix import LowRanks

DeepEmbedKind = Literal["none", "matrix", "vector"]


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """The sizes and options of an RWKV-7 language model; everything but its weights."""

    vocab_size: int
    """Number of token ids V."""

    width: int = 128
    """Channels C."""

    layers: int = 4
    """Number of blocks L."""

    head_size: int = 32
    """Width of a head; it divides `width`. The state has width times head_size entries a layer."""

    hidden_size: int | None = None
    """Hidden width of the channel mix; None for 4 C, as released models have it."""

    low_ranks: LowRanks | None = None
    """Ranks of the time mix's low-rank maps; None for `official_ranks(width)`."""

    norm_eps: float = 1e-5
    """Added to the variance by the layer norms."""

    group_norm_eps: float = 64e-5
    """Added to the variance by the time mix's group norm; officially one for every head size."""

    double_rate: bool = False
    """Whether the removal's rate lies in (0, 2): eigenvalues of -1 and below, for tracking states;
    see `TimeMix`. Not in released models."""

    deep_embed: DeepEmbedKind = "none"
    """Token tables in every channel mix: `matrix` as in RWKV-7a, `vector` as in RWKV-8 rc00."""

    def __post_init__(self) -> None:
        """Check sizes and names; fill in what is None."""
        for name in ("vocab_size", "width", "layers", "head_size"):
            _check_size(name, getattr(self, name))
        if self.width % self.head_size:
            raise ValueError(
                f"width is {self.width}; expected a multiple of head_size = {self.head_size}."
            )
        if self.hidden_size is None:
            object.__setattr__(self, "hidden_size", 4 * self.width)
        _check_size("hidden_size", self.hidden_size)
        object.__setattr__(self, "low_ranks", _ranks(self.low_ranks, self.width))
        for name in ("norm_eps", "group_norm_eps"):
            value = getattr(self, name)
            if not isinstance(value, float | int) or not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}; expected a finite number above 0.")
        if not isinstance(self.double_rate, bool):
            raise ValueError(f"double_rate is {self.double_rate!r}; expected true or false.")
        if self.deep_embed not in get_args(DeepEmbedKind):
            raise ValueError(
                f"deep_embed is {self.deep_embed!r}; expected one of "
                f"{', '.join(get_args(DeepEmbedKind))}."
            )

    @property
    def heads(self) -> int:
        """Number of heads H."""
        return self.width // self.head_size

    @property
    def ranks(self) -> LowRanks:
        """The ranks of the low-rank maps."""
        assert self.low_ranks is not None  # Filled in by __post_init__.
        return self.low_ranks

    @property
    def hidden(self) -> int:
        """The hidden width of the channel mix."""
        assert self.hidden_size is not None  # Filled in by __post_init__.
        return self.hidden_size

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON knows it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "low_ranks": self.ranks._asdict()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> LanguageConfig:
        """Return the configuration that `to_dict` described.

        Raises:
            ValueError: A key is unknown or missing, or a value does not fit.
        """
        known = {field.name for field in dataclasses.fields(LanguageConfig)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(
                f"the configuration has unknown keys {unknown}; expected some of {sorted(known)}."
            )
        if "vocab_size" not in values:
            raise ValueError("the configuration has no vocab_size; it has no default.")
        return LanguageConfig(**values)


def official_ranks(width: int) -> LowRanks:
    """Return the ranks that RWKV-LM's trainer chooses for a width: `max(32, 32 [c sqrt(C) / 32])`.

    [x] is the nearest integer, ties to even; c is 2.5 for decay and rate, 1.7 for the value and 5
    for the gate. Released checkpoints have others: read theirs from the shapes.

    Source: RWKV-LM, RWKV-v7/train_temp/src/model.py.
    """
    ranks = (max(32, 32 * round(c * math.sqrt(width) / 32)) for c in (2.5, 2.5, 1.7, 5.0))
    return LowRanks(*ranks)


def _ranks(given: Any, width: int) -> LowRanks:
    """Return four checked ranks from None, a mapping by name, or a sequence."""
    if given is None:
        return official_ranks(width)
    try:
        ranks = LowRanks(**given) if isinstance(given, Mapping) else LowRanks(*given)
    except TypeError:
        raise ValueError(
            f"low_ranks is {given!r}; expected four ranks: {', '.join(LowRanks._fields)}."
        ) from None
    for name, rank in ranks._asdict().items():
        _check_size(f"low_ranks.{name}", rank)
    return ranks


def _check_size(name: str, size: Any) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"{name} is {size!r}; expected an integer >= 1.")
