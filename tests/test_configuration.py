"""Strict loading of plain data into dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml

from doxastic.configuration import ConfigError, dump_yaml, from_dict, read_yaml, to_dict


@dataclass(frozen=True, kw_only=True)
class _Inner:
    width: int = 8
    kind: Literal["belief", "gru"] = "belief"
    rate: float = 0.5
    levels: tuple[float, ...] | None = None
    shape: tuple[int, int] = (1, 2)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width is {self.width}; expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class _Outer:
    seed: int = 0
    anneal: bool = True
    name: str = "x"
    inner: _Inner = field(default_factory=_Inner)


def test_keys_left_out_keep_their_defaults():
    assert from_dict(_Outer, {"inner": {"width": 4}}) == _Outer(inner=_Inner(width=4))


def test_plain_data_and_yaml_round_trip():
    config = _Outer(
        seed=3, inner=_Inner(rate=3e-4, levels=(0.0, 0.1), options={"variant": "hard", "n": 2})
    )
    assert from_dict(_Outer, to_dict(config)) == config
    assert from_dict(_Outer, yaml.safe_load(dump_yaml(to_dict(config)))) == config


def test_integers_are_numbers_but_booleans_are_not():
    assert from_dict(_Inner, {"rate": 1}).rate == 1.0
    with pytest.raises(ConfigError, match=r"rate is the boolean True; expected a number"):
        from_dict(_Inner, {"rate": True})
    with pytest.raises(ConfigError, match=r"width is the number 2\.0; expected an integer"):
        from_dict(_Inner, {"width": 2.0})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"inner": {"widht": 3}}, r"unknown key inner\.widht; did you mean inner\.width\?"),
        ({"sed": 3}, r"unknown key sed; did you mean seed\?"),
        ({"zzz": 3}, r"unknown key zzz; known are seed, anneal, name, inner"),
        ({"inner": 3}, r"inner is the integer 3; expected a section"),
        ({"inner": {"width": "8"}}, r"inner\.width is the string '8'; expected an integer"),
        ({"inner": {"kind": "grü"}}, r"inner\.kind is .*expected one of belief, gru; did you"),
        ({"inner": {"levels": 0.1}}, r"inner\.levels is .*expected a list of numbers"),
        ({"inner": {"levels": [0, "a"]}}, r"inner\.levels\[1\] is the string 'a'"),
        ({"inner": {"shape": [1]}}, r"inner\.shape is the list \[1\]; expected a list of 2"),
        ({"inner": {"width": 0}}, r"inner: width is 0; expected 1 or more"),
        ({"anneal": "yes"}, r"anneal is the string 'yes'; expected true or false"),
        ({"name": None}, r"name is empty \(null\); expected a string"),
        ([1], r"the configuration is the list \[1\]"),
    ],
)
def test_an_error_names_the_path_the_expectation_and_what_came(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(_Outer, data)


@pytest.mark.parametrize(("text", "number"), [("3e-4", "3.0e-4"), ("1.5e3", "1.5e+3")])
def test_a_number_that_yaml_reads_as_text_is_explained(text, number):
    data = yaml.safe_load(f"inner: {{rate: {text}}}")
    with pytest.raises(ConfigError, match=r"expected a number; YAML reads") as raised:
        from_dict(_Outer, data)
    assert f"write {number}" in str(raised.value)
    assert isinstance(yaml.safe_load(number), float)


def test_a_file_that_is_not_yaml_is_an_error_with_its_name(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1, 2")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not valid YAML"):
        read_yaml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not"):
        read_yaml(path)
