"""Experiments: presets, precedence, strictness, and agents built from them."""

from __future__ import annotations

import pytest
import torch
import yaml
from gymnasium import spaces

from doxastic.configuration import ConfigError, preset_names
from doxastic.envs.make import make_vector_env
from doxastic.experiment import (
    Experiment,
    build_agent,
    from_dict,
    load_preset,
    override,
    to_dict,
)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_loads_is_whole_and_round_trips(name):
    experiment = load_preset(name)
    assert experiment.name == name
    assert from_dict(to_dict(experiment)) == experiment
    from importlib import resources

    text = (resources.files("doxastic.configs") / f"{name}.yaml").read_text()
    assert _keys(yaml.safe_load(text)) == _keys(to_dict(experiment))


@pytest.mark.parametrize("name", preset_names())
def test_the_environment_and_the_agent_of_a_preset_can_be_built(name):
    experiment = load_preset(name)
    env = make_vector_env(experiment.env, num_envs=2)
    agent = build_agent(experiment, env.single_observation_space, env.single_action_space)
    env.close()
    assert agent.initial_state(2).shape == (2, agent.memory.state_size)


def test_the_presets_are_those_documented():
    assert preset_names() == [
        "cartpole",
        "noisy-cartpole",
        "sequential-test-easy",
        "sequential-test-hard",
        "sequential-test-hard-long",
    ]
    assert load_preset("noisy-cartpole").env.noise == (0.0, 0.1, 0.2, 0.3)
    assert load_preset("cartpole").total_steps == 200_000
    assert load_preset("sequential-test-hard").env.kwargs == {"variant": "hard"}


def test_an_override_wins_over_the_preset_and_the_preset_over_the_default():
    preset = load_preset("sequential-test-easy")
    assert preset.ppo.discount == 1.0 != Experiment().ppo.discount
    changed = override(preset, {"seed": 7, "memory": {"kind": "gru"}})
    assert (changed.seed, changed.memory.kind) == (7, "gru")
    assert changed.memory.width == preset.memory.width
    assert changed.ppo == preset.ppo


def test_an_override_replaces_the_arguments_of_the_environment_as_a_whole():
    changed = override(load_preset("sequential-test-easy"), {"env": {"kwargs": {"horizon": 9}}})
    assert changed.env.kwargs == {"horizon": 9}


def test_a_file_is_loaded_by_its_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 5\nmemory: {kind: lstm}\n")
    assert load_preset(path) == override(Experiment(), {"seed": 5, "memory": {"kind": "lstm"}})


def test_an_unknown_preset_is_answered_with_the_nearest_and_all():
    with pytest.raises(ConfigError, match=r"did you mean noisy-cartpole") as raised:
        load_preset("noisy-cart-pole")
    assert all(name in str(raised.value) for name in preset_names())


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file .*absent\.yaml"):
        load_preset(tmp_path / "absent.yaml")


def test_an_error_in_a_file_names_the_file_and_the_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("ppo: {learning_rate: 3e-4}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: ppo\.learning_rate .* write 3\.0e-4"):
        load_preset(path)
    path.write_text("memory: {widht: 3}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown key memory\.widht; .*width"):
        load_preset(path)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "tpu"])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(ConfigError, match=rf"device is '{device}'; expected cpu, mps, cuda"):
        Experiment(device=device)


def test_a_device_that_is_not_here_is_answered_with_those_present_when_it_is_used():
    experiment = Experiment(device="cuda:99")
    with pytest.raises(ConfigError, match=r"device is 'cuda:99'.* has cpu"):
        build_agent(experiment, spaces.Box(-1, 1, (4,)), spaces.Discrete(2))


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", -1), ("threads", 0), ("total_steps", 0), ("checkpoint_updates", 0), ("name", "a/b")],
)
def test_a_value_no_run_can_use_is_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field} is .*; expected"):
        Experiment(**{field: value})


def test_the_folder_is_named_after_the_environment_without_a_name():
    assert override(Experiment(), {"env": {"id": "doxastic/CartPole-v0"}}).folder_name == (
        "doxastic-CartPole-v0"
    )
    assert Experiment(name="mine").folder_name == "mine"


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    arguments = (spaces.Box(-1, 1, (4,)), spaces.Discrete(2))
    before = torch.get_rng_state()
    first, second, other = (
        build_agent(Experiment(seed=seed), *arguments).state_dict() for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def _keys(data: object, path: str = "") -> set[str]:
    """Return the dotted paths of all keys, the environment's own arguments left out."""
    if not isinstance(data, dict) or path.endswith("kwargs"):
        return {path}
    return {key for name, part in data.items() for key in _keys(part, f"{path}.{name}")}
