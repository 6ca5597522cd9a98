"""Whether a linear layer is nothing but its weight, so that a fused layer may read it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook


class ComputedLinear(nn.Module):
    """A linear layer without bias whose `weight` is computed whenever it is read.

    For what adapts a projection: a fused layer reads the weight once a call, as it does with a
    plain one. The compiled step, which reads parameters where they are, makes way for the modules.
    """

    @property
    def weight(self) -> Tensor:
        """The weight `[outputs, inputs]`; gradients flow to what it is computed from."""
        raise NotImplementedError

    @property
    def is_plain(self) -> bool:
        """Whether calling the layer now is a product with `weight` and nothing else."""
        return True


def is_hooked(module: nn.Module) -> bool:
    """Return whether calling the module does more, or something else, than its class's `forward`.

    It has a hook of any kind, of its own or one for all modules, or a `forward` of its own.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _has_any_global_hook()
    )


def are_plain(*modules: nn.Module) -> bool:
    """Return whether calling each module is a product with its weight and nothing else.

    Not so with a subclass of `nn.Linear` (an adapter, a parametrised or quantised layer), a bias,
    a hook or a `forward` of its own; with a `ComputedLinear` if it says so.
    """
    return all(
        not is_hooked(module)
        and (
            module._parameters["bias"] is None
            if type(module) is nn.Linear
            else isinstance(module, ComputedLinear) and module.is_plain
        )
        for module in modules
    )
