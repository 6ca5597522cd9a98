"""A belief memory as one compiled graph, and under autocast: the same numbers as without."""

from __future__ import annotations

import pytest
import torch
from tolerances import KERNEL, STACKED, assert_close

from doxastic.memory.belief import BeliefMemory

F32, BF16 = torch.float32, torch.bfloat16
B, T, INPUTS = 3, 9, 5
READOUTS = ["moments", "precision", "learned", "none"]
every_readout = pytest.mark.parametrize("readout", READOUTS)
GPU = pytest.param("cuda", marks=pytest.mark.gpu)
SLOW = pytest.mark.slow
# Inductor imports parts of PyTorch that still decorate methods with TorchScript.
quiet = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(readout, device="cpu", layers=1, head_size=16):
    """Return a memory without zeros, which would hide whatever they multiply."""
    memory = BeliefMemory(
        INPUTS, 32, readout=readout, layers=layers, head_size=head_size, belief_size=16,
        norm_eps=1e4,
    )  # fmt: skip
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return memory.to(device)


def arguments(memory, device="cpu", steps=T):
    random = torch.Generator().manual_seed(1)
    x = torch.randn(B, steps, INPUTS, generator=random)
    state = torch.randn(B, memory.state_size, generator=random).abs()
    reset = torch.rand(B, steps, generator=random) < 0.2
    return x.to(device), state.to(device), reset.to(device)


def results(memory, call, x, state, reset):
    """Return features, state, and the gradients of the parameters, the input and the state."""
    leaves = {"x": x.clone().requires_grad_(), "state": state.clone().requires_grad_()}
    features, new = call(leaves["x"], leaves["state"], reset)
    loss = features.float().square().mean() + new.square().mean()
    leaves |= dict(memory.named_parameters())
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {"features": features.detach(), "new state": new.detach(), **named}


def check(memory, call, *given):
    expected, actual = results(memory, memory, *given), results(memory, call, *given)
    for name, x in expected.items():
        assert_close(name, actual[name], x, STACKED[F32])


@every_readout
def test_forward_and_backward_are_one_graph_with_the_numbers_of_eager(readout):
    memory = build(readout)
    compiled = torch.compile(memory, fullgraph=True, backend="aot_eager")
    check(memory, compiled, *arguments(memory))


@quiet
@pytest.mark.timeout(600)
@every_readout
@pytest.mark.parametrize("device", [pytest.param("cpu", marks=SLOW), GPU])
def test_generated_code_has_the_numbers_of_eager(readout, device):
    memory = build(readout, device, layers=2)
    check(memory, torch.compile(memory, fullgraph=True), *arguments(memory, device))


@pytest.mark.parametrize("readout", ["moments", pytest.param("precision", marks=SLOW)])
@pytest.mark.parametrize("device", ["cpu", GPU])
@torch.no_grad()
def test_an_acting_step_is_one_graph_with_the_numbers_of_eager(readout, device):
    memory = build(readout, device)
    compiled = torch.compile(memory, fullgraph=True, backend="eager")
    x, state, reset = arguments(memory, device, steps=1)
    for name, a, b in zip("xs", compiled(x, state, reset), memory(x, state, reset), strict=True):
        assert_close(name, a, b, STACKED[F32])


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_lengths_share_a_graph(device):
    """Lengths that change, as those of packed sequences do, are compiled twice at most."""
    from torch._dynamo.testing import CompileCounter

    memory = build("moments", device)
    counter = CompileCounter()
    compiled = torch.compile(memory, fullgraph=True, backend=counter)
    for steps in (5, 7, 11):
        compiled(*arguments(memory, device, steps=steps))
    assert counter.frame_count <= 2


@every_readout
@pytest.mark.parametrize("head_size", [16, 8], ids=["whole vectors", "half vectors"])
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_autocast_rounds_projections_and_leaves_states_in_float32(readout, head_size, device):
    memory = build(readout, device, 2, head_size)
    given = arguments(memory, device)
    expected = results(memory, memory, *given)

    def rounded(*given):
        with torch.autocast(device, BF16):
            return memory(*given)

    actual = results(memory, rounded, *given)
    assert actual["new state"].dtype == F32
    # Two layers of half-precision products, each rounded.
    for name in ("features", "new state"):
        assert_close(name, actual[name], expected[name], 4 * KERNEL[BF16])
    assert all(x.isfinite().all() for x in actual.values())


@every_readout
@pytest.mark.parametrize("device", ["cpu", GPU])
@torch.no_grad()
def test_an_acting_step_under_autocast_is_the_first_step_of_the_sequence(readout, device):
    memory = build(readout, device)
    x, state, reset = arguments(memory, device)
    with torch.autocast(device, BF16):
        whole, _ = memory(x, state, reset)
        first, state = memory(x[:, :1], state, reset[:, :1])
    assert state.dtype == F32
    assert_close("features", first, whole[:, :1], KERNEL[BF16])
