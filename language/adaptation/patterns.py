"""Choosing by patterns over names, as in a shell."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn


def matching(names: Sequence[str], patterns: Iterable[str], what: str) -> set[str]:
    """Return the names that any of the patterns matches; `*` matches dots too.

    Args:
        names: What there is.
        patterns: Such as `blocks.*.att.*`.
        what: What the names are of, for the message.

    Raises:
        ValueError: A pattern matches nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            near = ", ".join(difflib.get_close_matches(pattern, names, n=3, cutoff=0.0))
            raise ValueError(f"the pattern {pattern!r} matches no {what}; there is {near}")
        chosen |= found
    return chosen


def set_trainable(model: nn.Module, patterns: Iterable[str], frozen: Iterable[str] = ()) -> None:
    """Let those parameters learn whose name matches `patterns` and not `frozen`, and no others.

    Args:
        model: What is trained; `requires_grad` of all its parameters is set.
        patterns: Over names such as `blocks.0.att.key.weight`.
        frozen: Patterns that win over those.

    Raises:
        ValueError: A pattern matches nothing, or nothing is left to learn.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen = matching(names, patterns, "parameter") - matching(names, frozen, "parameter")
    if not chosen:
        raise ValueError("nothing is left to learn; freeze less")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
