"""Training a language model: one `update` reads batches, descends once and says how it went."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from doxastic.language.distributed import Ranks, parallelize, whole
from doxastic.language.objective import Objective, StartState
from doxastic.language.optimization import Optimizer, TrainingDiverged
from doxastic.language.randomness import RandomState
from doxastic.language.training_config import TrainingConfig

if TYPE_CHECKING:
    from doxastic.language.batches import Batch, BatchSource
    from doxastic.language.model import LanguageModel


class TrainerState(NamedTuple):
    """Everything a run needs to go on, whatever the number of processes; empty but in the first."""

    weights: dict[str, Tensor]
    """The model's tensors by their own names, and `start_state.*` if that is a module."""
    tensors: dict[str, Tensor]
    """Optimiser, random generators, and the carried states in the order of the global batch."""
    data: dict[str, Any]
    """Counters and the position in the data, for JSON."""


class Trainer:
    """Trains a language model, in one process or in several (see `distributed`).

    The loss is the mean over all targets that count in an update: over batches, windows and
    processes alike. If an update fails, everything is as it was before it; the same batches come
    again.

    Args:
        model: What is trained, in place, wherever `requires_grad` is set; float32.
        source: Gives the batches; its state is part of the trainer's.
        config: The settings.
        device: Where to train; the model is moved there.
        start_state: From a number of rows to the state documents begin with, by default zeros. A
            module is trained too, and needs batches of one document a row.
        held_out: Gives the batches of `evaluate`.
        saves: Whether `state_dict` holds the tensor of that name; by default all of them. Others
            must be there before `load_state_dict`.
        seed: Of what is drawn in training, such as dropout.

    Raises:
        ValueError: If the settings do not fit the batches or the model.
    """

    def __init__(
        self,
        model: LanguageModel,
        source: BatchSource,
        config: TrainingConfig,
        *,
        device: torch.device | str = "cpu",
        start_state: StartState | None = None,
        held_out: BatchSource | None = None,
        saves: Callable[[str], bool] = lambda name: True,
        seed: int = 0,
    ) -> None:
        windows = config.backpropagate_windows
        if windows > 1 and not source.carried:
            raise ValueError(
                f"backpropagate_windows is {windows}, but these batches carry no state from one to "
                "the next; use packed documents, streams, or 1"
            )
        self.model, self.source, self.config = model, source, config
        self.device, self.ranks = torch.device(device), Ranks()
        self.updates = self.tokens = 0
        model.checkpointing = config.checkpoint_blocks
        self._objective = Objective(model, start_state, config).to(self.device)
        self._parallel = parallelize(
            self._objective, _separable(model), config.parallel, self.device, self.ranks.world
        )
        self._optimizer = Optimizer(self._objective, config)
        self._saves, self._held_out = saves, held_out
        self._held_out_start = None if held_out is None else held_out.state_dict()
        self._random = RandomState(self.device, seed, self.ranks)
        self._carried: Tensor | None = None
        self._is_stepping = False

    @property
    def evaluates(self) -> bool:
        """Whether there is held-out text."""
        return self._held_out is not None

    @property
    def trained(self) -> list[str]:
        """Names of the parameters that are trained."""
        return self._optimizer.names

    @property
    def is_torn(self) -> bool:
        """Whether an update was cut off while the weights were changing: they are of no use."""
        return self._is_stepping

    def update(self) -> dict[str, float]:
        """Descend once and return what was measured.

        Raises:
            TrainingDiverged: The loss or a gradient was not finite; the weights did not take it.
        """
        before = self.source.state_dict(), self._random.tensors, self._carried
        try:
            count = self.config.accumulation * self.config.backpropagate_windows
            batches = [self.source.next_batch() for _ in range(count)]
            targets, tokens = self.ranks.sum(
                [
                    float(sum(int(b.mask.sum()) for b in batches)),
                    sum(b.tokens.numel() for b in batches),
                ]
            )
            with self._random:
                summed = self._backward(batches, self.ranks.world / max(targets, 1.0))
            norm = self._optimizer.gradient_norm()
            loss = self.ranks.sum([float(summed)])[0] / max(targets, 1.0)
            measured = {"loss": loss, "grad_norm": float(whole(norm))}
            self._require_finite(measured)
        except BaseException:
            position, self._random.tensors, self._carried = before
            self.source.load_state_dict(position)
            self._optimizer.zero_grad()
            raise
        factor = self.config.learning_rate_factor(self.updates)
        self._is_stepping = True
        self._optimizer.step(factor, norm)
        self.updates += 1
        self.tokens += int(tokens)
        self._is_stepping = False
        return {
            "update": self.updates,
            "tokens": self.tokens,
            "epoch": self.source.epoch,
            **measured,
            "learning_rate": self.config.learning_rate * factor,
        }

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the mean cross entropy of the held-out batches, in nats per target that counts.

        They are the same every time, and training goes on as if nothing had happened.

        Raises:
            ValueError: If there is no held-out text, or no target in it counts.
        """
        if self._held_out is None or self._held_out_start is None:
            raise ValueError("there is no held-out text; give the trainer held_out")
        self._held_out.load_state_dict(self._held_out_start)
        summed, targets, state = 0.0, 0, None
        self._objective.eval()
        try:
            for _ in range(self.config.evaluation_batches):
                batch = self._held_out.next_batch()
                window = self._objective.window(batch)
                _, plain, state = self._objective(window, state if batch.carried else None)
                summed, targets = summed + float(plain), targets + int(batch.mask.sum())
        finally:
            self._objective.train()
        summed, count = self.ranks.sum([summed, targets])
        if count == 0:
            raise ValueError(
                "no target counts in the batches of held-out text; take more of them "
                "(evaluation_batches)"
            )
        return summed / count

    def state_dict(self) -> TrainerState:
        """Return the state after the last update; in all processes at once.

        Raises:
            RuntimeError: If an update was cut off while the weights were changing.
        """
        if self._is_stepping:
            raise RuntimeError("the last update was cut off halfway; its weights are of no use")
        weights = {
            name: self.ranks.collect(tensor)
            for name, tensor in self._objective.tensors(self._saves).items()
        }
        tensors = {
            f"optimizer/{name}": self.ranks.collect(tensor)
            for name, tensor in self._optimizer.tensors().items()
        }
        tensors |= {f"random/{k}": self.ranks.stack(v) for k, v in self._random.tensors.items()}
        if self._carried is not None:
            tensors["carried"] = self.ranks.gather_rows(self._carried)
        data = {
            "updates": self.updates,
            "tokens": self.tokens,
            "source": self.source.state_dict(),
        }
        if not self.ranks.is_main:
            return TrainerState({}, {}, {})
        return TrainerState(weights, tensors, data)

    def load_state_dict(self, state: TrainerState) -> None:
        """Take back what `state_dict` returned in the first process; in all processes at once.

        Raises:
            KeyError, RuntimeError, ValueError: If it is the state of another model or run.
        """
        self._objective.load(state.weights, self._saves)
        self._optimizer.restore(_group(state.tensors, "optimizer/"))
        self._random.restore(_group(state.tensors, "random/"), int(state.data["updates"]))
        carried = state.tensors.get("carried")
        self._carried = None if carried is None else self.ranks.own_rows(carried).to(self.device)
        self.updates, self.tokens = int(state.data["updates"]), int(state.data["tokens"])
        self.source.load_state_dict(state.data["source"])

    def _backward(self, batches: Sequence[Batch], scale: float) -> Tensor:
        """Add the gradients of an update up; return its summed cross entropy in this process."""
        windows = self.config.backpropagate_windows
        parts = [batches[i : i + windows] for i in range(0, len(batches), windows)]
        summed = torch.zeros((), device=self.device)
        for part in parts:
            state = self._carried
            with self._averaging(part is parts[-1]):
                totals = []
                for batch in part:
                    window = self._objective.window(batch)
                    total, plain, state = self._parallel(window, state if batch.carried else None)
                    totals.append(total)
                    summed = summed + plain
                # Both ways of averaging gradients divide by the number of processes.
                (torch.stack(totals).sum() * scale).backward()
            self._carried = state.detach() if part[-1].carried and state is not None else None
        return summed

    def _averaging(self, now: bool) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which gradients are averaged over the processes, or kept."""
        if not now and isinstance(self._parallel, DistributedDataParallel):
            context: contextlib.AbstractContextManager[Any] = self._parallel.no_sync()
            return context
        return contextlib.nullcontext()

    def _require_finite(self, measured: Mapping[str, float]) -> None:
        if all(math.isfinite(value) for value in measured.values()):
            return
        found = ", ".join(f"{name} {value}" for name, value in measured.items())
        names = self._optimizer.not_finite()
        where = f", in {len(names)} parameters, {names[0]} first" if names else ""
        raise TrainingDiverged(
            f"update {self.updates + 1} is not finite: {found}{where}; lower learning_rate or "
            "clip_norm, or lengthen warmup_updates"
        )


def _separable(model: LanguageModel) -> list[torch.nn.Module]:
    """Return the parts that FSDP2 may bring together one at a time."""
    # With token tables, the first block's ln0 is read outside of that block.
    return [] if model.config.deep_embed != "none" else list(model.blocks)


def _group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
