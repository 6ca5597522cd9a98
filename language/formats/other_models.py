"""Models this program does not run, recognised by the names of their tensors."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from doxastic.language.formats.files import ModelFileError

# What a tensor's name says, the first match counts; RWKV-6 has some names of RWKV-5, and so on.
_SIGNS = (
    (
        r"(qweight|qzeros|absmax|quant_map|quant_state.*|SCB|weight_scale\w*|_[mr][xy])$",
        "is quantised",
        "take the checkpoint in bfloat16, float16 or float32",
    ),
    (r"lora_[AB]|\.lora_embedding", "is a LoRA adapter", "merge it into its base model first"),
    (
        r"\.lora_[ab]$|\.state_offset$",
        "is an adapter of doxastic",
        "name the model it was trained on, and the adapter with --adapter",
    ),
    (
        r"^\d+\.(wkv|time_shift|channel_shift)$",
        "is a state",
        "name the model it belongs to, and the state with --state",
    ),
    (
        r"^blocks\.\d+\.qkv\.",
        "is RWKV-7b, with DeepEmbedAttention",
        "RWKV-7 (x070), RWKV-7a and RWKV-8 rc00 are supported",
    ),
    (
        r"\.rosa|rosa\.|_rosa",
        "is RWKV-8 with ROSA",
        "RWKV-7 (x070), RWKV-7a and RWKV-8 rc00 are supported",
    ),
    (r"time_maa|attn\.x_proj", "is RWKV-6", "only RWKV-7 (x070) and its variants are supported"),
    (
        r"time_faaaa|(att|attention)\.gate\.weight$",
        "is RWKV-5",
        "only RWKV-7 (x070) and its variants are supported",
    ),
    (
        r"\.time_(decay|first|mix_k)$",
        "is RWKV-4 or RWKV-5",
        "only RWKV-7 (x070) and its variants are supported",
    ),
    (
        r"self_attn\.|attn\.q_proj\.|attn\.c_attn\.",
        "has attention layers",
        "only models of RWKV-7 layers alone are supported",
    ),
    (
        r"^(_forward_module|module|_orig_mod)\.",
        "was saved with its training wrapper's prefix",
        "save the inner module's state_dict, or strip the prefix from the names",
    ),
)


def refuse_other_models(names: Collection[str], path: Path) -> None:
    """Return if the names may be those of an RWKV-7 model.

    Raises:
        ModelFileError: They are another version's or another model's; the message says which.
    """
    for sign, kind, remedy in _SIGNS:
        if name := next((name for name in names if re.search(sign, name)), None):
            raise ModelFileError(f"{path} {kind}: it has the tensor {name}; {remedy}.")
    tuned = [name for name in names if name.endswith(".time_state")]
    if tuned and len(tuned) == len(names):
        raise ModelFileError(
            f"{path} is a tuned initial state, not a model: it holds {tuned[0]} and the like "
            "alone. Load the model it was tuned for."
        )
