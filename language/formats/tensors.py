"""The tensors of an RWKV-7 language model: which there are, and what their shapes say.

Here and in every other file of this room tensors have RWKV-LM's names, and vectors are `[C]`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from doxastic.language.config import DeepEmbedKind, LanguageConfig
from doxastic.language.formats.files import ModelFileError
from doxastic.language.model import LanguageModel
from doxastic.memory.time_mix import LowRanks

Shape = tuple[int, ...]

UNUSED = ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")
"""The value residual of the first layer: in RWKV-LM's files, read by no program."""

# Stored as [1, 1, n] by RWKV-LM.
_BROADCAST = re.compile(r"\.(x_[a-z]|[wav]0|k_k|k_a|s0)$")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Spelling:
    """How a file spells a tensor: messages name what its reader finds there."""

    name: Callable[[str], str] = lambda name: name
    """Our name -> the file's."""

    shape: Callable[[str, Shape], Shape] = lambda name, shape: shape
    """Our name and shape -> the file's shape."""


class _Blank(TorchFunctionMode):
    """Leaves weights without numbers: those of `torch.empty` are put on the meta device.

    Random filling is skipped. It takes minutes for billions of weights; on the meta device it takes
    none, but loads PyTorch's compiler, a second each time a model is read.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return what the function returns, or the tensor that it would have filled."""
        kwargs = kwargs or {}
        if function is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        if getattr(function, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def blank_model(config: LanguageConfig) -> LanguageModel:
    """Return a model whose weights have shapes and, the large ones, no numbers."""
    with _Blank():
        return LanguageModel(config)


@functools.lru_cache(maxsize=8)
def expected_shapes(config: LanguageConfig) -> Mapping[str, Shape]:
    """Return the name and shape of every tensor of the model."""
    tensors = blank_model(config).state_dict()
    return MappingProxyType({name: tuple(tensor.shape) for name, tensor in tensors.items()})


def without_leading_ones(name: str, tensor: Tensor) -> Tensor:
    """Return a vector as `[n]` and a matrix as `[m, n]`, whatever ones its shape begins with."""
    is_vector = _BROADCAST.search(name) or name.endswith(".bias") or ".ln" in f".{name}"
    while tensor.ndim > (1 if is_vector else 2) and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor


def with_leading_ones(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor as RWKV-LM stores it: the vectors that broadcast over time `[1, 1, n]`."""
    return tensor[None, None] if _BROADCAST.search(name) else tensor


def placeholders(config: LanguageConfig) -> dict[str, Tensor]:
    """Return zeros for what RWKV-LM's files have in the first layer and no program reads."""
    width, rank = config.width, config.ranks.value
    shapes = dict(zip(UNUSED, ((width,), (width, rank), (rank, width)), strict=True))
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def infer_config(
    tensors: Mapping[str, Tensor], where: Path, spelling: Spelling,
    *, norm_eps: float, group_norm_eps: float | None,
) -> LanguageConfig:  # fmt: skip
    """Return the sizes that the shapes tell, with the given eps, which no tensor tells.

    Args:
        tensors: With our names.
        where: The file, for messages.
        spelling: The file's names, for messages.
        norm_eps: Of the layer norms.
        group_norm_eps: Of the time mix's group norm; None for `norm_eps` times the head's width,
            which flash-linear-attention computes.

    Raises:
        ModelFileError: A tensor that tells a size is missing or is no matrix.
    """

    def sizes(name: str) -> Shape:
        if name not in tensors:
            raise _missing(where, [spelling.name(name)])
        if tensors[name].ndim != 2:
            raise ModelFileError(
                f"{where}: {spelling.name(name)} has shape {list(tensors[name].shape)}; expected "
                "a matrix."
            )
        return tuple(tensors[name].shape)

    def rank(letter: str, layer: int = 0) -> int:
        return sizes(f"blocks.{layer}.att.{letter}1")[1]

    vocab, width = sizes("emb.weight")
    layers = 1 + max(
        (int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))),
        default=0,
    )
    head_size = sizes("blocks.0.att.r_k")[1]
    if width % head_size:
        raise ModelFileError(
            f"{where}: {spelling.name('blocks.0.att.r_k')} has shape "
            f"{list(sizes('blocks.0.att.r_k'))}; expected [H, N] with H N = {width}, the width of "
            f"{spelling.name('emb.weight')}."
        )
    # A single layer has no value residual, so its rank is read by nobody.
    value = rank("v", 1) if layers > 1 else rank("a")
    eps = group_norm_eps or float(f"{head_size * norm_eps:.12g}")
    return LanguageConfig(
        vocab_size=vocab, width=width, layers=layers, head_size=head_size,
        hidden_size=sizes("blocks.0.ffn.key.weight")[0],
        low_ranks=LowRanks(rank("w"), rank("a"), value, rank("g")),
        norm_eps=norm_eps, group_norm_eps=eps, deep_embed=_deep_embed(tensors),
    )  # fmt: skip


def check_tensors(
    tensors: Mapping[str, Tensor], config: LanguageConfig, where: Path, spelling: Spelling
) -> None:
    """Return if the tensors are exactly those of the configuration, as floating numbers.

    Raises:
        ModelFileError: A tensor is missing, unknown, quantised or of another shape.
    """
    expected = expected_shapes(config)
    if missing := [spelling.name(name) for name in expected if name not in tensors]:
        raise _missing(where, missing)
    if extra := [spelling.name(n) for n in tensors if n not in expected and n not in UNUSED]:
        raise ModelFileError(
            f"{where} has {_list(extra)}, which RWKV-7 (x070) has not; expected the "
            f"{len(expected)} tensors of {config.layers} layers alone. It may be a variant or "
            "carry an adapter: merge or remove what was added."
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS or tensor.layout != torch.strided or tensor.is_quantized:
            raise ModelFileError(
                f"{where}: {spelling.name(name)} is {tensor.dtype}; expected float32, bfloat16, "
                "float16 or float64. Quantised models are not supported: take the original."
            )
    for name, shape in expected.items():
        if (found := tuple(tensors[name].shape)) != shape:
            raise ModelFileError(
                f"{where}: {spelling.name(name)} has shape {list(spelling.shape(name, found))}; "
                f"expected {list(spelling.shape(name, shape))} in a model of width "
                f"{config.width}, {config.layers} layers and heads of {config.head_size}. Its "
                "file is damaged, or another model's."
            )


def _deep_embed(tensors: Mapping[str, Tensor]) -> DeepEmbedKind:
    if "blocks.0.ffn.s_emb.weight" in tensors:
        return "matrix"
    return "vector" if "blocks.0.ffn.enn.weight" in tensors else "none"


def _missing(where: Path, names: list[str]) -> ModelFileError:
    return ModelFileError(
        f"{where} lacks {_list(names)}; expected every tensor of an RWKV-7 (x070) model. It is "
        "incomplete, or another model's."
    )


def _list(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
