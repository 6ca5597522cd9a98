"""Loading, saving and converting language models."""

from __future__ import annotations

from pathlib import Path

import torch

from doxastic.language.formats.checkpoint import Checkpoint, FileFormat, converted
from doxastic.language.formats.reading import read_checkpoint
from doxastic.language.formats.tensors import blank_model
from doxastic.language.formats.writing import write_checkpoint
from doxastic.language.model import LanguageModel


def load_model(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> LanguageModel:
    """Return the model in a file or folder of any of the three formats; see `read_checkpoint`.

    Args:
        path: A .pth, a .safetensors file or a folder.
        device: Where its weights go.
        dtype: Their dtype; None for the file's, the widest where it has several.
    """
    checkpoint = read_checkpoint(path)
    dtype = checkpoint.dtype if dtype is None else dtype
    # Nothing is initialised, which for billions of weights would take minutes.
    model = blank_model(checkpoint.config)
    weights = {}
    for name, tensor in checkpoint.weights.items():
        own = converted(name, tensor, dtype).to(device)
        # Not the file's own pages: a file that shrinks later would end the process.
        weights[name] = own.clone() if own.data_ptr() == tensor.data_ptr() else own
    model.load_state_dict(weights, assign=True)
    return model


def save_model(model: LanguageModel, path: str | Path, *, format: FileFormat | None = None) -> None:
    """Write a model's weights and configuration; see `write_checkpoint`."""
    checkpoint = Checkpoint(config=model.config, tensors=model.state_dict(), format="safetensors")
    write_checkpoint(checkpoint, path, format)


def convert(
    source: str | Path, destination: str | Path,
    *, format: FileFormat | None = None, dtype: torch.dtype | None = None,
) -> Checkpoint:  # fmt: skip
    """Write the model at `source` to `destination`, and return it.

    Args:
        source: What `read_checkpoint` reads.
        destination: What `write_checkpoint` writes.
        format: None to go by the destination's name, as `write_checkpoint` does.
        dtype: Of every tensor; None to keep each one's.
    """
    checkpoint = read_checkpoint(source)
    if dtype is not None:
        checkpoint = checkpoint.to(dtype)
    write_checkpoint(checkpoint, destination, format)
    return checkpoint
