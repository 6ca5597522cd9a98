"""Two processes train as one, and a run goes on with another number of processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from distributed_cases import CASES, UPDATES, build, flatten, train, unflatten
from safetensors.torch import load_file, save_file
from tolerances import SAME, assert_close

# Sums are in another order, and carried states float32.
TOLERANCE = SAME[torch.float32]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _run_two(folder: Path) -> None:
    """Run the script as torchrun runs it."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    script = Path(__file__).parents[1] / "distributed_cases.py"
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=170)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every case, trained by one process and by two, and gone on with by the other number."""
    folder = tmp_path_factory.mktemp("distributed")
    cases = {}
    for case in CASES:
        trainer = build(case)
        measured = train(trainer, UPDATES)
        state = trainer.state_dict()
        tensors = flatten(state)
        save_file(tensors, folder / f"{case}-one.safetensors")
        torch.save(state.data, folder / f"{case}-one.pt")
        measured += train(trainer, 1)
        cases[case] = SimpleNamespace(
            one=measured, at=tensors, data=state.data, after=flatten(trainer.state_dict())
        )
    _run_two(folder)
    results = torch.load(folder / "results.pt", weights_only=True)
    for case, run in cases.items():
        run.two, run.two_data = results[case]
        run.two_at = load_file(folder / f"{case}-two.safetensors")
        run.two_after = load_file(folder / f"{case}-two-resumed.safetensors")
    return cases


def _assert_same(ours, theirs):
    # Random generators are each process's own.
    names = {name for name in ours if "random/" not in name}
    assert names == {name for name in theirs if "random/" not in name}
    for name in sorted(names):
        assert_close(name, ours[name], theirs[name], TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case, runs):
    run = runs[case]
    for ours, theirs in zip(run.two, run.one, strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE)
    _assert_same(run.two_at, run.at)
    assert run.two_data == run.data


@pytest.mark.parametrize("case", CASES)
def test_two_processes_go_on_with_what_one_saved(case, runs):
    _assert_same(runs[case].two_after, runs[case].after)


@pytest.mark.parametrize("case", CASES)
def test_one_process_goes_on_with_what_two_saved(case, runs):
    run, trainer = runs[case], build(case)
    trainer.load_state_dict(unflatten(run.two_at, run.two_data))
    assert train(trainer, 1)[0] == pytest.approx(run.one[-1], rel=TOLERANCE)
    _assert_same(flatten(trainer.state_dict()), run.after)


def test_carried_states_are_saved_in_the_order_of_the_batch(runs):
    assert runs["streams-ddp"].two_at["tensors:carried"].shape[0] == 6
    assert runs["streams-ddp"].two_at["tensors:carried"].any(1).all()
