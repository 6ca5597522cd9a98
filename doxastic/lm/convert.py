"""`doxastic lm convert` and `doxastic lm info`: language models as files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from doxastic.configuration import ConfigError
from doxastic.disk import check_output
from doxastic.lm.loading import base_and_adapter, refuse_learnt
from doxastic.options import parse

if TYPE_CHECKING:
    import torch

    from doxastic.language.config import LanguageConfig
    from doxastic.language.formats import Checkpoint

_CONVERT_HELP = """\
Write a language model in another format; tensors keep every bit, and their dtype.

formats:
  pth          one file, as RWKV-LM, the rwkv package and RWKV Runner read it
  safetensors  a folder with model.safetensors and config.json, or, where DESTINATION ends with
               .safetensors, that file alone; it holds every option of a model
  hf           a folder as flash-linear-attention and Hugging Face's loaders read it; llama.cpp's
               converter to GGUF takes it too

SOURCE is of any of these, whole or cut into parts, or the folder of a training run; a run of LoRA
stands for its base with the updates merged. Tokenizer files are not copied.

examples:
  doxastic lm convert rwkv7-g1.pth rwkv7-g1/
  doxastic lm convert rwkv7-g1.pth rwkv7-g1-hf/ --format hf
  doxastic lm convert runs/tiny tiny.pth --dtype bfloat16
  doxastic lm convert rwkv7-g1.pth mine.pth --adapter runs/finetune-lora"""

_INFO_HELP = """\
Say what is in a file or folder of a language model: sizes, options, dtype, format.

examples:
  doxastic lm info rwkv7-g1.pth
  doxastic lm info runs/tiny"""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What is converted to what."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """A .pth, a .safetensors file, a folder, or a training run."""
    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DESTINATION")]
    """The new file or folder; what stands there is replaced once the new one is whole."""
    format: Literal["pth", "safetensors", "hf"] | None = None
    """The new format; by default pth where DESTINATION ends with .pth, else safetensors."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype of every tensor; by default each one keeps its own."""
    adapter: Path | None = None
    """Merge this LoRA into the weights: the folder of an adapter, or the run that made it."""


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """What is described."""

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PATH")]
    """A .pth, a .safetensors file, a folder, or a training run."""


def convert(words: Sequence[str]) -> None:
    """Run `doxastic lm convert`."""
    options = parse(ConvertOptions, words, "doxastic lm convert", _CONVERT_HELP)
    import torch

    from doxastic.language.formats import convert as convert_model
    from doxastic.language.formats import destination, write_checkpoint

    _, weights = destination(options.destination, options.format)
    check_output(weights, "DESTINATION")
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    source, adapter = base_and_adapter(options.source, options.adapter)
    source = _model_in(source)
    if adapter is None:
        checkpoint = convert_model(source, options.destination, format=options.format, dtype=dtype)
    else:
        checkpoint = _merged(source, adapter, dtype)
        write_checkpoint(checkpoint, options.destination, options.format)
    print(f"wrote {options.destination}: {_parameters(checkpoint):,} parameters")


def _merged(source: Path, adapter: Path, dtype: torch.dtype | None) -> Checkpoint:
    """Return the model at `source` with an adapter in its weights, by default in their dtypes."""
    import torch

    from doxastic.language.adaptation import load_adapter
    from doxastic.language.adaptation.lora import adapted_layers
    from doxastic.language.adaptation.state_offset import offsets
    from doxastic.language.formats import load_model, read_checkpoint
    from doxastic.language.formats.checkpoint import converted

    checkpoint = read_checkpoint(source)
    # In half precision small updates would be rounded away.
    model = load_model(source, dtype=torch.promote_types(checkpoint.dtype, torch.float32))
    load_adapter(model, adapter)
    if odd := sorted(offsets(model)):
        raise ConfigError(
            f"{adapter} has {odd[0]}, which no weight can take in; use it with --adapter instead"
        )
    # What the adapter leaves alone keeps every bit.
    layers = adapted_layers(model)
    merged = {f"{name}.weight": layer.weight.detach() for name, layer in layers.items()}
    own = {
        name: converted(name, merged.get(name, tensor), dtype or tensor.dtype)
        for name, tensor in checkpoint.tensors.items()
    }
    return dataclasses.replace(checkpoint, tensors=own)


def info(words: Sequence[str]) -> None:
    """Run `doxastic lm info`."""
    options = parse(InfoOptions, words, "doxastic lm info", _INFO_HELP)
    from doxastic.language.formats import ModelFileError, read_checkpoint

    try:
        checkpoint = read_checkpoint(_model_in(options.path))
    except ModelFileError:
        refuse_learnt(options.path)
        raise
    for key, value in _description(checkpoint).items():
        print(f"{key:<14} {value}")


def _model_in(path: Path) -> Path:
    """Return the model's folder in that of a training run; any other path as it is."""
    is_run = (path / "config.yaml").is_file() and (path / "model").is_dir()
    return path / "model" if is_run else path


def _description(checkpoint: Checkpoint) -> dict[str, str]:
    config = checkpoint.config
    state = config.layers * (2 * config.width + config.width * config.head_size)
    return {
        "model": _name(config),
        "format": {"pth": "pth of RWKV-LM", "hf": "Hugging Face (flash-linear-attention)"}.get(
            checkpoint.format, checkpoint.format
        ),
        "parameters": f"{_parameters(checkpoint):,}",
        "dtype": ", ".join(str(dtype).removeprefix("torch.") for dtype in checkpoint.dtypes),
        "size": _size(sum(tensor.nbytes for tensor in checkpoint.weights.values())),
        "state": f"{_size(4 * state)} for each sequence, of any length",
        "layers": str(config.layers),
        "width": f"{config.width}, {config.heads} heads of {config.head_size}",
        "hidden width": str(config.hidden),
        "ranks": ", ".join(f"{name} {rank}" for name, rank in config.ranks._asdict().items()),
        "norm eps": f"{config.norm_eps:g}, of the groups {config.group_norm_eps:g}",
        "vocabulary": f"{config.vocab_size:,} tokens; {_tokenizer(config.vocab_size)}",
    }


def _name(config: LanguageConfig) -> str:
    name = {"none": "RWKV-7 (x070)", "matrix": "RWKV-7a (DeepEmbed)", "vector": "RWKV-8 rc00"}
    return name[config.deep_embed] + (", rate doubled" if config.double_rate else "")


def _tokenizer(vocab_size: int) -> str:
    """Return the tokenizer that models with so many tokens have."""
    known = {
        257: "probably bytes (--tokenizer bytes)",
        65530: "probably RWKV World (--tokenizer world)",
        65536: "probably RWKV World (--tokenizer world)",
        50277: "probably that of the Pile (GPT-NeoX's tokenizer.json)",
        50304: "probably that of the Pile (GPT-NeoX's tokenizer.json), padded",
    }
    return known.get(vocab_size, "of no tokenizer known here: name its tokenizer.json")


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(tensor.numel() for tensor in checkpoint.weights.values())


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
