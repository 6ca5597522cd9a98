"""Whether a linear layer is nothing but its weight, so that a fused layer may read it."""

from __future__ import annotations

from torch import nn


def are_plain(*modules: nn.Module) -> bool:
    """Return whether calling each module is a product with its weight and nothing else.

    Not so with a subclass (an adapter, a parametrised or quantised layer), a bias, or a hook.
    """
    return all(
        type(module) is nn.Linear
        and module._parameters["bias"] is None
        and not module._forward_hooks
        and not module._forward_pre_hooks
        for module in modules
    )
