"""Strict conversion between frozen dataclasses and the plain data of a YAML file.

Unknown keys and wrong types are errors that name the path, what was expected and what came:
a misspelt key must not silently train another experiment.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

Config = TypeVar("Config")

# PyYAML follows YAML 1.1, where a number with an exponent needs a dot and a signed exponent.
_EXPONENT_WITHOUT_DOT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and the remedy."""


def from_dict(config_class: type[Config], data: Mapping[str, Any], path: str = "") -> Config:
    """Return an instance of the dataclass filled from plain data.

    Args:
        config_class: A dataclass; its fields may be numbers, strings, booleans, literals,
            tuples, lists, dicts, unions of these and further dataclasses.
        data: Keys and values; keys left out keep the field's default.
        path: Dotted path of `data` in the whole file, for messages.

    Raises:
        ConfigError: If a key is unknown, a value has the wrong type, or the dataclass
            refuses the values.
    """
    where = path or "the configuration"
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} is {describe(data)}; expected a section of keys and values")
    annotations = typing.get_type_hints(config_class)
    names = [field.name for field in dataclasses.fields(typing.cast(Any, config_class))]
    values = {}
    for key, value in data.items():
        if key not in names:
            raise ConfigError(unknown(f"key {_join(path, key)}", str(key), names, prefix=path))
        values[key] = _convert(annotations[key], value, _join(path, key))
    try:
        return config_class(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        is_located = not path or str(error).startswith(f"{path}.")
        raise ConfigError(str(error) if is_located else f"{path}: {error}") from error


def to_dict(config: Any) -> dict[str, Any]:
    """Return plain data for YAML or JSON, such that `from_dict` gives the same instance."""
    return {
        field.name: _to_plain(getattr(config, field.name)) for field in dataclasses.fields(config)
    }


def preset_names(package: str = "doxastic.configs") -> list[str]:
    """Return the names of the presets that come with the package."""
    names = (entry.name for entry in resources.files(package).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def read_preset(name_or_path: str | Path, package: str = "doxastic.configs") -> tuple[Any, str]:
    """Return the content of a preset or of a YAML file, and what to call it in messages.

    Args:
        name_or_path: One of `preset_names(package)`, or a path that ends in `.yaml` or `.yml`.
        package: Where the presets are.

    Raises:
        ConfigError: If there is no such preset or file, or it is not valid YAML.
    """
    name, presets = str(name_or_path), preset_names(package)
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"there is no file {path}; presets are {', '.join(presets)}")
        return read_yaml(path), name
    if name not in presets:
        match = nearest(name, presets)
        hint = f"did you mean {match}? " if match else ""
        raise ConfigError(
            f"unknown preset {name!r}; {hint}presets are {', '.join(presets)}; "
            "a file is named by a path that ends in .yaml"
        )
    with resources.as_file(resources.files(package) / f"{name}.yaml") as path:
        return read_yaml(path), f"preset {name}"


def merge(
    data: Mapping[str, Any], changes: Mapping[str, Any], *, sections: bool = True
) -> dict[str, Any]:
    """Return `data` with `changes`, merging the sections at the top but no deeper dictionaries."""
    merged = dict(data)
    for key, value in changes.items():
        if sections and isinstance(value, Mapping) and isinstance(data.get(key), Mapping):
            merged[key] = merge(data[key], value, sections=False)
        else:
            merged[key] = value
    return merged


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file; a file that cannot be read is a `ConfigError`."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {reason}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8") from error


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Return YAML text that keeps the order of the keys, and lists on one line."""
    text: str = yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True
    )
    return text


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or `None` if none is alike."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown(what: str, name: str, known: Sequence[str], prefix: str = "") -> str:
    """Return the message for an unknown name: the nearest known one, else all of them."""
    match = nearest(name, known)
    if match is not None:
        return f"unknown {what}; did you mean {_join(prefix, match)}?"
    return f"unknown {what}; known are {', '.join(known)}"


def describe(value: Any) -> str:
    """Return a value and its type in the words of a YAML file."""
    names = {str: "the string", bool: "the boolean", int: "the integer", float: "the number"}
    if value is None:
        return "empty (null)"
    if isinstance(value, Mapping):
        return "a section of keys and values"
    if isinstance(value, list | tuple):
        return f"the list {list(value)!r}"
    return f"{names.get(type(value), type(value).__name__)} {value!r}"


class _Dumper(yaml.SafeDumper):
    """Writes sections as blocks and lists in brackets."""


_Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=True
    ),
)


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _convert(annotation: Any, value: Any, path: str) -> Any:
    """Return `value` as the annotated type, or raise a `ConfigError` naming `path`."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(annotation, value, path)
    if origin is Literal:
        return _convert_literal(annotation, value, path)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return value if isinstance(value, annotation) else from_dict(annotation, value, path)
    if origin in (tuple, list, Sequence):
        return _convert_sequence(annotation, value, path)
    if origin in (dict, Mapping) or annotation is dict:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return dict(value)
        raise _wrong_type(path, "a section of keys and values", value)
    return _convert_scalar(annotation, value, path)


