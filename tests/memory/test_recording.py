"""Memories where tensors stand for others: fake tensors, traced graphs, transforms, subclasses."""

from __future__ import annotations

import warnings

import pytest
import torch
from tolerances import NORMALISED, SAME, assert_close
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

from doxastic.kernels.belief_moments import belief_moments_features
from doxastic.kernels.token_shift import shift_mix
from doxastic.memory.belief import BeliefMemory

F32 = torch.float32
INPUTS = 5
every_length = pytest.mark.parametrize("steps", [1, 3])


def build():
    """Return a memory without zeros, which would hide whatever they multiply."""
    torch.manual_seed(0)
    memory = BeliefMemory(INPUTS, 32, norm_eps=1e4)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return memory


def arguments(memory, steps, seed=0, batch=2):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, steps, INPUTS, generator=random)
    state = torch.randn(batch, memory.state_size, generator=random).abs()
    return x, state, torch.zeros(batch, steps, dtype=torch.bool)


@every_length
def test_fake_tensors_have_shapes(steps):
    memory = build()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        x, state = torch.randn(2, steps, INPUTS), torch.zeros(2, memory.state_size)
        features, state = memory(x, state, torch.zeros(2, steps, dtype=torch.bool))
    assert features.shape == (2, steps, memory.feature_size)
    assert state.shape == (2, memory.state_size)


def test_fake_tensors_have_shapes_in_the_kernels():
    with FakeTensorMode():
        reset = torch.zeros(2, 3, dtype=torch.bool)
        mixed = shift_mix(torch.randn(2, 3, 64), torch.randn(2, 64), reset, torch.randn(4, 64))
        features, _ = belief_moments_features(
            torch.randn(2, 3, 48), torch.ones(16), state=torch.zeros(2, 3, 16), reset=reset
        )
    assert [x.shape for x in mixed] == [(2, 3, 64)] * 4
    assert features.shape == (2, 3, 64)


@every_length
def test_a_graph_of_make_fx_computes_what_the_memory_does(steps):
    memory = build()
    with torch.no_grad():
        graph = make_fx(lambda *given: memory(*given))(*arguments(memory, steps))
        other = arguments(memory, steps, seed=1)
        for name, x, y in zip(("features", "state"), graph(*other), memory(*other), strict=True):
            assert_close(name, x, y, NORMALISED[F32])


@every_length
def test_a_graph_of_jit_trace_computes_what_the_memory_does(steps):
    memory = build()
    with torch.no_grad(), warnings.catch_warnings():
        # Tracing is deprecated, and warns of every shape that is looked at.
        warnings.simplefilter("ignore")
        graph = torch.jit.trace(memory, arguments(memory, steps), check_trace=False)
        other = arguments(memory, steps, seed=1)
        for name, x, y in zip(("features", "state"), graph(*other), memory(*other), strict=True):
            assert_close(name, x, y, NORMALISED[F32])


@every_length
def test_a_functional_gradient_is_that_of_backward(steps):
    memory = build()
    given = arguments(memory, steps)
    parameters = {name: x.detach() for name, x in memory.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(memory, parameters, given)[0].square().mean()

    actual = torch.func.grad(loss)(parameters)
    memory(*given)[0].square().mean().backward()
    for name, parameter in memory.named_parameters():
        assert_close(name, actual[name], parameter.grad, NORMALISED[F32])


@every_length
def test_a_batched_call_equals_single_ones(steps):
    memory = build()
    given = [arguments(memory, steps, seed) for seed in range(3)]
    with torch.no_grad():
        batched = torch.func.vmap(memory)(*map(torch.stack, zip(*given, strict=True)))
        for i, single in enumerate(given):
            for name, x, y in zip(("features", "state"), batched, memory(*single), strict=True):
                assert_close(name, x[i], y, NORMALISED[F32])


class Elsewhere(Tensor):
    """A tensor whose data is another's: its own address is 0, as a distributed tensor's is."""

    @staticmethod
    def __new__(cls, held):
        return Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        def opened(x):
            return x.held if isinstance(x, Elsewhere) else x

        def closed(x):
            return Elsewhere(x) if isinstance(x, Tensor) else x

        args, kwargs = tree_map(opened, (args, kwargs or {}))
        return tree_map(closed, function(*args, **kwargs))


def test_a_subclass_that_keeps_its_data_elsewhere_is_composed():
    x, previous, mix = torch.randn(2, 3, 64), torch.randn(2, 64), torch.rand(2, 64)
    reset = torch.tensor([[False, True, False], [True, False, False]])
    expected = shift_mix(x, previous, reset, mix)
    actual = shift_mix(Elsewhere(x), Elsewhere(previous), reset, Elsewhere(mix))
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close("mixed", ours.held, theirs, SAME[F32])
