"""The layout of flash-linear-attention's RWKV7ForCausalLM, which Hugging Face repositories have.

Tensors have other names, and the low-rank maps are stored as those of `nn.Linear`: transposed. The
first layer has no value residual at all. Older files keep the six mixes of the token shift in one
tensor `attn.x_x`.

A state differs too. Its `recurrent_state` is `[B, H, K, V]`, the transpose of our `[B, H, V, K]`;
`conv_state` and `ffn_state` are our `time_shift` and `channel_shift`.

Source: flash-linear-attention, fla/models/rwkv7 and utils/convert_from_rwkv7.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doxastic.language.config import LanguageConfig
from doxastic.language.formats.files import ModelFileError
from doxastic.language.formats.tensors import UNUSED, Shape, Spelling

_TOP = {
    "emb.weight": "model.embeddings.weight",
    "ln_out.weight": "model.norm.weight",
    "ln_out.bias": "model.norm.bias",
    "head.weight": "lm_head.weight",
}
_NORMS = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm", "att.ln_x": "attn.g_norm"}
_PROJECTIONS = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
_LOW_RANK = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}
_MIXES = "rwkvag"
"""The mixes of the token shift in the order of an old file's `attn.x_x`."""

_BLOCK = {
    **{f"{ours}.{end}": f"{theirs}.{end}"
       for ours, theirs in _NORMS.items() for end in ("weight", "bias")},
    **{f"att.x_{letter}": f"attn.x_{letter}" for letter in _MIXES},
    **{f"att.{letter}{part}": f"attn.{letter}_lora.lora.{end}"
       for letter in "wavg" for part, end in _LOW_RANK.items()},
    **{f"att.{name}": f"attn.{name}" for name in ("k_k", "k_a", "r_k")},
    **{f"att.{ours}.weight": f"attn.{theirs}.weight" for ours, theirs in _PROJECTIONS.items()},
    **{name: name for name in ("ffn.x_k", "ffn.key.weight", "ffn.value.weight")},
}  # fmt: skip
_OURS = {theirs: ours for ours, theirs in _BLOCK.items()}
_OUR_TOP = {theirs: ours for ours, theirs in _TOP.items()}

_TRANSPOSED = re.compile(r"\.att\.[wavg][12]$")
# What flash-linear-attention can vary and RWKV-7 does not; null is its default, as given here.
_FIXED = {
    "attn": None,
    "hidden_act": "sqrelu",
    "norm_first": True,
    "norm_bias": True,
    "tie_word_embeddings": False,
}


def has_these_names(names: Mapping[str, Any]) -> bool:
    """Return whether the tensors have the names of this layout."""
    return any(name.startswith("model.layers.") or name in _OUR_TOP for name in names)


def their_name(name: str) -> str:
    """Return the name that a tensor of ours has in this layout; an unknown one stays as it is."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if found and found[2] in _BLOCK:
        return f"model.layers.{found[1]}.{_BLOCK[found[2]]}"
    return _TOP.get(name, name)


def our_name(name: str) -> str:
    """Return our name for a tensor of this layout; an unknown one stays as it is."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if found and found[2] in _OURS:
        return f"blocks.{found[1]}.{_OURS[found[2]]}"
    return _OUR_TOP.get(name, name)


def _their_shape(name: str, shape: Shape) -> Shape:
    return shape[::-1] if _TRANSPOSED.search(name) else shape


SPELLING = Spelling(their_name, _their_shape)


def from_theirs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with our names and orientation."""
    ours: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".attn.x_x") and tensor.shape[0] == len(_MIXES):
            for letter, mix in zip(_MIXES, tensor, strict=True):
                ours[our_name(f"{name.removesuffix('x')}{letter}")] = mix
            continue
        own = our_name(name)
        ours[own] = _transposed(own, tensor)
    return ours


def to_theirs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the names, the orientation and the shapes of this layout."""
    theirs = {}
    for name, tensor in tensors.items():
        if name not in UNUSED:
            is_mix = re.search(r"\.att\.x_[a-z]$", name)
            own = tensor[None, None] if is_mix else _transposed(name, tensor)
            theirs[their_name(name)] = own
    return theirs


