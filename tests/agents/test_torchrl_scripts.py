"""The scripts of docs/torchrl.md run, and a trained run goes on in TorchRL."""

import sys

import pytest
import torch
from page_scripts import assert_short, execute, scripts_of
from tensordict import TensorDict

import doxastic
from doxastic.agents.torchrl import MemoryModule

SCRIPTS = scripts_of("torchrl.md")
SIZES = {
    "ppo": "FRAMES, ENVS, STEPS, EPOCHS, MINIBATCHES = 512, 4, 64, 1, 2",
    "dqn": "FRAMES = 400",
    "sac": "FRAMES = 400",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return doxastic.train(
        "noisy-cartpole",
        run_dir=tmp_path_factory.mktemp("runs") / "agent",
        total_steps=128,
        env={"num_envs": 4},
        ppo={"segment_steps": 16, "minibatches": 2, "normalize_observation": True},
        evaluation={"episodes": 4},
        progress=False,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_have_fewer_than_sixty_lines_and_short_ones(name):
    assert_short(SCRIPTS[name])


@pytest.mark.parametrize("name", SIZES)
def test_a_script_of_the_page_runs(name, capsys):
    execute(SCRIPTS[name], SIZES[name])
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_the_script_that_starts_from_a_run_runs(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script", str(run)])
    execute(SCRIPTS["run"])
    assert "features: [4, 128, 128]" in capsys.readouterr().out


def test_the_memory_of_a_run_reads_observations_as_the_environment_gives_them(run):
    module, agent = MemoryModule.from_run(run), doxastic.load(run)
    assert agent.normalizer is not None
    observation, state = torch.randn(3, 5), torch.zeros(3, module.memory.state_size)
    start = torch.ones(3, 1, dtype=torch.bool)
    entries = {"observation": observation, "memory_state": state, "is_init": start}
    with torch.no_grad():
        data = module(TensorDict(entries, [3]))
        x = agent.policy.encoder(agent.normalizer(observation)).unsqueeze(1)
        features, following = agent.policy.memory(x, state, start)
    torch.testing.assert_close(data["features"], features.squeeze(1))
    torch.testing.assert_close(data["next", "memory_state"], following)


def test_a_run_of_another_observation_space_is_refused(run):
    module = MemoryModule.from_run(run)
    entries = {
        "observation": torch.zeros(2, 4),
        "memory_state": torch.zeros(2, module.memory.state_size),
        "is_init": torch.ones(2, 1, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match=r"config\.yaml"):
        module(TensorDict(entries, [2]))


@pytest.mark.slow
def test_ppo_in_plain_torchrl_learns_cartpole_without_velocities(capsys):
    execute(SCRIPTS["ppo"])
    lengths = [float(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().out.splitlines()]
    assert sum(lengths[-10:]) / 10 >= 150
