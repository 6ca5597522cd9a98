"""The optimiser, its schedules and its state as named tensors."""

from __future__ import annotations

from fnmatch import fnmatch

import torch
from torch import Tensor, nn

# As in the PPO of Stable-Baselines3 and CleanRL; Adam's own 1e-8 lets rare gradients jump.
ADAM_EPSILON = 1e-5


class TrainingDiverged(RuntimeError):
    """A loss or a gradient stopped being finite; the weights are those before that step."""


class FlatAdam:
    """Adam over all parameters of a module as one vector.

    The parameters and their gradients become views of one tensor each, so that clearing,
    clipping and stepping cost one operation instead of one per parameter: on a small network
    that is a tenth of the update. A submodule may declare `learning_rate_multipliers`, a
    dictionary from patterns over its parameters' names to multipliers, such as `{"*w0": 2.0}`;
    parameters of one multiplier lie together and share a vector.

    Args:
        module: What is optimised, already on its device; its parameters are moved into the
            vectors, their values kept.
    """

    def __init__(self, module: nn.Module) -> None:
        multipliers = _multipliers(module)
        self._places: dict[str, tuple[int, int, torch.Size]] = {}
        self._vectors: list[nn.Parameter] = []
        groups = []
        for multiplier in dict.fromkeys(multipliers.values()):
            names = [name for name, own in multipliers.items() if own == multiplier]
            vector = self._gather(module, names)
            groups.append({"params": [vector], "multiplier": multiplier})
        self._adam = torch.optim.Adam(groups, eps=ADAM_EPSILON, fused=True)

    def _gather(self, module: nn.Module, names: list[str]) -> nn.Parameter:
        """Move the named parameters into a new vector, their gradients into that of it."""
        parameters = [module.get_parameter(name) for name in names]
        vector = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
        vector.grad = torch.zeros_like(vector)
        start = 0
        for name, parameter in zip(names, parameters, strict=True):
            end, shape = start + parameter.numel(), parameter.shape
            parameter.data = vector.data[start:end].view(shape)
            parameter.grad = vector.grad[start:end].view(shape)
            self._places[name] = (len(self._vectors), start, shape)
            start = end
        self._vectors.append(vector)
        return vector

    def zero_grad(self) -> None:
        """Clear the gradients in place: the parameters' are views."""
        for vector in self._vectors:
            assert vector.grad is not None
            vector.grad.zero_()

    def gradient_norm(self) -> Tensor:
        """Return the norm over all gradients, a scalar."""
        return nn.utils.get_total_norm([v.grad for v in self._vectors if v.grad is not None])

    def step(self, learning_rate: float, norm: Tensor, limit: float) -> None:
        """Scale the gradients, whose norm is given, down to at most `limit`, and descend."""
        nn.utils.clip_grads_with_norm_(self._vectors, limit, norm)
        for group in self._adam.param_groups:
            group["lr"] = learning_rate * group["multiplier"]
        self._adam.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of Adam's state as `<parameter name>.<quantity>`."""
        copies = {}
        for name, (index, start, shape) in self._places.items():
            for quantity, value in self._adam.state.get(self._vectors[index], {}).items():
                own = value if value.ndim == 0 else value[start : start + shape.numel()].view(shape)
                copies[f"{name}.{quantity}"] = own.detach().cpu().clone()
        return copies

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put the state of `tensors` back."""
        self._adam.state.clear()
        for key, value in tensors.items():
            name, _, quantity = key.rpartition(".")
            index, start, shape = self._places[name]
            vector = self._vectors[index]
            state = self._adam.state[vector]
            if value.ndim == 0 and quantity == "step":
                state[quantity] = value.to(vector.device, copy=True)
                continue
            state.setdefault(quantity, torch.zeros_like(vector))
            state[quantity][start : start + shape.numel()] = value.flatten().to(vector.device)


def _multipliers(module: nn.Module) -> dict[str, float]:
    """Return the learning-rate multiplier of every parameter by name."""
    multipliers = {name: 1.0 for name, _ in module.named_parameters()}
    for prefix, part in module.named_modules():
        for pattern, multiplier in getattr(part, "learning_rate_multipliers", {}).items():
            for name in multipliers:
                if fnmatch(name, f"{prefix}.{pattern}" if prefix else pattern):
                    multipliers[name] = multiplier
    return multipliers


def schedule(update: float, total_updates: int, *, warmup: int = 0, anneal: bool = True) -> float:
    """Return the factor of update `update`, counted from 0 and not necessarily whole.

    It rises linearly to 1 over `warmup` updates and, annealed, falls linearly towards 0 over
    all of them: `min(1, (update + 1) / warmup) * (1 - update / total_updates)`.
    """
    rise = min(1.0, (update + 1) / warmup) if warmup > 0 else 1.0
    fall = max(0.0, 1.0 - update / total_updates) if anneal else 1.0
    return rise * fall


def non_finite_gradients(module: nn.Module) -> list[str]:
    """Return the names of the parameters whose gradient holds a NaN or an infinity."""
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
