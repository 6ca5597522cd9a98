"""The benchmark of speed inside Stable-Baselines3 runs, and its peer is exact."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from sb3_contrib.ppo_recurrent import MlpLstmPolicy

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_the_benchmark_compares_speed_and_buffers(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "sb3.py"), "--quick", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "sb3-quick.json").read_text(encoding="utf-8"))
    assert len(data["results"]["speed"]) == len(data["results"]["buffer"]) == 5
    assert [target["least"] for target in data["targets"]] == [3.0, 1.0, 3.0, 1.0]


@torch.no_grad()
def test_the_lstm_in_one_call_is_the_lstm_in_a_loop(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    peer = importlib.import_module("peers.contrib_one_call").OneCallLstmPolicy
    classes = (MlpLstmPolicy, peer)
    loop, one_call = (policy(Box(-1, 1, (2,)), Discrete(2), lambda _: 0.0) for policy in classes)
    one_call.load_state_dict(loop.state_dict())
    pi, vf = (tuple(torch.randn(2, 1, 4, 256)) for _ in "pv")
    starts = torch.zeros(4, 6)
    starts[[0, 2], 0] = 1
    arguments = torch.randn(24, 2), torch.zeros(24), RNNStates(pi, vf), starts.flatten()
    results = loop.evaluate_actions(*arguments), one_call.evaluate_actions(*arguments)
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)
