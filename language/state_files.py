"""A state on the disk together with the model it belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from doxastic.language.config import LanguageConfig
from doxastic.language.formats.files import read_safetensors
from doxastic.language.formats.replacing import write_safetensors
from doxastic.language.model import LanguageModel
from doxastic.memory.state import CoreState, StateLayout

# Numbers hashed at a time, so that a large matrix is not copied whole.
_PIECE = 1 << 22

Kind = Literal["initial", "text", "chat", "prompts"]
"""What a state has read: nothing (it was tuned), a text, a conversation, or several prompts."""


class StateFile(NamedTuple):
    """What a file of states holds."""

    state: CoreState
    """The states."""

    extra: dict[str, Tensor]
    """The tensors that were written beside them."""

    kind: str
    """A `Kind`; `initial` in a file that `CoreState.save` wrote."""


def model_identity(model: LanguageModel) -> str:
    """Return a digest of the model's configuration and weights.

    Equal weights in float32, bfloat16 or on another device have the same; any change has another.
    """
    return weights_identity(model.config, model.state_dict())


def weights_identity(config: LanguageConfig, weights: Mapping[str, Tensor]) -> str:
    """Return `model_identity` of the model that is made of these."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        for piece in tensor.detach().flatten().split(_PIECE):
            digest.update(piece.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()


def save_state(
    path: str | Path,
    state: CoreState,
    model: LanguageModel,
    *,
    kind: Kind = "initial",
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write states and their model's identity to a safetensors file, whole or not at all.

    `CoreState.load` reads the states in it too.

    Args:
        path: The file.
        state: The states.
        model: Whose states they are.
        kind: What they are of.
        extra: Tensors to write beside them; no name may be that of a part.
    """
    parts = state.layout.split(state.flat.detach().cpu())
    header = {
        "layout": json.dumps(state.layout.parts),
        "model": model_identity(model),
        "kind": kind,
    }
    write_safetensors(Path(path), {**parts, **(extra or {})}, header)


def load_state(path: str | Path, model: LanguageModel) -> StateFile:
    """Return what `save_state` or `CoreState.save` wrote, the states beside the model's weights.

    Raises:
        ValueError: The file is damaged, holds no states, or those of another model.
    """
    path = Path(path)
    tensors, header = read_safetensors(path)
    layout, identity = header.get("layout"), header.get("model")
    if layout != json.dumps(model.layout.parts):
        found = "no state" if layout is None else "a state of other sizes"
        raise ValueError(
            f"{path} holds {found}; expected one with the parts {dict(model.layout.shapes)}. Load "
            "it with the model that saved it."
        )
    if identity is not None and identity != (own := model_identity(model)):
        raise ValueError(
            f"{path} holds a state of another model, {identity[:12]}; this one is {own[:12]}: a "
            "state means nothing to other weights. Load it with the model that saved it."
        )
    state = CoreState(model.layout, _joined(path, tensors, model.layout))
    state = state.to(model.emb.weight.device)
    return StateFile(state, tensors, header.get("kind", "initial"))


def _joined(path: Path, tensors: dict[str, Tensor], layout: StateLayout) -> Tensor:
    """Return the flat states `[B, S]` made of the parts in a file, which are taken from it.

    Raises:
        ValueError: A part is missing, or of another shape or dtype.
    """
    parts: dict[str, Tensor] = {}
    rows: int | None = None
    for name, shape in layout.parts:
        part = tensors.pop(name, None)
        if (
            part is None
            or part.dtype != torch.float32
            or part.shape[1:] != shape
            or rows not in (None, len(part))
        ):
            found = "missing" if part is None else f"{list(part.shape)} {part.dtype}"
            expected = ", ".join(map(str, ("B" if rows is None else rows, *shape)))
            raise ValueError(
                f"{path}: the part {name} is {found}; expected [{expected}] torch.float32. The "
                "file is damaged."
            )
        parts[name], rows = part, len(part)
    return layout.join(parts)
