"""Derivatives of the chunked and the reference backend against finite differences."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import reset_at, wkv7_inputs

from doxastic.kernels import chunked, reference


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", 4)


def function(module, reset):
    def call(r, w, k, v, a, b, state):
        return module.wkv7(r, w, k, v, a, b, state, reset)

    return call


@pytest.mark.parametrize("module", [chunked, reference], ids=["chunked", "reference"])
@pytest.mark.parametrize("queries", [None, 2])
@pytest.mark.parametrize("resets", [(), (0,), (3, 4, 6)], ids=str)
def test_gradients_match_finite_differences(module, queries, resets, small_chunks):
    inputs = wkv7_inputs(B=1, T=9, H=1, K=3, V=2, queries=queries)
    leaves = [x.requires_grad_() for x in inputs.values()]
    assert torch.autograd.gradcheck(function(module, reset_at(2, 9, resets)[:1]), leaves)


@pytest.mark.parametrize("resets", [(), (3, 6)], ids=str)
def test_second_derivatives_match_finite_differences(resets, small_chunks):
    leaves = [x.requires_grad_() for x in wkv7_inputs(B=1, T=9, H=1, K=3, V=2).values()]
    call = function(chunked, reset_at(2, 9, resets)[:1])
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


def test_the_chunk_size_does_not_matter(monkeypatch):
    inputs = wkv7_inputs(T=37)
    y, state = chunked.wkv7(**inputs)
    for size in (1, 3, 8, 64):
        monkeypatch.setattr(chunked, "CHUNK", size)
        y_other, state_other = chunked.wkv7(**inputs)
        torch.testing.assert_close(y_other, y)
        torch.testing.assert_close(state_other, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_the_lowest_log_decay_is_still_finite(dtype):
    lowest = chunked.lowest_log_decay(dtype)
    inputs = {name: 10 * x.to(dtype) for name, x in wkv7_inputs(T=33, K=32, V=32).items()}
    inputs |= {name: inputs[name] / 10 for name in ("a", "b")}
    inputs["w"] = torch.full_like(inputs["w"], lowest)
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    y, state = chunked.wkv7(**leaves)
    gradients = torch.autograd.grad(y.sum() + state.sum(), list(leaves.values()))
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)
