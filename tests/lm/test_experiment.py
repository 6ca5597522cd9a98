"""Experiments of language models: presets, precedence, strictness."""

from __future__ import annotations

from importlib import resources

import pytest
import yaml

from doxastic.configuration import ConfigError, preset_names, to_dict
from doxastic.language.config import official_ranks
from doxastic.language.model import LanguageModel
from doxastic.lm.experiment import PRESETS, Experiment, from_dict, load_preset, override


@pytest.mark.parametrize("name", preset_names(PRESETS))
def test_a_preset_loads_is_whole_and_round_trips(name):
    experiment = load_preset(name)
    assert experiment.name == name
    assert from_dict(to_dict(experiment)) == experiment
    written = yaml.safe_load((resources.files(PRESETS) / f"{name}.yaml").read_text())
    assert _keys(written) == _keys(to_dict(experiment))


def _keys(data):
    if not isinstance(data, dict):
        return None
    return {key: _keys(value) for key, value in data.items()}


def test_the_presets_are_those_documented():
    assert {"finetune", "shakespeare", "tiny"} <= set(preset_names(PRESETS))
    protocol = load_preset("shakespeare")
    assert (protocol.model.layers, protocol.model.width, protocol.data.block) == (4, 128, 64)
    assert (protocol.data.batch_size, protocol.data.batches) == (12, "windows")
    assert (protocol.training.updates, protocol.training.betas) == (2000, (0.9, 0.99))
    rates = protocol.training.learning_rate, protocol.training.final_learning_rate
    assert rates == (1e-3, 1e-4)


@pytest.mark.parametrize("name", preset_names(PRESETS))
def test_a_preset_of_a_small_model_takes_one_thread(name):
    # Several wait for each other where the machine has other work to do.
    assert load_preset(name).threads == 1


def test_the_smallest_preset_has_as_many_parameters_as_it_says():
    comment = (resources.files(PRESETS) / "tiny.yaml").read_text().splitlines()[0]
    model = LanguageModel(load_preset("tiny").model.build(257))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f" {count:,} parameters" in comment


def test_sizes_left_open_follow_the_width():
    config = override(Experiment(), {"model": {"width": 256}}).model.build(300)
    assert (config.vocab_size, config.hidden_size) == (300, 1024)
    assert config.low_ranks == official_ranks(256)
    assert override(Experiment(), {"model": {"vocab_size": 512}}).model.build(300).vocab_size == 512


def test_an_override_replaces_single_values_of_a_section():
    changed = override(load_preset("tiny"), {"training": {"updates": 7}})
    assert changed.training.updates == 7
    assert changed.training.learning_rate == load_preset("tiny").training.learning_rate


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training": {"update": 3}},
            r"key training\.update; did you mean training\.updates\?",
        ),
        ({"training": {"learning_rate": "1e-3"}}, r"learning_rate is the string .* write 1\.0e-3"),
        ({"training": {"schedule": "cosin"}}, r"expected one of cosine, .* did you mean cosine\?"),
        ({"training": {"updates": 0}}, "updates is 0; expected 1 or more"),
        (
            {"data": {"batches": "rows"}},
            "expected one of auto, windows, packed, documents",
        ),
        ({"data": {"block": 0}}, "block is 0; expected 1 or more"),
        ({"data": {"suffixes": []}}, r"suffixes is \[\]; expected at least one"),
        ({"data": {"held_out_fraction": 1.0}}, "held_out_fraction is 1.0; expected 0 or more"),
        ({"samples": {"tokens": 0}}, "tokens 0"),
        ({"name": "a/b"}, "expected letters, digits"),
        ({"checkpoint_updates": 0}, "checkpoint_updates is 0; expected 1 or more"),
    ],
)
def test_what_no_run_can_use_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        override(Experiment(), changes)


def test_sizes_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ConfigError, match=r"model: width is 100; expected a multiple of head_size"):
        override(Experiment(), {"model": {"width": 100}}).model.build(257)


def test_an_unknown_preset_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"did you mean tiny\? presets are finetune, "):
        load_preset("tinny")
