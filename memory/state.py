"""The state of a recurrent core: named float32 parts in one flat tensor `[B, S]`."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class StateLayout:
    """Where each named part lies in a flat state `[B, S]`.

    Parts follow each other in the order of `shapes`; layouts that differ in a name, a shape or
    the order are different. One layout serves every batch size.

    Example:
        >>> layout = StateLayout({"wkv": (2, 3, 3), "shift": (5,)})
        >>> layout.size, layout.offset("shift")
        (23, 18)
        >>> layout.split(torch.zeros(4, 23))["wkv"].shape
        torch.Size([4, 2, 3, 3])
    """

    shapes: Mapping[str, tuple[int, ...]] = field(hash=False, compare=False)
    """Name of each part -> its shape without the batch dimension."""

    parts: tuple[tuple[str, tuple[int, ...]], ...] = field(init=False, repr=False)
    """The items of `shapes` in order: what two layouts are compared by."""

    size: int = field(init=False, repr=False, compare=False)
    """Width `S` of the flat state."""

    _ranges: dict[str, tuple[int, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Freeze the shapes, check them and lay the parts out."""
        shapes = {name: tuple(int(n) for n in shape) for name, shape in self.shapes.items()}
        ranges, end = {}, 0
        for name, shape in shapes.items():
            if not name or any(n < 1 for n in shape):
                raise ValueError(
                    f"part {name!r} has shape {list(shape)}; expected a name and sizes >= 1. "
                    "Leave a part out instead of giving it no elements."
                )
            start, end = end, end + math.prod(shape)
            ranges[name] = (start, end)
        object.__setattr__(self, "shapes", shapes)
        object.__setattr__(self, "parts", tuple(shapes.items()))
        object.__setattr__(self, "size", end)
        object.__setattr__(self, "_ranges", ranges)

    def offset(self, name: str) -> int:
        """Return the column of the flat state at which the part begins."""
        return self._range(name)[0]

    def part(self, flat: Tensor, name: str) -> Tensor:
        """Return one part of the flat state `[B, S]` as a view `[B, *shape]`."""
        start, end = self._range(name)
        self._check_flat(flat)
        return flat[:, start:end].view(flat.shape[0], *self.shapes[name])

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return every part of the flat state `[B, S]` as a view `[B, *shape]`, in order."""
        self._check_flat(flat)
        batch = flat.shape[0]
        return {
            name: flat[:, start:end].view(batch, *self.shapes[name])
            for name, (start, end) in self._ranges.items()
        }

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the flat state `[B, S]`, a copy of the parts `[B, *shape]`."""
        if parts.keys() != self.shapes.keys():
            raise ValueError(f"parts are {sorted(parts)}; expected exactly {sorted(self.shapes)}.")
        batch = next((part.shape[0] for part in parts.values() if part.ndim), 0)
        for name, shape in self.parts:
            if parts[name].shape != (batch, *shape):
                raise ValueError(
                    f"part {name!r} has shape {list(parts[name].shape)}; expected "
                    f"[B, *shape] = {[batch, *shape]}."
                )
        columns = [
            parts[name].reshape(batch, end - start) for name, (start, end) in self._ranges.items()
        ]
        return torch.cat(columns, dim=1) if columns else torch.zeros(batch, 0)

    def _range(self, name: str) -> tuple[int, int]:
        if name not in self._ranges:
            raise ValueError(f"the state has no part {name!r}; it has {list(self.shapes)}.")
        return self._ranges[name]

    def _check_flat(self, flat: Tensor) -> None:
        if flat.ndim != 2 or flat.shape[1] != self.size:
            raise ValueError(
                f"flat state has shape {list(flat.shape)}; expected [B, S] with S = {self.size} "
                f"for the parts {dict(self.shapes)}."
            )


@dataclass(frozen=True, eq=False)
class CoreState:
    """A batch of states under one layout; `state["wkv"]` is a view `[B, *shape]`."""

    layout: StateLayout
    """Names and shapes of the parts."""

    flat: Tensor
    """The state itself, `[B, S]` float32."""

    def __post_init__(self) -> None:
        """Check that the tensor fits the layout."""
        self.layout._check_flat(self.flat)
        if self.flat.dtype != torch.float32:
            raise ValueError(f"flat state is {self.flat.dtype}; expected torch.float32.")

    @property
    def batch_size(self) -> int:
        """Number of rows `B`."""
        return self.flat.shape[0]

    def __getitem__(self, name: str) -> Tensor:
        """Return the part called `name` as a view `[B, *shape]`."""
        return self.layout.part(self.flat, name)

    def reset(self, mask: Tensor) -> CoreState:
        """Return the state with the rows cleared where `mask` (`[B]` bool) is true.

        No gradient and no NaN of a cleared row passes.
        """
        if mask.shape != (self.batch_size,) or mask.dtype != torch.bool:
            raise ValueError(
                f"mask is {list(mask.shape)} {mask.dtype}; expected [B] = "
                f"[{self.batch_size}] torch.bool."
            )
        return CoreState(self.layout, self.flat.masked_fill(mask[:, None], 0.0))

    def index(self, rows: Tensor | Sequence[int] | slice) -> CoreState:
        """Return the state of the given rows, in that order; rows may repeat."""
        chosen = rows if isinstance(rows, slice | Tensor) else list(rows)
        return CoreState(self.layout, self.flat[chosen])

    def clone(self) -> CoreState:
        """Return an independent copy."""
        return CoreState(self.layout, self.flat.clone())

    def to(self, device: torch.device | str) -> CoreState:
        """Return the state on this device, itself if it is there; gradients flow back."""
        return CoreState(self.layout, self.flat.to(device))

    def save(self, path: str | Path) -> None:
        """Write the parts to a safetensors file with the layout in its metadata.

        The file appears whole or not at all.
        """
        from safetensors.torch import save

        parts = self.layout.split(self.flat.detach().cpu())
        tensors = {name: part.contiguous() for name, part in parts.items()}
        _write_atomically(Path(path), save(tensors, {"layout": _encode(self.layout)}))

    @staticmethod
    def load(
        path: str | Path, layout: StateLayout, device: torch.device | str = "cpu"
    ) -> CoreState:
        """Return the state saved in the file.

        Raises:
            ValueError: If the file holds no state, or one of another layout.
        """
        from safetensors import safe_open

        with safe_open(str(path), framework="pt", device=str(device)) as file:
            stored = (file.metadata() or {}).get("layout")
            if stored != _encode(layout):
                raise ValueError(
                    f"{path} holds a state with the layout {stored}; expected "
                    f"{_encode(layout)}. Load it with the model that saved it."
                )
            parts = {name: file.get_tensor(name) for name in layout.shapes}
        return CoreState(layout, layout.join(parts))


def _encode(layout: StateLayout) -> str:
    return json.dumps(layout.parts)


def _write_atomically(path: Path, content: bytes) -> None:
    # Of this thread: others may be writing the same file.
    writer = f"{os.getpid()}.{threading.get_ident()}"
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