def _convert_union(annotation: Any, value: Any, path: str) -> Any:
    options = typing.get_args(annotation)
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        return _convert(options[0], value, path)
    for option in options:
        try:
            return _convert(option, value, path)
        except ConfigError:
            continue
    raise _wrong_type(path, " or ".join(_type_name(option) for option in options), value)


def _convert_literal(annotation: Any, value: Any, path: str) -> Any:
    allowed = typing.get_args(annotation)
    if value in allowed and type(value) in {type(option) for option in allowed}:
        return value
    choices = ", ".join(str(option) for option in allowed)
    match = nearest(str(value), [str(option) for option in allowed])
    hint = f"; did you mean {match}?" if match else ""
    raise ConfigError(f"{path} is {describe(value)}; expected one of {choices}{hint}")


def _convert_sequence(annotation: Any, value: Any, path: str) -> Any:
    items = typing.get_args(annotation)
    container = list if typing.get_origin(annotation) is list else tuple
    if not isinstance(value, list | tuple):
        raise _wrong_type(path, _type_name(annotation), value)
    if container is tuple and items and items[-1] is not Ellipsis:
        if len(value) != len(items):
            raise _wrong_type(path, f"a list of {len(items)} values", value)
        kinds = list(items)
    else:
        kinds = [items[0] if items else Any] * len(value)
    return container(
        _convert(kind, item, f"{path}[{i}]")
        for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _convert_scalar(annotation: Any, value: Any, path: str) -> Any:
    if annotation is Any:
        return value
    is_bool = isinstance(value, bool)
    if annotation is float and isinstance(value, int | float) and not is_bool:
        return float(value)
    if annotation in (int, str, bool) and type(value) is annotation:
        return value
    if annotation is type(None) and value is None:
        return None
    raise _wrong_type(path, _type_name(annotation), value)


def _wrong_type(path: str, expected: str, value: Any) -> ConfigError:
    hint = ""
    if isinstance(value, str) and _EXPONENT_WITHOUT_DOT.fullmatch(value):
        hint = f"; YAML reads {value} as text, write {_yaml_number(value)}"
    return ConfigError(f"{path} is {describe(value)}; expected {expected}{hint}")


def _yaml_number(text: str) -> str:
    mantissa, exponent = text.lower().split("e")
    mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
    return f"{mantissa}e{exponent if exponent[0] in '+-' else '+' + exponent}"


def _type_name(annotation: Any) -> str:
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    if annotation in names:
        return names[annotation]
    if typing.get_origin(annotation) in (tuple, list, Sequence):
        items = [item for item in typing.get_args(annotation) if item is not Ellipsis]
        plural = {int: "integers", float: "numbers", str: "strings", bool: "booleans"}
        return f"a list of {plural.get(items[0], 'values') if items else 'values'}"
    return getattr(annotation, "__name__", str(annotation))


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return value
