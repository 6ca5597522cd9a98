"""How the options of a command are read: by tyro, and refused in one line."""

from __future__ import annotations

import contextlib
import io
import re
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro
import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from doxastic.configuration import ConfigError

Options = TypeVar("Options")

_RULE = re.compile(r"[─-]{8,}$")
_NO_TYPE = re.compile(r"no type matching {None}\|\W*(\w+).* could be instantiated from \[(.*)\]")


def parse(
    options: type[Options],
    words: Sequence[str],
    program: str,
    description: str | None,
    default: Options | None = None,
) -> Options:
    """Return the parsed options; what tyro refuses becomes a `ConfigError` of one line."""
    refused = io.StringIO()
    arguments: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(refused):
            return tyro.cli(
                options,
                args=list(words),
                prog=program,
                description=description,
                registry=_registry(),
                **arguments,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_flatten(refused.getvalue(), program)) from None


def value_of(option: str, words: Sequence[str]) -> str | None:
    """Return the value of an option before the options are parsed, or `None`."""
    for i, word in enumerate(words):
        if word == option and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def _flatten(frame: str, program: str) -> str:
    """Return the message in tyro's framed text as one line.

    The frame holds a title, the message, and further blocks between horizontal rules; it is
    drawn with box characters, or in ASCII where the terminal has no others.
    """
    lines = [line.strip("│╭╮╰╯ ") for line in frame.splitlines()[1:]]
    blocks = "\n".join("" if _RULE.match(line) else line for line in lines).strip().split("\n\n")
    message = " ".join(blocks[0].split()).rstrip(".")
    message = _NO_TYPE.sub(r"expected \1 or None, got \2", message)
    section = re.match(r"Error parsing experiment\.?(\w*): ", message)
    if section:
        message = message.removeprefix(section[0])
        is_located = not section[1] or message.startswith(f"{section[1]}.")
        message = message if is_located else f"{section[1]}: {message}"
    suggestion = re.search(r"Perhaps you meant:\s*(--\S+)", "\n".join(lines))
    remedy = f"did you mean {suggestion[1]}?" if suggestion else f"see {program} --help"
    return f"{message}; {remedy}"


def _registry() -> ConstructorRegistry:
    """Return tyro's rules and one for dictionaries: `--env.kwargs KEY=VALUE ...`."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def dictionary(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if typing.get_origin(info.type) is not dict:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="KEY=VALUE ...",
            instance_from_str=_read_pairs,
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda pairs: [f"{key}={value}" for key, value in pairs.items()],
        )

    return registry


def _read_pairs(words: Sequence[str]) -> dict[str, Any]:
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not KEY=VALUE")
        pairs[key] = yaml.safe_load(value)
    return pairs
