"""Low-rank updates of projections (LoRA): attached, merged into the weights, and taken out again.

Source: Hu et al., LoRA (arXiv 2106.09685), section 4.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from doxastic.language.adaptation.patterns import matching
from doxastic.language.adaptation_config import LoRAConfig
from doxastic.language.model import LanguageModel
from doxastic.memory.linear import ComputedLinear, are_plain

# Where a model keeps what `unmerge_lora` needs; neither a parameter nor a module of it.
_MERGED = "_merged_lora"


class LoRALinear(ComputedLinear):
    """`y = W x + s B A x` with W frozen and s = alpha / rank.

    Fused layers read `weight`, W + s B A, formed once a call: beside a window of tokens that costs
    little. Called as a module, the two products stay apart, so that no second W is held.

    Args:
        base: The projection; it is kept as it is.
        config: Rank, scale and dropout.
        generator: Draws A; None for the global one.
    """

    def __init__(
        self, base: nn.Linear, config: LoRAConfig, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)
        # In half precision the small steps of training would vanish.
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        # Kaiming's uniform distribution with a = sqrt 5: that of a new nn.Linear.
        bound = 1.0 / math.sqrt(base.in_features)
        drawn = torch.empty(config.rank, base.in_features)
        drawn.uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(drawn.to(base.weight.device, dtype))
        zeros = torch.zeros(base.out_features, config.rank)
        self.lora_b = nn.Parameter(zeros.to(base.weight.device, dtype))

    @property
    def weight(self) -> Tensor:
        """W + s B A, in the dtype of W."""
        given = self.base.weight
        with torch.autocast(given.device.type, enabled=False):
            precise = given.to(self.lora_a.dtype)
            summed = torch.addmm(precise, self.lora_b, self.lora_a, alpha=self.scale)
        return summed.to(given.dtype)

    @property
    def is_plain(self) -> bool:
        """Whether there is no dropout now."""
        return are_plain(self.base) and not (self.training and self.dropout.p > 0)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., outputs]` from x `[..., inputs]`."""
        out: Tensor = self.base(x)
        low = functional.linear(self.dropout(x).to(self.lora_a.dtype), self.lora_a)
        update = functional.linear(low, self.lora_b)
        return torch.add(out, update.to(out.dtype), alpha=self.scale)


class _Place(NamedTuple):
    """Where an adapted projection is."""

    name: str
    owner: nn.Module
    key: str
    layer: LoRALinear


class _Merged(NamedTuple):
    place: _Place
    weight: nn.Parameter
    """The base's own."""


def apply_lora(
    model: LanguageModel, config: LoRAConfig, generator: torch.Generator | None = None
) -> None:
    """Attach an update to every projection that `config.targets` name, and freeze all the rest.

    The model's outputs stay the same until the updates learn: B starts at zero.

    Args:
        model: The model, changed in place. Its base weights are never written to.
        config: Which projections, and how.
        generator: Draws the updates' A; None for the global one.

    Raises:
        ValueError: A pattern matches no projection, or the model has updates already.
    """
    if _places(model) or is_merged(model):
        raise ValueError("the model has LoRA already; call remove_lora first.")
    linears = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and module.bias is None
    }
    chosen = matching(list(linears), config.targets, "projection")
    model.requires_grad_(False)
    for name in sorted(chosen):
        owner, _, key = name.rpartition(".")
        layer = LoRALinear(linears[name], config, generator).train(model.training)
        setattr(model.get_submodule(owner), key, layer)


@torch.no_grad()
def merge_lora(model: LanguageModel, *, for_good: bool = False) -> None:
    """Put W + s B A in the place of every adapted weight: a plain model, as fast as the base.

    `unmerge_lora` takes it back, bit for bit; the model holds the base's weights until then.

    Args:
        model: An adapted model.
        for_good: Let go of the base's weights and the updates; there is no way back.

    Raises:
        ValueError: There is nothing to merge.
    """
    places = _places(model)
    if not places:
        what = "its LoRA is merged already" if is_merged(model) else "the model has no LoRA"
        raise ValueError(f"{what}; expected one that apply_lora or load_adapter attached.")
    merged = []
    for place in places:
        base, weight = place.layer.base, place.layer.weight
        merged.append(_Merged(place, base.get_parameter("weight")))
        base.weight = nn.Parameter(weight, requires_grad=False)
        setattr(place.owner, place.key, base)
    if not for_good:
        vars(model)[_MERGED] = merged


def unmerge_lora(model: LanguageModel) -> None:
    """Give the adapted projections back the weights they had before `merge_lora`, bit for bit.

    Raises:
        ValueError: Nothing is merged.
    """
    merged: list[_Merged] = vars(model).pop(_MERGED, [])
    if not merged:
        raise ValueError("no LoRA is merged into the model; expected merge_lora before.")
    for (_, owner, key, layer), weight in merged:
        device = layer.base.weight.device
        layer.base.weight = weight
        # The model may have been moved in between.
        setattr(owner, key, layer.to(device))


def remove_lora(model: LanguageModel) -> None:
    """Take every update out; the base is as it was, bit for bit, and frozen."""
    if is_merged(model):
        unmerge_lora(model)
    for place in _places(model):
        setattr(place.owner, place.key, place.layer.base)


def is_merged(model: LanguageModel) -> bool:
    """Return whether `merge_lora` was the last thing done to the model's updates."""
    return _MERGED in vars(model)


def adapted_layers(model: LanguageModel) -> dict[str, LoRALinear]:
    """Return every adapted projection by its name, merged or not."""
    merged: list[_Merged] = vars(model).get(_MERGED, [])
    places = [place for place, _ in merged] or _places(model)
    return {place.name: place.layer for place in places}


def base_weights(model: LanguageModel) -> dict[str, Tensor]:
    """Return the weight that every adapted projection had before, by the projection's name."""
    merged: list[_Merged] = vars(model).get(_MERGED, [])
    kept = {place.name: weight.detach() for place, weight in merged}
    return kept or {place.name: place.layer.base.weight.detach() for place in _places(model)}


def _places(model: LanguageModel) -> list[_Place]:
    """Return the adapted projections that are not merged."""
    places = []
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            owner, _, key = name.rpartition(".")
            places.append(_Place(name, model.get_submodule(owner), key, layer))
    return places
