"""Prompts as token ids, and which ids a tokenizer and a model share."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from doxastic.language.model import LanguageModel
from doxastic.language.tokenizers.base import Tokenizer

Prompt = str | bytes | Sequence[int] | np.ndarray
"""A text, or token ids."""


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], *, opens: bool
) -> list[np.ndarray]:
    """Return the prompts' token ids, int64, behind an end-of-document id if they open documents.

    Raises:
        ValueError: There are no prompts, or one that opens no document is empty.
        TypeError: One text is given in place of a sequence of them.
    """
    if isinstance(prompts, str | bytes):
        raise TypeError("prompts is one text; expected a sequence of them. Write [prompt].")
    if not len(prompts):
        raise ValueError("there are no prompts; expected at least one.")
    opening = [tokenizer.end_of_document] if opens else []
    sequences = [np.concatenate((opening, _ids(tokenizer, p))).astype(np.int64) for p in prompts]
    for row, sequence in enumerate(sequences):
        if not len(sequence):
            raise ValueError(
                f"prompt {row} is empty and continues a state: there is no token to predict the "
                "next one from. Give at least one, or opens=True for a new document."
            )
    return sequences


def check_vocabulary(model: LanguageModel, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer with more ids than the model has embeddings.

    Raises:
        ValueError: It has.
    """
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the {tokenizer.name} tokenizer has {tokenizer.vocab_size} ids, the model "
            f"{model.config.vocab_size}; expected at most as many. The tokenizer is another "
            "model's."
        )


def _ids(tokenizer: Tokenizer, prompt: Prompt) -> np.ndarray:
    if isinstance(prompt, str | bytes):
        return tokenizer.encode(prompt)
    ids = np.asarray(prompt)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise ValueError(
            f"a prompt is {list(ids.shape)} {ids.dtype}; expected a text, or integer ids [T]."
        )
    return ids


@functools.lru_cache(maxsize=8)
def absent_ids(tokenizer: Tokenizer) -> Tensor:
    """Return the ids below the highest that stand for no token, `[N]`; the model may rate them."""
    absent = []
    for token_id in range(tokenizer.vocab_size):
        try:
            tokenizer.token_bytes(token_id)
        except ValueError:
            absent.append(token_id)
    return torch.tensor(absent, dtype=torch.int64)
