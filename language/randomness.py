"""A trainer's own random state, apart from the global one, so that nothing else disturbs it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from doxastic.language.distributed import Ranks


class RandomState:
    """A context in which PyTorch's global generators are this trainer's.

    Leaving it gives the caller's back: what is drawn between two updates, for samples say, changes
    neither the training nor its resumption.

    Args:
        device: Whose generator is kept beside the CPU's.
        seed: Every process gets another sequence of it.
        ranks: The processes.
    """

    def __init__(self, device: torch.device, seed: int, ranks: Ranks) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._seed, self._ranks = seed, ranks
        self.tensors: dict[str, Tensor] = {}
        """State of each generator, uint8; replaced, never changed in place."""
        self._begin(0)

    def __enter__(self) -> None:
        """Make the global generators ours."""
        self._callers = self._read()
        self._write(self.tensors)

    def __exit__(self, *exception: object) -> None:
        """Keep where ours stand, and give the caller's back."""
        self.tensors = self._read()
        self._write(self._callers)

    def restore(self, stacked: Mapping[str, Tensor], update: int) -> None:
        """Take this process's state from those of all, each `[world, ...]`.

        A run that goes on with other processes, or on another kind of device, begins a new
        sequence, the same each time.
        """
        fits = all(len(x) == self._ranks.world for x in stacked.values())
        if fits and stacked.keys() == self.tensors.keys():
            self.tensors = {name: x[self._ranks.rank].clone() for name, x in stacked.items()}
        else:
            self._begin(update)

    def _begin(self, update: int) -> None:
        """Start the sequence of this seed, process and update."""
        text = f"{self._seed} {self._ranks.rank} {update}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
        self.tensors = {"cpu": torch.Generator().manual_seed(seed).get_state()}
        if self._cuda is not None:
            self.tensors["cuda"] = torch.Generator(self._cuda).manual_seed(seed).get_state()

    def _read(self) -> dict[str, Tensor]:
        tensors = {"cpu": torch.get_rng_state()}
        if self._cuda is not None:
            tensors["cuda"] = torch.cuda.get_rng_state(self._cuda)
        return tensors

    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(tensors["cpu"])
        if self._cuda is not None:
            torch.cuda.set_rng_state(tensors["cuda"], self._cuda)