def their_config(config: LanguageConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return the content of config.json.

    `group_norm_eps` is a key of ours: flash-linear-attention does not read it, it computes
    `head_dim norm_eps`. Both are the same here, or the model is refused.

    Raises:
        ModelFileError: flash-linear-attention would compute another model.
    """
    _check_representable(config)
    end = {257: 256, 65536: 0}.get(config.vocab_size)
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "attn_mode": "chunk",
        "hidden_size": config.width,
        "hidden_ratio": config.hidden / config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "head_dim": config.head_size,
        "num_heads": config.heads,
        **_rank_keys(config),
        "value_dim": [config.width] * config.layers,
        "norm_eps": config.norm_eps,
        "group_norm_eps": config.group_norm_eps,
        "fuse_norm": False,
        **_FIXED,
        "vocab_size": config.vocab_size,
        "bos_token_id": end,
        "eos_token_id": end,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }


def check_options(settings: Mapping[str, Any], where: Path) -> None:
    """Return if config.json describes RWKV-7 without additions.

    Raises:
        ModelFileError: It is another model's, or has an option that is not supported.
    """
    kind = str(settings.get("model_type"))
    if not kind.startswith("rwkv7"):
        raise ModelFileError(
            f"{where}: model_type is {kind!r}; expected 'rwkv7'. Other models are not supported."
        )
    for key, value in {**_FIXED, "quantization_config": None}.items():
        if settings.get(key, value) != value:
            raise ModelFileError(
                f"{where}: {key} is {settings[key]!r}; expected {value!r}. This option of "
                "flash-linear-attention is not supported."
            )


def check_same_model(settings: Mapping[str, Any], config: LanguageConfig, where: Path) -> None:
    """Return if config.json describes the model that the tensors are.

    Raises:
        ModelFileError: They differ; the message names the key.
    """
    found = {
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "head_dim": config.head_size,
        "num_heads": config.heads,
        "vocab_size": config.vocab_size,
        "value_dim": [config.width] * config.layers,
        **_rank_keys(config),
        "norm_eps": config.norm_eps,
        "group_norm_eps": config.group_norm_eps,
    }
    if config.layers == 1:
        del found["v_low_rank_dim"]  # No tensor tells it.
    for key, value in found.items():
        stated = settings.get(key)
        if stated is not None and stated != value:
            raise ModelFileError(
                f"{where}: {key} is {stated}; the file of the tensors has {value}. The two files "
                "belong to different models."
            )


def eps_of(settings: Mapping[str, Any], where: Path) -> tuple[float, float | None]:
    """Return the eps of layer norms and group norm; None where config.json is not ours."""
    eps, group = settings.get("norm_eps", 1e-5), settings.get("group_norm_eps")
    for key, value in (("norm_eps", eps), ("group_norm_eps", group)):
        if value is not None and not (isinstance(value, float | int) and 0 < value < math.inf):
            raise ModelFileError(f"{where}: {key} is {value!r}; expected a number above 0.")
    return eps, group


def _check_representable(config: LanguageConfig) -> None:
    if config.double_rate or config.deep_embed != "none":
        option = "double_rate" if config.double_rate else f"deep_embed {config.deep_embed!r}"
        raise ModelFileError(
            f"the Hugging Face layout has no place for {option}; write safetensors instead."
        )
    theirs = config.head_size * config.norm_eps
    if not math.isclose(theirs, config.group_norm_eps, rel_tol=1e-9):
        raise ModelFileError(
            f"the group norm's eps is {config.group_norm_eps:g}, but flash-linear-attention would "
            f"compute head_dim norm_eps = {theirs:g} with heads of {config.head_size}: other "
            "outputs from the same tensors. Write safetensors or .pth instead; only heads of 64 "
            f"agree, or a model trained with group_norm_eps = {theirs:g}."
        )


def _rank_keys(config: LanguageConfig) -> dict[str, int]:
    keys = ("decay_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim")
    return dict(zip(keys, config.ranks, strict=True))


def _transposed(name: str, tensor: Tensor) -> Tensor:
    is_stored_so = _TRANSPOSED.search(name) and tensor.ndim == 2
    return tensor.t().contiguous() if is_stored_so else tensor
