"""Adapting a language model by little: low-rank updates, a tuned state, some of its parameters."""

from doxastic.language.adaptation.files import load_adapter, save_adapter
from doxastic.language.adaptation.initial_state import InitialState
from doxastic.language.adaptation.lora import apply_lora, merge_lora, remove_lora, unmerge_lora
from doxastic.language.adaptation.patterns import set_trainable
from doxastic.language.adaptation.state_offset import add_state_offset, remove_state_offset
from doxastic.language.adaptation_config import LoRAConfig

__all__ = [
    "InitialState",
    "LoRAConfig",
    "add_state_offset",
    "apply_lora",
    "load_adapter",
    "merge_lora",
    "remove_lora",
    "remove_state_offset",
    "save_adapter",
    "set_trainable",
    "unmerge_lora",
]
