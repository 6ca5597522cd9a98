"""AdamW over the official parameter groups, its state as tensors by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from doxastic.language.distributed import assign, whole
from doxastic.language.objective import tensor_name
from doxastic.language.optimizer_groups import parameter_groups
from doxastic.language.training_config import TrainingConfig


class TrainingDiverged(RuntimeError):
    """A loss or a gradient stopped being finite; the weights are those before that update."""


class Optimizer:
    """AdamW over everything trainable in a module; see `parameter_groups`.

    Args:
        module: What is trained, on its device and, with FSDP2, already split.
        config: Rates, averages and clipping.

    Raises:
        ValueError: If nothing is trainable, or something in half precision.
    """

    def __init__(self, module: nn.Module, config: TrainingConfig) -> None:
        self._names = {
            parameter: tensor_name(name)
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        if not self._names:
            raise ValueError("no parameter is trainable; set requires_grad of some of them")
        half = [n for p, n in self._names.items() if p.dtype not in (torch.float32, torch.float64)]
        if half:
            raise ValueError(
                f"{half[0]} and {len(half) - 1} other trainable parameters are in half precision, "
                "in which small updates vanish; load the model with dtype=torch.float32 and choose "
                "precision bfloat16 for speed"
            )
        groups = parameter_groups(
            module, learning_rate=config.learning_rate, weight_decay=config.weight_decay
        )
        self._rates = [group["lr"] for group in groups]
        self._clip_norm = config.clip_norm
        self._adam = torch.optim.AdamW(groups, betas=config.betas, eps=config.epsilon, fused=True)

    @property
    def names(self) -> list[str]:
        """Names of what is trained."""
        return list(self._names.values())

    def gradient_norm(self) -> Tensor:
        """Return the norm over all gradients of the whole model; split over processes as they."""
        gradients = [p.grad for p in self._names if p.grad is not None]
        return nn.utils.get_total_norm(gradients)

    def step(self, factor: float, norm: Tensor) -> None:
        """Scale the gradients down to the allowed norm, descend, and clear them.

        Args:
            factor: The learning rate as a fraction of the highest.
            norm: What `gradient_norm` returned.
        """
        if self._clip_norm > 0:
            nn.utils.clip_grads_with_norm_(self._names, self._clip_norm, norm)
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._adam.step()
        # A fused step leaves the version of a weight, by which PromptCache and autograd tell that
        # it has changed.
        torch.autograd.graph.increment_version(list(self._names))
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._adam.zero_grad(set_to_none=True)

    def not_finite(self) -> list[str]:
        """Return the names of the parameters whose gradient holds a NaN or an infinity."""
        return [
            name
            for parameter, name in self._names.items()
            if parameter.grad is not None and not whole(parameter.grad).isfinite().all()
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Return Adam's state as `<parameter name>/<quantity>`, split over processes as it is."""
        return {
            f"{name}/{quantity}": value
            for parameter, name in self._names.items()
            for quantity, value in self._adam.state[parameter].items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` returned, each whole.

        Raises:
            ValueError: If it belongs to other parameters.
        """
        parameters = {name: parameter for parameter, name in self._names.items()}
        stored = {key.rpartition("/")[0] for key in tensors}
        if stored and stored != parameters.keys():
            odd = sorted(stored ^ parameters.keys())
            raise ValueError(
                f"the optimiser's state is of {len(stored)} parameters and {len(parameters)} are "
                f"trained; {odd[0]} is in only one of the two"
            )
        self._adam.state.clear()
        for key, value in tensors.items():
            name, _, quantity = key.rpartition("/")
            parameter = parameters[name]
            if quantity == "step":
                restored = value.to(parameter.device, copy=True)
            else:
                restored = torch.zeros_like(parameter, requires_grad=False)
                assign(restored, value)
            self._adam.state[parameter][quantity] = restored
