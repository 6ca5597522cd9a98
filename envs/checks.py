"""What the arguments of tasks and wrappers are checked for."""

from __future__ import annotations

from typing import Any

import numpy as np


def whole(name: str, value: Any, least: int | None = None, unit: str = "") -> int:
    """Return a whole number, of any numeric type, as an int.

    Args:
        name: Name of the argument.
        value: What was given for it.
        least: The smallest number allowed, if there is one.
        unit: What is counted, in the number that `least` asks for.

    Raises:
        ValueError: If the value is no whole number, or below `least`.
    """
    if not (is_number(value) and float(value).is_integer()):
        raise ValueError(f"{name} is {value!r}; expected a whole number.")
    if least is not None and value < least:
        raise ValueError(f"{name} is {value}; expected at least {f'{least} {unit}'.rstrip()}.")
    return int(value)


def is_number(value: Any) -> bool:
    """Return whether a value is a real number; truth values are none, though ints to Python."""
    numbers = (int, float, np.integer, np.floating)
    return isinstance(value, numbers) and not isinstance(value, bool)
