"""What a step of training computes: from a window of tokens and a state to a loss and a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from doxastic.language.distributed import assign
from doxastic.language.losses import cross_entropy_sum
from doxastic.language.training_config import TrainingConfig
from doxastic.memory.state import CoreState

if TYPE_CHECKING:
    from doxastic.language.batches import Batch
    from doxastic.language.model import LanguageModel

StartState = Callable[[int], CoreState]
"""From a number of rows to the state that documents begin with."""


class Window(NamedTuple):
    """A window of a batch on the device of the model, `[B, T]` each."""

    tokens: Tensor
    targets: Tensor
    reset: Tensor
    counted: Tensor | None
    """Flat indices `[N]` of the targets that count; None for all of them."""


class Objective(nn.Module):
    """The loss of a window as a module, so that DDP and FSDP2 can wrap all that is trained.

    Args:
        model: The language model.
        start_state: Gives the state of rows that begin; by default zeros. A module is trained
            with the model.
        config: Penalties and precision.
    """

    def __init__(
        self, model: LanguageModel, start_state: StartState | None, config: TrainingConfig
    ) -> None:
        super().__init__()
        self.model = model
        self.start_state = model.initial_state if start_state is None else start_state
        self._penalties = (config.z_loss, config.logit_penalty)
        self._in_bfloat16 = config.precision == "bfloat16"
        self._has_own_start = start_state is not None

    def window(self, batch: Batch) -> Window:
        """Return the batch on the model's device.

        Raises:
            ValueError: If a document begins where `start_state` cannot be given to it, or an id is
                out of range.
        """
        device = self.model.emb.weight.device
        _check_ids(batch, self.model.config.vocab_size)
        counted = None if bool(batch.mask.all()) else batch.mask.flatten().nonzero()[:, 0]
        reset = _without_first(batch) if self._has_own_start else batch.reset
        return Window(
            batch.tokens.to(device, non_blocking=True),
            batch.targets.to(device, non_blocking=True),
            reset.to(device, non_blocking=True),
            None if counted is None else counted.to(device, non_blocking=True),
        )

    def forward(self, window: Window, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summed loss, the summed cross entropy and the last state, `[B, S]` float32.

        Args:
            window: What is read.
            state: The state before it, `[B, S]`; None for `start_state`.
        """
        kind = window.tokens.device.type
        before = (
            self.start_state(len(window.tokens))
            if state is None
            else CoreState(self.model.layout, state)
        )
        with torch.autocast(kind, torch.bfloat16, enabled=self._in_bfloat16):
            features, after = self.model.features(window.tokens, before, window.reset)
            features, targets = features.flatten(0, 1), window.targets.flatten()
            if window.counted is not None:
                features, targets = features[window.counted], targets[window.counted]
            z_loss, logit_penalty = self._penalties
            loss = cross_entropy_sum(
                features,
                self.model.head,
                targets,
                z_loss=z_loss,
                logit_penalty=logit_penalty,
            )
        return loss.total, loss.cross_entropy, after.flat

    def tensors(self, saves: Callable[[str], bool]) -> dict[str, Tensor]:
        """Return the weights that are saved, by name; their storage is that of the modules."""
        named = {tensor_name(name): tensor for name, tensor in self.state_dict().items()}
        return {name: tensor for name, tensor in named.items() if saves(name)}

    def load(self, weights: Mapping[str, Tensor], saves: Callable[[str], bool]) -> None:
        """Take back what was saved of `tensors`, as whole tensors.

        Raises:
            ValueError: If it is another model's.
        """
        own = self.tensors(saves)
        if odd := sorted(own.keys() ^ weights.keys()):
            raise ValueError(f"{odd[0]} is in only one of the model and what was saved")
        for name, tensor in own.items():
            if tensor.shape != weights[name].shape:
                raise ValueError(
                    f"{name} has shape {list(weights[name].shape)} where it was saved; expected "
                    f"{list(tensor.shape)}"
                )
            assign(tensor, weights[name])


def _check_ids(batch: Batch, vocab_size: int) -> None:
    """Refuse ids out of range here, on the CPU; a GPU would end the process without naming them."""
    low, high = (int(x) for x in torch.stack((batch.tokens, batch.targets)).aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"a batch holds the token id {low if low < 0 else high}; expected 0 to "
            f"{vocab_size - 1}. Make the token store with the tokenizer of this model."
        )


def _without_first(batch: Batch) -> Tensor:
    """Return the resets without those of the first token: a reset there would clear the start."""
    reset = batch.reset.clone()
    reset[:, 0] = False
    if batch.carried or reset.any():
        raise ValueError(
            "a state that documents begin with is trained, but these batches carry the state on, "
            "or begin documents inside a row; use rows of one document each"
        )
    return reset


def tensor_name(name: str) -> str:
    """Return the name in a checkpoint of an entry of an `Objective`: the model's own name."""
    return name.removeprefix("model.")
