"""Errors name the argument, the contract and what came; a fallback is logged, once."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from kernel_cases import moments_inputs, wkv7_inputs

from doxastic.kernels import checks
from doxastic.kernels.moments import weighted_moments
from doxastic.kernels.wkv7 import wkv7, wkv7_step

T = 6
WRONG_WKV7 = [
    ("v", torch.zeros(2, T, 8), "v has shape [2, 6, 8]; expected [B, T, H, V]"),
    ("v", torch.zeros(2, 0, 2, 8), "v has shape [2, 0, 2, 8]; expected [B, T, H, V] with at least"),
    ("k", torch.zeros(2, T, 8), "k has shape [2, 6, 8]; expected [B, T, H, K]"),
    (
        "k",
        torch.zeros(2, 5, 2, 8),
        "k has shape [2, 5, 2, 8]; expected [B, T, H, K] = [2, 6, 2, 8]",
    ),
    (
        "w",
        torch.zeros(2, T, 2, 7),
        "w has shape [2, 6, 2, 7]; expected [B, T, H, K] = [2, 6, 2, 8]",
    ),
    ("a", torch.zeros(2, T, 3, 8), "a has shape [2, 6, 3, 8]"),
    ("b", torch.zeros(1, T, 2, 8), "b has shape [1, 6, 2, 8]"),
    ("r", torch.zeros(2, T, 2, 9), "[B, T, H, K] or [B, T, H, Q, K] = [2, 6, 2, 8]"),
    ("r", torch.zeros(2, T, 2, 3, 9), "r has shape [2, 6, 2, 3, 9]; expected [B, T, H, Q, K]"),
    ("r", torch.zeros(2, T, 2, 0, 8), "r has shape [2, 6, 2, 0, 8]"),
    ("r", torch.zeros(2, T, 2, 8, dtype=torch.long), "r is torch.int64; expected a floating dtype"),
    ("k", torch.zeros(2, T, 2, 8, device="meta"), "k is on meta; expected cpu"),
    ("w", torch.full((2, T, 2, 8), 0.9), "w reaches 0.9; expected log-decays, at most 0"),
    ("state", torch.zeros(2, 2, 8, 7), "state has shape [2, 2, 8, 7]; expected [B, H, V, K]"),
    ("state", torch.zeros(2, 2, 8, 8).half(), "state is torch.float16; expected torch.float32"),
    ("state", torch.zeros(2, 2, 8, 8).double(), "state is torch.float64; expected torch.float32"),
    ("reset", torch.zeros(2, T + 1, dtype=torch.bool), "reset is [2, 7] torch.bool on cpu"),
    ("reset", torch.zeros(2, T), "expected [B, T] = [2, 6] torch.bool on cpu"),
    ("backend", "cuda", "backend 'cuda' does not exist; expected 'auto' or ['chunked', 'cpu'"),
]
WRONG_MOMENTS = [
    ("value", torch.zeros(2, T), "value has shape [2, 6]; expected [B, T, M]"),
    ("value", torch.zeros(2, 0, 8), "value has shape [2, 0, 8]; expected [B, T, M] with at least"),
    ("log_weight", torch.zeros(2, T, 7), "log_weight has shape [2, 6, 7]; expected [B, T, M]"),
    ("log_decay", torch.zeros(2, T, 8).long(), "log_decay is torch.int64"),
    ("log_decay", torch.full((2, T, 8), 0.5), "log_decay reaches 0.5; expected log-decays"),
    ("state", torch.zeros(2, 8), "state has shape [2, 8]; expected [B, 3, M] = [2, 3, 8]"),
    ("reset", torch.zeros(2, T, 1, dtype=torch.bool), "reset is [2, 6, 1] torch.bool"),
    ("backend", "numba", "backend 'numba' does not exist"),
]


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG_WKV7)
def test_wkv7_names_what_is_wrong(name, wrong, message):
    inputs = {key: x.float() for key, x in wkv7_inputs(T=T).items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        wkv7(**{**inputs, name: wrong})


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG_MOMENTS)
def test_weighted_moments_names_what_is_wrong(name, wrong, message):
    inputs = {key: x.float() for key, x in moments_inputs(T=T).items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        weighted_moments(**{**inputs, name: wrong})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"v": torch.zeros(2, 1, 2, 8)}, "v has shape [2, 1, 2, 8]; expected [B, H, V]"),
        ({"k": torch.zeros(2, 3, 8)}, "k has shape [2, 3, 8]; expected [B, H, K] = [2, 2, 8]"),
        ({"reset": torch.zeros(2, 1, dtype=torch.bool)}, "expected [B] = [2] torch.bool"),
        ({"backend": "cuda"}, "backend 'cuda' does not exist"),
        ({"inplace": True, "state": None}, "inplace needs a contiguous torch.float32 state"),
        (
            {"inplace": True, "k": torch.zeros(2, 2, 8, requires_grad=True)},
            "gradients are recorded",
        ),
    ],
)
def test_wkv7_step_names_what_is_wrong(options, message):
    inputs = {key: x.float() for key, x in wkv7_inputs(T=T).items()}
    inputs = {key: x if key == "state" else x[:, 0] for key, x in inputs.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        wkv7_step(**{**inputs, **options})


def test_backends_say_what_they_cannot_do():
    inputs = wkv7_inputs(T=T)
    with pytest.raises(ValueError, match=r"torch.float32 on the CPU; came torch.float64 on cpu"):
        wkv7(**inputs, backend="cpu")
    with pytest.raises(ValueError, match=r"one query per step, 4 axes. Pass backend='chunked'"):
        several = wkv7_inputs(T=T, queries=2)
        wkv7(**{name: x.float() for name, x in several.items()}, backend="cpu")
    inputs["w"] = inputs["w"] - 50
    with pytest.raises(ValueError, match=r"at least -40.0 in this dtype"):
        wkv7(**inputs, backend="chunked")


@pytest.mark.parametrize("backend", ["chunked", "reference", "cpu"])
def test_no_rows_are_no_error(backend):
    inputs = {name: x[:0].float().requires_grad_() for name, x in wkv7_inputs(T=T).items()}
    numbers = {name: x[:0].float().requires_grad_() for name, x in moments_inputs(T=T).items()}
    reset = torch.zeros(0, T, dtype=torch.bool)
    for given in (None, reset):
        y, state = wkv7(**inputs, reset=given, backend=backend)
        assert (y.shape, state.shape) == ((0, T, 2, 8), (0, 2, 8, 8))
        outputs = weighted_moments(**numbers, reset=given, backend=backend)
        assert [x.shape for x in outputs] == [(0, T, 8)] * 3 + [(0, 3, 8)]
        sum(x.sum() for x in (y, state, *outputs)).backward()
    assert all(x.grad.shape == x.shape for x in (*inputs.values(), *numbers.values()))


def test_a_fallback_is_logged_once_per_reason(caplog, monkeypatch):
    monkeypatch.setattr(checks, "_logged", set())
    inputs, several = wkv7_inputs(T=T), wkv7_inputs(T=T, queries=2)
    with caplog.at_level(logging.WARNING, "doxastic.kernels"):
        wkv7(**{name: x.float() for name, x in inputs.items()})
        assert not caplog.messages
        for _ in range(2):
            wkv7(**inputs)
            wkv7(**{name: x.float() for name, x in several.items()})
    assert caplog.messages == [
        "wkv7 uses backend 'chunked': the compiled kernel does not compute in torch.float64.",
        "wkv7 uses backend 'chunked': the compiled kernel reads one query per step.",
    ]
