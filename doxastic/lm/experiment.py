"""One training run of a language model as data: the model, the text, and how it learns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from doxastic import configuration
from doxastic.configuration import ConfigError
from doxastic.language.adaptation_config import LoRAConfig
from doxastic.language.training_config import TrainingConfig

if TYPE_CHECKING:
    from doxastic.language.config import LanguageConfig

PRESETS = "doxastic.configs.lm"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a new model is made of; a model that is fine-tuned brings its own."""

    vocab_size: int | None = None
    """Number of token ids; by default those of the tokenizer."""

    width: int = 128
    """Channels."""

    layers: int = 4
    """Number of blocks."""

    head_size: int = 32
    """Width of a head; it divides the width. Released models have 64."""

    hidden_size: int | None = None
    """Hidden width of the channel mix; by default four times the width."""

    low_ranks: tuple[int, int, int, int] | None = None
    """Ranks of the maps for decay, rate, value and gate; by default RWKV-LM's for the width."""

    double_rate: bool = False
    """Whether states may rotate (negative eigenvalues): better at tracking, unlike released
    models."""

    deep_embed: Literal["none", "matrix", "vector"] = "none"
    """Token tables in every channel mix: as in RWKV-7a (matrix) or in RWKV-8 rc00 (vector)."""

    def build(self, vocab_size: int) -> LanguageConfig:
        """Return the model's own configuration, for a tokenizer of so many ids.

        Raises:
            ConfigError: If the sizes do not fit each other.
        """
        from doxastic.language.config import LanguageConfig

        values = {**configuration.to_dict(self), "vocab_size": self.vocab_size or vocab_size}
        try:
            return LanguageConfig.from_dict(values)
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how it is cut into batches."""

    path: Annotated[str, tyro.conf.arg(aliases=["--data"])] = ""
    """A text file, a folder of them, a .jsonl file (a text, or prompt and completion, a line), or
    a token store."""

    suffixes: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--suffixes"])] = (
        ".txt",
        ".md",
        ".jsonl",
    )
    """The files of a folder that are read; those of runs below it are not."""

    field: str = "text"
    """The field of a line of a .jsonl file that holds the text."""

    tokenizer: str = ""
    """bytes, world, world:VOCABULARY, or the path of a tokenizer.json; by default bytes for a new
    model, and what a given model was made with."""

    store: str = ""
    """Folder of the token store; by default tokens/ in the run folder. One that is there and was
    made from the same text is used again; a run that goes on has its own, even if the text has
    changed."""

    held_out: str = ""
    """Text for evaluation in training, as `path`; by default the end of `path` is held out."""

    held_out_fraction: float = 0.1
    """Part of the text held out where `held_out` names none; 0 for no evaluation."""

    batches: Literal["auto", "windows", "packed", "documents", "streams"] = "auto"
    """auto: packed, or windows where there are fewer documents than 4 for each row. windows:
    pieces from anywhere. packed: documents in random order behind each other, whole:
    the state is carried from batch to batch. documents: one a row, for prompts and tuned states.
    streams: the text in its order, the state carried."""

    batch_size: int = 12
    """Rows of a batch, over all processes together."""

    block: int = 64
    """Tokens of a row."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for sizes that no batch can have, and for no files to read."""
        for name in ("batch_size", "block"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if not self.suffixes or not all(self.suffixes):
            raise ValueError(
                f"suffixes is {list(self.suffixes)}; expected at least one, none empty, such as .py"
            )
        if not 0.0 <= self.held_out_fraction < 1.0:
            raise ValueError(
                f"held_out_fraction is {self.held_out_fraction}; expected 0 or more and less than 1"
            )


@dataclass(frozen=True, kw_only=True)
class AdaptationConfig:
    """Which model is fine-tuned, and what of it learns."""

    base: Annotated[str, tyro.conf.arg(aliases=["--model"])] = ""
    """The model: a .pth or .safetensors file, a folder, or a run. Empty for a new model."""

    method: Annotated[str, tyro.conf.arg(aliases=["--method"])] = "full"
    """full: the model's own parameters learn. lora: low-rank updates of its projections. state: the
    state that documents begin with. state-offset: a matrix added to the state where it is read.
    Each wants a learning rate of its own, see the preset of its name."""

    trainable: tuple[str, ...] = ("*",)
    """full: patterns of the parameters that learn, such as 'blocks.*.att.*'."""

    frozen: tuple[str, ...] = ()
    """full: patterns of the parameters that do not, whatever `trainable` says."""

    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """lora: which projections, and how."""

    state_shifts: bool = False
    """state: whether what the token shifts see before the first token is learnt too."""


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Texts that are written on the way, to be read by people."""

    updates: int = 0
    """Updates between two of them; 0 for none."""

    prompts: tuple[str, ...] = ("",)
    """How they begin."""

    tokens: int = 200
    """How long they are."""

    temperature: float = 0.8
    """Of the distribution they are drawn from."""

    def __post_init__(self) -> None:
        """Raise `ValueError` for what nobody can write."""
        if self.updates < 0 or self.tokens < 1 or not self.prompts:
            raise ValueError(
                f"updates is {self.updates}, tokens {self.tokens}, and there are "
                f"{len(self.prompts)} prompts; expected 0 or more, and at least one of each other"
            )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a run; the same experiment gives the same numbers."""

    name: str = "lm"
    """Folder under runs/; a name in use gets -2, -3, ..."""
    seed: int = 0
    """Seed of new weights and of the order of the text."""
    device: str = "cpu"
    """Where to train: cpu, cuda, cuda:1, ...; under torchrun cuda means one for each process."""
    threads: int = 0
    """Threads on the CPU; 0 for one for each core."""
    checkpoint_updates: int = 250
    """Updates between two checkpoints; a better loss on held-out text is saved at once."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model."""
    data: DataConfig = field(default_factory=DataConfig)
    """The text."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How it learns."""
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    """What is fine-tuned."""
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    """Texts on the way."""

    def __post_init__(self) -> None:
        """Raise `ConfigError` for values that no run can use."""
        for name, least in (("checkpoint_updates", 1), ("threads", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*", self.name):
            raise ConfigError(
                f"name is {self.name!r}; expected letters, digits, '-', '_' and '.' only "
                "(give a whole path with --run-dir)"
            )


def from_dict(data: Mapping[str, Any]) -> Experiment:
    """Return the experiment in plain data; unknown keys and wrong types raise `ConfigError`."""
    return configuration.from_dict(Experiment, data)


def override(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """Return the experiment with some values replaced; sections are merged."""
    return from_dict(configuration.merge(configuration.to_dict(experiment), changes))


def load_preset(name_or_path: str | Path) -> Experiment:
    """Return the experiment of a preset of language models, or of a YAML file.

    Raises:
        ConfigError: If there is no such preset or file, or its content is wrong.
    """
    data, source = configuration.read_preset(name_or_path, PRESETS)
    try:
        return from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
