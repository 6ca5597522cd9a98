"""Kernels over independent chains: each chain once, errors, forks, and tensors that stay alive."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from doxastic.kernels.cpu import threads
from doxastic.kernels.cpu.threads import run

# Multiply-adds that are worth any number of threads.
HEAVY = 10**9


@pytest.fixture(autouse=True)
def one_thread_after() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("chains", [0, 1, 2, 3, 7, 64])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_chain_is_run_exactly_once(count, chains):
    torch.set_num_threads(count)
    pieces = []
    run(lambda first, last: pieces.append((first, last)), chains, HEAVY)
    ran = Counter(chain for first, last in pieces for chain in range(first, last))
    assert ran == Counter(range(chains))
    assert len(pieces) == max(1, min(count, chains))
    sizes = [last - first for first, last in pieces]
    assert max(sizes) - min(sizes) <= 1


def test_small_work_stays_on_the_calling_thread():
    torch.set_num_threads(3)
    callers = []
    run(lambda first, last: callers.append(threading.get_ident()), 64, 1000)
    assert callers == [threading.get_ident()]


def test_numbers_pass_and_tensors_become_addresses():
    x, seen = torch.ones(3), []
    run(lambda first, last, *values: seen.append(values), 1, 0, 7, 0.5, x, (1, 2))
    assert seen == [(7, 0.5, x.data_ptr(), (1, 2))]


@pytest.mark.parametrize("chain", [0, 2, 5])
@pytest.mark.parametrize("count", [1, 3])
def test_an_error_in_any_piece_reaches_the_caller(count, chain):
    torch.set_num_threads(count)

    def kernel(first, last):
        if first <= chain < last:
            raise RuntimeError(f"chain {chain} failed")

    with pytest.raises(RuntimeError, match=f"chain {chain} failed"):
        run(kernel, 6, HEAVY)


def test_no_piece_outlives_the_call_when_another_fails():
    torch.set_num_threads(3)
    started, done = threading.Barrier(3), []

    def kernel(first, last):
        started.wait(10)
        if first == 0:
            raise RuntimeError("the first piece failed")
        threading.Event().wait(0.05)
        done.append(first)

    with pytest.raises(RuntimeError, match="first piece failed"):
        run(kernel, 3, HEAVY)
    assert sorted(done) == [1, 2]


@pytest.mark.parametrize("count", [1, 2])
def test_a_tensor_that_is_only_an_argument_lives_until_the_kernel_ends(count):
    torch.set_num_threads(count)
    known, alive = [], []

    def made():
        # What a backward does with an expanded gradient: nothing else holds the copy.
        copy = torch.ones(()).expand(4, 1000).contiguous()
        known.append(weakref.ref(copy))
        return copy

    run(lambda first, last, address: alive.append(known[0]() is not None), 2, HEAVY, made())
    assert alive == [True] * count
    assert known[0]() is None


def test_more_threads_than_processors_still_run_everything(monkeypatch):
    monkeypatch.setattr(threads, "_pool", None)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 1)
    torch.set_num_threads(4)
    pieces = []
    run(lambda first, last: pieces.append(first), 4, HEAVY)
    assert sorted(pieces) == [0, 1, 2, 3]


class OneThread(ThreadPoolExecutor):
    """A pool at a limit of threads: it queues what it is given, but starts a single thread."""

    def _adjust_thread_count(self):
        if self._threads:
            raise RuntimeError("can't start new thread")
        super()._adjust_thread_count()


@pytest.mark.parametrize("busy", [False, True])
def test_every_chain_is_run_exactly_once_at_a_limit_of_threads(monkeypatch, busy):
    pool, release, pieces = OneThread(max_workers=4), threading.Event(), []
    monkeypatch.setattr(threads, "_pool", pool)
    torch.set_num_threads(4)
    if busy:
        pool.submit(release.wait, 10)
    run(lambda first, last: pieces.append(first), 4, HEAVY)
    # Neither twice, nor by a thread that comes late.
    ran = sorted(pieces)
    release.set()
    pool.shutdown()
    assert ran == sorted(pieces) == [0, 1, 2, 3]


def test_no_piece_outlives_the_call_when_another_cannot_be_submitted(monkeypatch):
    pool, started, done = OneThread(max_workers=4), threading.Event(), []
    monkeypatch.setattr(threads, "_pool", pool)
    torch.set_num_threads(3)

    def kernel(first, last):
        if first == 0:
            started.wait(10)
            raise RuntimeError("the first piece failed")
        started.set()
        threading.Event().wait(0.05)
        done.append(first)

    with pytest.raises(RuntimeError, match="first piece failed"):
        run(kernel, 3, HEAVY)
    ran = list(done)
    pool.shutdown()
    assert ran == done == [1]


def test_kernels_run_after_the_main_thread_has_ended():
    script = """
import threading, time, torch
from concurrent.futures import thread
from doxastic.kernels.cpu import moments_forward
torch.set_num_threads(2)
x = torch.linspace(-1, 1, 8 * 64 * 64).reshape(8, 64, 64)
inputs = x, x.flip(1), -x.abs(), torch.ones(8, 3, 64), torch.zeros(8, 64, dtype=torch.bool)
expected = moments_forward(*inputs)[0].numpy()

def work():
    while not thread._shutdown:
        time.sleep(0.01)
    if (moments_forward(*inputs)[0].numpy() == expected).all():
        print("the same")

threading.Thread(target=work).start()
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert result.stdout.strip() == "the same", result.stderr


@pytest.mark.skipif(not hasattr(threads.os, "register_at_fork"), reason="needs os.fork")
def test_a_forked_child_can_run_kernels():
    # PyTorch's own threads do not survive a fork: the child calls nothing that would use them.
    script = """
import os, torch
from doxastic.kernels.cpu import moments_forward, threads
torch.set_num_threads(2)
x = torch.linspace(-1, 1, 8 * 64 * 64).reshape(8, 64, 64)
inputs = x, x.flip(1), -x.abs(), torch.ones(8, 3, 64), torch.zeros(8, 64, dtype=torch.bool)
expected = moments_forward(*inputs)[0].numpy()
assert threads._pool is not None
child = os.fork()
if not child:
    assert threads._pool is None
    os._exit(0 if (moments_forward(*inputs)[0].numpy() == expected).all() else 3)
_, status = os.waitpid(child, 0)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
