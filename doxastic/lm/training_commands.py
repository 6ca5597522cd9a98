"""`doxastic lm pretrain` and `doxastic lm finetune`: their options, and what they call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from doxastic import configuration
from doxastic.configuration import ConfigError, preset_names
from doxastic.lm.experiment import (
    PRESETS,
    AdaptationConfig,
    Experiment,
    ModelConfig,
    from_dict,
    load_preset,
)
from doxastic.options import parse, value_of


@dataclass(frozen=True, kw_only=True)
class _Pretraining(Experiment):
    """The experiment without what only fine-tuning has."""

    adaptation: Annotated[AdaptationConfig, tyro.conf.Suppress] = field(
        default_factory=AdaptationConfig
    )


@dataclass(frozen=True, kw_only=True)
class _Finetuning(Experiment):
    """The experiment without what only a new model has."""

    model: Annotated[ModelConfig, tyro.conf.Suppress] = field(default_factory=ModelConfig)


@dataclass(frozen=True, kw_only=True)
class _Run:
    resume: Path | None = None
    """Continue this run from its last checkpoint, bit for bit."""
    run_dir: Path | None = None
    """A new folder for the run; by default runs/NAME."""
    quiet: bool = False
    """Show neither progress nor results."""


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(_Run):
    """Train a new language model on text."""

    experiment: Annotated[_Pretraining, tyro.conf.arg(name="")] = field(
        default_factory=_Pretraining
    )
    """The experiment."""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(_Run):
    """Go on training a language model on text."""

    experiment: Annotated[_Finetuning, tyro.conf.arg(name="")] = field(default_factory=_Finetuning)
    """The experiment."""


def pretrain(words: Sequence[str]) -> None:
    """Run `doxastic lm pretrain`: the preset first, then what overrides it."""
    preset, words = _split(words)
    base = _base_experiment(preset or "tiny", words, given=preset is not None)
    description = (
        "Train a new language model on text.\n\n"
        "usage: doxastic lm pretrain [PRESET] --data TEXT [OPTIONS]. PRESET is "
        f"{_presets()} or a path to a YAML file; without one it is tiny. Options override it.\n\n"
        "The run folder gets config.yaml, metrics.jsonl, TensorBoard events, checkpoints, and in "
        "the end the best model in model/. Ctrl-C saves first; --resume RUN goes on, bit for bit. "
        "In several processes: torchrun --nproc-per-node 2 -m doxastic lm pretrain ...\n\n"
        "examples:\n"
        "  doxastic lm pretrain tiny --data notes.txt\n"
        "  doxastic lm pretrain shakespeare --data input.txt --samples.updates 250\n"
        "  doxastic lm pretrain --data text/ --data.tokenizer world --data.batches packed \\\n"
        "      --model.width 768 --model.layers 12 --model.head-size 64 --device cuda \\\n"
        "      --training.precision bfloat16\n"
        "  doxastic lm pretrain --resume runs/tiny"
    )
    default = PretrainOptions(
        experiment=configuration.from_dict(_Pretraining, configuration.to_dict(base))
    )
    options = parse(PretrainOptions, words, "doxastic lm pretrain", description, default=default)
    _train(options, from_dict(configuration.to_dict(options.experiment)))


def finetune(words: Sequence[str]) -> None:
    """Run `doxastic lm finetune`: the preset first, then what overrides it."""
    preset, words = _split(words)
    base = _base_experiment(preset or _preset_of(words), words, given=preset is not None)
    description = (
        "Go on training a language model on text.\n\n"
        "usage: doxastic lm finetune [PRESET] --model MODEL --data TEXT [OPTIONS]. MODEL is a .pth "
        "or .safetensors file, a folder, or a run. PRESET is "
        f"{_presets()} or a path to a YAML file; without one it is that of the method, and "
        "finetune for full. Options override it.\n\n"
        "methods:\n"
        "  full          the model's parameters, or those of --adaptation.trainable -> model/\n"
        "  lora          low-rank updates of its projections -> adapter/, for --adapter\n"
        "  state         the state that documents begin with -> state.safetensors, for --state\n"
        "  state-offset  a matrix added to the state where it is read -> adapter/\n\n"
        "In a .jsonl file with prompt and completion in each line only completions are learnt.\n\n"
        "examples:\n"
        "  doxastic lm finetune --model rwkv7.pth --data text/\n"
        "  doxastic lm finetune --model rwkv7.pth --data text/ --method lora\n"
        "  doxastic lm finetune --model runs/tiny --data chats.jsonl --method state\n"
        "  doxastic lm finetune --model rwkv7.pth --data text/ \\\n"
        "      --adaptation.trainable 'blocks.*.att.*' --adaptation.frozen '*.ln_x.*'\n"
        "  doxastic lm finetune --resume runs/finetune"
    )
    default = FinetuneOptions(
        experiment=configuration.from_dict(_Finetuning, configuration.to_dict(base))
    )
    options = parse(FinetuneOptions, words, "doxastic lm finetune", description, default=default)
    experiment = from_dict(configuration.to_dict(options.experiment))
    if not experiment.adaptation.base:
        raise ConfigError("no model is named; give one with --model, or see doxastic lm pretrain")
    _train(options, experiment)


def _train(options: PretrainOptions | FinetuneOptions, experiment: Experiment) -> None:
    # Imported here: help and refusals do not wait for it.
    from doxastic.lm.training import train

    train(
        experiment,
        run_dir=options.run_dir,
        resume=options.resume,
        progress=not options.quiet,
    )


def _split(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the preset, if one is named, and the options."""
    if words and not words[0].startswith("-"):
        return words[0], list(words[1:])
    return None, list(words)


def _base_experiment(preset: str, words: Sequence[str], *, given: bool) -> Experiment:
    """Return what the options override: a run to resume, or a preset."""
    run = value_of("--resume", words)
    if run is None:
        return load_preset(preset)
    if given:
        raise ConfigError(
            f"the preset {preset} and --resume are both given; a resumed run has its own"
        )
    # Imported here: only this needs more than the standard library and a YAML reader.
    from doxastic.runs import RunFolder, run_and_checkpoint

    return from_dict(RunFolder(run_and_checkpoint(Path(run))[0]).config)


def _preset_of(words: Sequence[str]) -> str:
    """Return the preset of the method that the options name: each has rates of its own."""
    method = value_of("--method", words) or value_of("--adaptation.method", words)
    preset = f"finetune-{method}"
    return preset if preset in preset_names(PRESETS) else "finetune"


def _presets() -> str:
    return ", ".join(preset_names(PRESETS))
