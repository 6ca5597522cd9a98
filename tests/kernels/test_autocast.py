"""Autocast rounds what projections hand over, never a recurrence."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import moments_inputs, random_reset, time_mix_inputs, wkv7_inputs
from tolerances import SAME, assert_close

from doxastic.kernels.moments import weighted_moments
from doxastic.kernels.time_mix import time_mix
from doxastic.kernels.wkv7 import wkv7, wkv7_step

F32 = torch.float32
GPU = pytest.param("cuda", marks=pytest.mark.gpu)
every_device = pytest.mark.parametrize("device", ["cpu", GPU])
every_backend = pytest.mark.parametrize("backend", ["reference", "chunked", "auto"])


def check(function, inputs, device, **options):
    inputs = {name: x.to(device, F32) for name, x in inputs.items()}
    expected = function(**inputs, **options)
    with torch.autocast(device, torch.bfloat16):
        actual = function(**inputs, **options)
    for x, y in zip(actual, expected, strict=True):
        assert x.dtype == F32
        assert_close("result", x, y, SAME[F32])


@every_device
@every_backend
def test_recurrences_are_the_same_under_autocast(device, backend):
    reset = random_reset(2, 9, 0.2).to(device)
    check(wkv7, wkv7_inputs(T=9), device, reset=reset, backend=backend)
    check(weighted_moments, moments_inputs(T=9), device, reset=reset, backend=backend)
    single = {n: x if n == "state" else x[:, 0] for n, x in wkv7_inputs(T=1).items()}
    check(wkv7_step, single, device, reset=reset[:, 0], backend=backend)


@every_device
def test_the_time_mix_of_float32_tensors_is_the_same_under_autocast(device):
    reset = random_reset(2, 9, 0.2).to(device)
    check(time_mix, time_mix_inputs(T=9), device, norm_eps=0.1, reset=reset)
