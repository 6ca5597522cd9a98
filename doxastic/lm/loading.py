"""A language model and its tokenizer, from what a user names on the command line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from doxastic.configuration import ConfigError, read_yaml

if TYPE_CHECKING:
    from doxastic.language.model import LanguageModel
    from doxastic.language.state_files import Kind, StateFile
    from doxastic.language.tokenizers import Tokenizer

ADAPTER, STATE = "adapter", "state.safetensors"
"""Where a run leaves what it learnt beside a base model."""

# What a run or a file may hold beside a model.
_LORA, _OFFSETS, _STATE = "a LoRA adapter", "state offsets", "a state"
# Vocabulary of a model -> the tokenizer it was made with, where nothing names another.
_BY_VOCABULARY = {257: "bytes", 65530: "world", 65536: "world"}


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """How a model is loaded."""

    tokenizer: str | None = None
    """bytes, world, world:FILE or a tokenizer.json; by default that of the training run, the
    tokenizer.json in the model's folder, or the usual one of a model with as many token ids."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, ..."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision of the weights; by default that of the file, float32 on the CPU, where half
    precision is slower."""
    adapter: Path | None = None
    """What was learnt beside the model: the folder of an adapter, or the run that made it."""


def load(path: Path, options: LoadingOptions) -> tuple[LanguageModel, Tokenizer]:
    """Return a model, ready to generate, and its tokenizer.

    Args:
        path: A model of any format, or the run folder of a training.
        options: How to load it.

    Raises:
        ConfigError: The tokenizer has to be named, or the device is not there.
        ValueError: The file is no model, or the tokenizer not the model's.
    """
    # Imported here: help and refusals do not wait for torch.
    import torch

    from doxastic.devices import torch_device
    from doxastic.language.adaptation import load_adapter
    from doxastic.language.formats import load_model
    from doxastic.language.formats.checkpoint import converted
    from doxastic.language.prompts import check_vocabulary
    from doxastic.language.tokenizers import load_tokenizer

    device = torch_device(options.device)
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    if dtype is None and device.type == "cpu":
        dtype = torch.float32
    base, adapter = base_and_adapter(path, options.adapter)
    run = run_of(base)
    stored = base / "model" if run == base else base
    model = load_model(stored, device=device, dtype=None if adapter else dtype)
    if adapter is not None:
        # In half precision small updates would be rounded away, and the base be another one.
        own = model.emb.weight.dtype
        load_adapter(model.to(torch.promote_types(own, torch.float32)), adapter, merge=True)
        for name, parameter in model.named_parameters():
            parameter.data = converted(name, parameter.data, own if dtype is None else dtype)
    spec = options.tokenizer or tokenizer_spec(base, run, model.config.vocab_size)
    tokenizer = load_tokenizer(spec)
    check_vocabulary(model, tokenizer)
    return model.eval().requires_grad_(False), tokenizer


def load_start(path: Path, model: LanguageModel, kinds: Sequence[Kind], expected: str) -> StateFile:
    """Return the one state in the file of the option --state.

    Args:
        path: The file.
        model: Whose state it is.
        kinds: What it may have read.
        expected: Those kinds in words.

    Raises:
        ConfigError: It is of another kind, or the file holds several.
        ValueError: The file is damaged, or another model's.
    """
    from doxastic.language.state_files import load_state

    file = load_state(path, model)
    rows = file.state.batch_size
    if rows != 1 or file.kind not in kinds:
        what = "a state" if rows == 1 else f"{rows} states"
        raise ConfigError(
            f"--state {path} holds {what} of the kind {file.kind!r}; expected {expected}"
        )
    return file


def base_and_adapter(path: Path, adapter: Path | None) -> tuple[Path, Path | None]:
    """Return where a model lies and the adapter to load onto it, None for none.

    Args:
        path: A model, or a run; one that trained an adapter stands for its base with it.
        adapter: An adapter, or the run that made it.

    Raises:
        ConfigError: The run holds a state, which is no model, or has not finished.
    """
    for named in filter(None, (path, adapter)):
        refuse_unfinished(named)
    is_run = (path / "config.yaml").is_file() and not (path / "model").is_dir()
    if is_run and (path / STATE).is_file():
        raise ConfigError(
            f"{path} is a run that tuned a state; name the model it was tuned for, {_base(path)}, "
            f"and give --state {path / STATE}"
        )
    if is_run and adapter is None and (path / ADAPTER).is_dir():
        path, adapter = _base(path), path
    if adapter is not None and (adapter / ADAPTER).is_dir():
        adapter = adapter / ADAPTER
    return path, adapter


def refuse_unfinished(path: Path) -> None:
    """Return unless the path is a run of training that has not written yet what it learns.

    Raises:
        ConfigError: It is one; the message has the command that goes on with it.
    """
    is_run = (path / "config.yaml").is_file() and (path / "checkpoints").is_dir()
    if not is_run or any((path / name).exists() for name in ("model", ADAPTER, STATE)):
        return
    settings = read_yaml(path / "config.yaml")
    adaptation = settings.get("adaptation") if isinstance(settings, dict) else None
    # Other runs, of agents, have no such section.
    if isinstance(adaptation, dict):
        command = "finetune" if adaptation.get("base") else "pretrain"
        words = shlex.join(["doxastic", "lm", command, "--resume", str(path)])
        raise ConfigError(f"{path} is a run that has not finished; go on with it: {words}")


def refuse_learnt(path: Path) -> None:
    """Return unless what is named as a model is an unfinished run, or was learnt beside a model.

    Args:
        path: A run, a folder or a file that holds no model.

    Raises:
        ConfigError: It is a run that has not finished, or holds an adapter or a state; the message
            has the command that goes on or merges LoRA, or says which model to name instead.
    """
    refuse_unfinished(path)
    places = (path / ADAPTER / "adapter.safetensors", path / "adapter.safetensors", path / STATE)
    file = next((place for place in (path, *places) if place.is_file()), None)
    what = None if file is None else _learnt(file)
    if file is None or what is None:
        return
    folder = file.parent.parent if file.parent.name == ADAPTER else file.parent
    run = folder if (folder / "config.yaml").is_file() else None
    if what == _LORA:
        merged = f"{folder if run else path.with_suffix('')}-merged"
        source = [str(run)] if run else ["BASE", "--adapter", str(path)]
        command = shlex.join(["doxastic", "lm", "convert", source[0], merged, *source[1:]])
        base = "" if run else ", where BASE is the model it was learnt on"
        remedy = f"merge it into its base with {command}{base}, and give --model {merged}"
    else:
        base = f", --model {_base(run)}" if run else ""
        remedy = f"no weight can take that in: name the model it was learnt on{base}"
    raise ConfigError(f"{path} holds {what} and no model; {remedy}")


def _learnt(file: Path) -> str | None:
    """Return what was learnt beside a model and is in the file, or None for anything else."""
    from doxastic.language.formats.files import ModelFileError, read_safetensors

    try:
        names = read_safetensors(file)[0]
    except ModelFileError:
        return None
    kinds = {"state_offset": _OFFSETS, "lora_a": _LORA, "wkv": _STATE}
    ends = {name.rpartition(".")[2] for name in names}
    return next((what for end, what in kinds.items() if end in ends), None)


def _base(run: Path) -> Path:
    """Return the model that a run of fine-tuning started from."""
    settings = read_yaml(run / "config.yaml").get("adaptation")
    if not isinstance(settings, dict) or not settings.get("base"):
        raise ConfigError(f"{run / 'config.yaml'} names no adaptation.base; restore it")
    return Path(settings["base"]).expanduser()


def run_of(path: Path) -> Path | None:
    """Return the run folder that `path` is, or whose `model/` it is, or None."""
    for folder in (path, path.absolute().parent):
        if (folder / "config.yaml").is_file() and (folder / "model").is_dir():
            return folder
    return None


def tokenizer_spec(path: Path, run: Path | None, vocab_size: int) -> str:
    """Return the tokenizer that the run names, that lies beside the model, or the usual one."""
    data = read_yaml(run / "config.yaml").get("data") if run else None
    if isinstance(data, dict) and isinstance(data.get("tokenizer"), str):
        return data["tokenizer"]
    beside = (path if path.is_dir() else path.parent) / "tokenizer.json"
    if beside.is_file():
        return str(beside)
    if vocab_size not in _BY_VOCABULARY:
        raise ConfigError(
            f"{path} has {vocab_size} token ids, which tells no tokenizer; name it with "
            "--tokenizer: bytes, world, world:FILE or a tokenizer.json"
        )
    return _BY_VOCABULARY[vocab_size]
