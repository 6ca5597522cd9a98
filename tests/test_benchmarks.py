"""The benchmarks run, say what they ran on, and refuse to time what is wrong."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def quick(name: str, folder: Path, *words: str) -> dict[str, Any]:
    """Run a benchmark as its README says, only quicker, and return what it wrote."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--output", str(folder)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    text = (folder / f"{name}-quick.json").read_text(encoding="utf-8")
    assert str(folder) not in text and str(BENCHMARKS.parent) not in text
    data: dict[str, Any] = json.loads(text)
    assert data["command"] == " ".join(["python", f"benchmarks/{name}.py", "--quick", *words])
    assert {"processor", "cores", "load_average", "commit", "versions", "threads"} <= set(data)
    return data


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return a benchmark's module without running it."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    path = BENCHMARKS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_kernels_compares_every_arm_in_both_passes(tmp_path: Path) -> None:
    data = quick("kernels", tmp_path)
    entries = data["results"]["wkv7"]
    assert [entry["pass"] for entry in entries] == ["forward", "forward + backward"]
    for entry in entries:
        assert set(entry["ratio_to_cpu"]) == {"cpu", "chunked", "nn.LSTM", "nn.GRU"}
        assert entry["ratio_to_cpu"]["cpu"] == 1.0
    assert len(data["results"]["weighted_moments"]) == 2
    assert [target["least"] for target in data["targets"]] == [2.5, 1.0]


def test_acting_compares_every_memory_with_the_cells(tmp_path: Path) -> None:
    data = quick("acting", tmp_path)
    entries = data["results"]["step"]
    assert [entry["batch"] for entry in entries] == [1, 16, 256]
    arms = {"RWKV7Memory", "BeliefMemory, moments", "GRUMemory", "nn.GRUCell", "nn.LSTMCell"}
    assert all(arms <= set(entry["ratio_to_gru_cell"]) for entry in entries)
    assert [target["most"] for target in data["targets"]] == [1.5, 1.5, 2.2]


@pytest.mark.slow
def test_training_compares_whole_loops_and_measures_the_rollout(tmp_path: Path) -> None:
    data = quick("training", tmp_path)
    arms = {entry["arm"] for entry in data["results"]["same_environments"]}
    assert {"doxastic moments", "sb3-contrib", "hand-written LSTM"} <= arms
    assert all(entry["per_cpu_second"] > 0 for entry in data["results"]["many_environments"])
    assert data["results"]["rollout_memory"][0]["tensors"] > 0
    assert [target["least"] for target in data["targets"]] == [None, 4.0, 4.0, 1.0, 1.0, 8.0]


def test_envs_compares_tasks_with_their_peers(tmp_path: Path) -> None:
    data = quick("envs", tmp_path)
    assert {entry["num_envs"] for entry in data["results"]["steps"]} == {1, 16}


def test_a_process_grows_by_less_than_300_megabytes_for_a_large_rollout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # By its own name: the fresh process that measures has to find the module again.
    monkeypatch.syspath_prepend(BENCHMARKS)
    measured = importlib.import_module("rollout_memory").rollout_memory(256, 128, 4, 32)
    if measured["growth_rollout"] is None:
        pytest.skip("this system does not tell a process's peak memory in /proc")
    assert measured["memory_state"] > 256 * 4 * 32 * 32 * 4 / 1e6
    assert measured["tensors"] < measured["growth_rollout"] < 300


def test_a_wrong_kernel_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = load("kernels", monkeypatch)
    case = kernels.wkv7_case((2, 9, 2, 16))
    kernels.check(case)

    def wrong(*inputs: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        y, state = case.function(*inputs, **options)
        return y * (1.001 if options["backend"] == "cpu" else 1.0), state

    with pytest.raises(kernels.WrongNumbers, match=r"'cpu'.*No speed is reported"):
        kernels.check(case._replace(function=wrong))


def test_arms_take_turns_in_an_order_that_rotates(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = load("harness", monkeypatch)
    called: list[str] = []
    arms = {name: harness.Arm(lambda name=name: called.append(name)) for name in "abc"}
    timings = harness.measure(arms, 3)
    assert "".join(called) == "abc" + "abc" + "bca" + "cab"
    assert all(len(timing.cpu) == len(timing.wall) == 3 for timing in timings.values())


def test_a_ratio_is_paired_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = load("harness", monkeypatch)
    fast, slow = harness.Timing([1.0, 10.0, 2.0], []), harness.Timing([3.0, 30.0, 6.0], [])
    assert harness.ratio(slow, fast) == 3.0


@pytest.mark.parametrize("rnn", ["lstm", "gru"])
def test_the_handwritten_segment_equals_its_steps(
    rnn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = load("peers/lstm_ppo", monkeypatch)
    policy = peer.RecurrentPolicy(3, 2, peer.Settings(rnn=rnn, width=8))
    observation, start = torch.randn(4, 11, 3), torch.rand(4, 11) < 0.3
    state = first = tuple(torch.randn_like(part) for part in policy.initial_state(4))
    steps = []
    for t in range(11):
        logits, value, *state = policy.step(observation[:, t], tuple(state), start[:, t])
        steps.append((logits, value))
    segment = policy.segment(observation, first, start)
    for found, expected in zip(segment, zip(*steps, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(expected, 1))


def test_the_handwritten_advantages_are_those_worked_out_by_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = load("peers/lstm_ppo", monkeypatch)
    environments = load("peers/environments", monkeypatch)
    settings = peer.Settings(segment_steps=3, discount=0.5, gae_lambda=0.5)
    loop = peer.RecurrentPPO(environments.vector_positions_only(1), settings)
    loop._rewards[:, 0], loop._dones[:, 0] = (1.0, 2.0, 4.0), (False, True, False)
    loop._values[:, 0] = torch.tensor([1.0, 1.0, 2.0])
    # Errors: 1 + .5 * 1 - 1, then 2 - 1 at the end of an episode, then 4 + .5 * 8 - 2.
    advantage = loop._advantages(torch.tensor([8.0]).numpy())
    assert advantage[:, 0].tolist() == [0.5 + 0.25 * 1.0, 1.0, 6.0]


def test_the_language_model_is_timed_beside_every_peer(tmp_path: Path) -> None:
    data = quick("language", tmp_path)
    decoding = {entry["arm"]: entry["per_cpu_second"] for entry in data["results"]["decoding"]}
    assert {"doxastic RWKV-7", "doxastic RWKV-7, 32 at once", "rwkv package"} <= set(decoding)
    assert {entry["arm"] for entry in data["results"]["training"]} >= {"GPT, modern"}
    assert all(rate > 0 for rate in decoding.values())


def test_language_models_of_equal_size_learn_from_the_same_batches(tmp_path: Path) -> None:
    data = quick("language_learning", tmp_path)
    entries = {entry["arm"]: entry for entry in data["results"]["learning"]}
    ours, modern = entries["doxastic RWKV-7"], entries["GPT, modern"]
    assert abs(ours["parameters"] / modern["parameters"] - 1) < 0.01
    assert all(0 < entry["loss"] < 5 for entry in entries.values())
