"""The optimiser, its schedules and its state as named tensors."""

from __future__ import annotations

from fnmatch import fnmatch

import torch
from torch import Tensor, nn

# As in the PPO of Stable-Baselines3 and CleanRL; Adam's own 1e-8 lets rare gradients jump.
ADAM_EPSILON = 1e-5


class TrainingDiverged(RuntimeError):
    """A loss or a gradient stopped being finite; the weights are those before that step."""


def build_optimizer(module: nn.Module) -> torch.optim.Adam:
    """Return an Adam over the module's parameters, grouped by learning-rate multiplier.

    A submodule may declare `learning_rate_multipliers`, a dictionary from patterns over its
    parameters' names to multipliers, such as `{"*w0": 2.0}`.
    """
    multipliers = {name: 1.0 for name, _ in module.named_parameters()}
    for prefix, part in module.named_modules():
        for pattern, multiplier in getattr(part, "learning_rate_multipliers", {}).items():
            for name in multipliers:
                if fnmatch(name, f"{prefix}.{pattern}" if prefix else pattern):
                    multipliers[name] = multiplier
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        groups.setdefault(multipliers[name], []).append(parameter)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in module.parameters())
    return torch.optim.Adam(
        [{"params": params, "multiplier": multiplier} for multiplier, params in groups.items()],
        eps=ADAM_EPSILON,
        fused=fused,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group the rate times its multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["multiplier"]


def schedule(update: int, total_updates: int, *, warmup: int = 0, anneal: bool = True) -> float:
    """Return the factor of update `update`, counted from 0.

    It rises linearly to 1 over `warmup` updates and, annealed, falls linearly towards 0 over
    all of them: `min(1, (update + 1) / warmup) * (1 - update / total_updates)`.
    """
    rise = min(1.0, (update + 1) / warmup) if warmup > 0 else 1.0
    fall = max(0.0, 1.0 - update / total_updates) if anneal else 1.0
    return rise * fall


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return copies of the optimiser's state as `<parameter name>.<quantity>`."""
    return {
        f"{name}.{quantity}": value.detach().cpu().clone()
        for name, parameter in module.named_parameters()
        for quantity, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Put the state of `optimizer_tensors` back."""
    optimizer.state.clear()
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        name, _, quantity = key.rpartition(".")
        parameter = parameters[name]
        optimizer.state[parameter][quantity] = value.to(parameter.device, copy=True)


def non_finite_gradients(module: nn.Module) -> list[str]:
    """Return the names of the parameters whose gradient holds a NaN or an infinity."""
    return [
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
