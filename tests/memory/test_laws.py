"""The laws every memory obeys, and proof that the checks would notice a memory that does not.

A memory joins by a line in `CONFIGS`. Parameters are random, since the official initialisation
of RWKV-7 has zero output projections, with which a broken state could not be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from doxastic.memory.base import Memory
from doxastic.memory.build import MemoryConfig, build_memory

INPUT_SIZE = 6
SIZES = {"width": 16, "head_size": 8, "belief_size": 5, "window": 5}
WIDE = {**SIZES, "width": 32, "head_size": 16}
CONFIGS = {
    "gru": MemoryConfig(kind="gru", **SIZES),
    "gru, 2 layers": MemoryConfig(kind="gru", layers=2, **SIZES),
    "lstm": MemoryConfig(kind="lstm", **SIZES),
    "lstm, 2 layers": MemoryConfig(kind="lstm", layers=2, **SIZES),
    "window": MemoryConfig(kind="window", **SIZES),
    "none": MemoryConfig(kind="none", **SIZES),
    "belief, moments": MemoryConfig(readout="moments", **SIZES),
    "belief, precision": MemoryConfig(readout="precision", **SIZES),
    "belief, learned": MemoryConfig(readout="learned", **SIZES),
    "belief, no readout": MemoryConfig(readout="none", **SIZES),
    "belief, gated write": MemoryConfig(readout="moments", write_gate=True, **SIZES),
    "belief, gated write, 2 layers": MemoryConfig(
        readout="none", write_gate=True, layers=2, **WIDE
    ),
    "belief, surprise": MemoryConfig(readout="moments", surprise=True, **SIZES),
    "belief, moments, 2 layers": MemoryConfig(readout="moments", layers=2, **SIZES),
    "belief, precision, 2 layers": MemoryConfig(readout="precision", layers=2, **WIDE),
}
STATEFUL = [name for name in CONFIGS if name != "none"]

# For the mean and for the largest difference of features or states. The second is wider in
# float32: RWKV-7's group norm divides the output by its deviation, and where that nearly vanishes,
# mostly right after a reset, rounding grows to 1e-3, with and without the fused kernels.
TYPICAL = {torch.float32: 1e-5, torch.float64: 1e-11}
LARGEST = {torch.float32: 1e-3, torch.float64: 1e-9}
# Of gradients, relative to the largest entry.
GRADIENT_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}
# What a defect must move features by, at least, for the checks to count as able to see it.
VISIBLE = 1e-2

BATCH, STEPS = 4, 37
CASES = {
    "no resets": (0.0, torch.float32),
    "some resets": (0.15, torch.float32),
    "all resets": (1.0, torch.float32),
    "some resets, float64": (0.15, torch.float64),
}

Run = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


every_case = pytest.mark.parametrize(("rate", "dtype"), CASES.values(), ids=CASES)


def make(name: str, dtype: torch.dtype = torch.float32) -> Memory:
    torch.manual_seed(0)
    memory = build_memory(CONFIGS[name], INPUT_SIZE)
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return memory.to(dtype)


def dtype_of(memory: Memory) -> torch.dtype:
    return next(memory.parameters()).dtype


def fresh_state(memory: Memory, batch: int) -> Tensor:
    return memory.initial_state(batch).to(dtype_of(memory))


def sample(memory: Memory, rate: float, steps: int = STEPS) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, a state that the memory itself reached, and random resets."""
    dtype = dtype_of(memory)
    warm_up = torch.randn(BATCH, 7, INPUT_SIZE, dtype=dtype)
    nothing = torch.zeros(BATCH, 7, dtype=torch.bool)
    _, state = memory(warm_up, fresh_state(memory, BATCH), nothing)
    x = torch.randn(BATCH, steps, INPUT_SIZE, dtype=dtype)
    return x, state.detach(), torch.rand(BATCH, steps) < rate


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        largest = LARGEST[theirs.dtype]
        torch.testing.assert_close(ours, theirs, rtol=largest, atol=largest)
        if theirs.numel():
            assert (ours - theirs).abs().mean() <= TYPICAL[theirs.dtype] * (1 + theirs.abs().mean())


def gradients(memory: Memory, run: Run, x: Tensor, state: Tensor, reset: Tensor) -> list[Tensor]:
    """Gradients of a random projection of features and final state, by inputs and parameters."""
    x, state = x.clone().requires_grad_(), state.clone().requires_grad_()
    loss = projection(run(x, state, reset))
    inputs = [x, state, *memory.parameters()]
    return list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))


def projection(outputs: tuple[Tensor, Tensor]) -> Tensor:
    """Return a fixed random projection of features and final state."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator).to(out.dtype) for out in outputs]
    return sum(((out * w).sum() for out, w in zip(outputs, weights, strict=True)), torch.zeros(()))


def assert_same_gradients(actual: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        scale = theirs.abs().max().clamp_min(1e-2) if theirs.numel() else 1.0
        tolerance = GRADIENT_TOLERANCE[theirs.dtype]
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0.0, atol=tolerance)


def in_pieces(run: Run, cuts: list[int]) -> Run:
    """Return a run that hands the state over at each of the cuts."""

    def carried(x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        features = []
        for start, end in pairwise([0, *cuts, x.shape[1]]):
            out, state = run(x[:, start:end], state, reset[:, start:end])
            features.append(out)
        return torch.cat(features, 1), state

    return carried


def by_steps(run: Run, steps: int = STEPS) -> Run:
    return in_pieces(run, list(range(1, steps)))


def check_carry(run: Run, reference: Run, arguments: tuple[Tensor, Tensor, Tensor]) -> None:
    """One call equals several with the state carried."""
    assert_same(in_pieces(run, [1, 5, 20])(*arguments), reference(*arguments))


def check_fresh_start(run: Run, memory: Memory, arguments: tuple[Tensor, Tensor, Tensor]) -> None:
    """From a reset on, features and state are what a fresh memory makes of the rest alone."""
    x, state, reset = arguments
    features, final = run(x, state, reset)
    for t in range(x.shape[1]):
        rows, later = reset[:, t], reset[:, t:].clone()
        later[:, 0] = False
        if rows.any():
            alone, last = memory(x[:, t:], fresh_state(memory, BATCH), later)
            assert_same((features[rows, t:], final[rows]), (alone[rows], last[rows]))


def test_every_kind_and_every_readout_is_in_the_list() -> None:
    hints = get_type_hints(MemoryConfig)
    assert {config.kind for config in CONFIGS.values()} == set(get_args(hints["kind"]))
    readouts = {config.readout for config in CONFIGS.values() if config.kind == "belief"}
    assert readouts == set(get_args(hints["readout"]))


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_and_types_are_as_the_memory_says(name: str) -> None:
    memory = make(name)
    state = memory.initial_state(BATCH)
    assert state.shape == (BATCH, memory.state_size)
    assert state.dtype == torch.float32 and state.eq(0.0).all()
    for steps in (1, 9):
        x, reset = torch.randn(BATCH, steps, INPUT_SIZE), torch.rand(BATCH, steps) < 0.3
        features, final = memory(x, state, reset)
        assert features.shape == (BATCH, steps, memory.feature_size)
        assert final.shape == state.shape
        assert features.dtype == final.dtype == torch.float32
        assert features.isfinite().all() and final.isfinite().all()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_arguments_are_left_as_they_were(name: str) -> None:
    memory = make(name)
    for steps in (1, 9):
        arguments = sample(memory, 0.3, steps)
        before = [argument.clone() for argument in arguments]
        with torch.no_grad():
            memory(*arguments)
        assert all(map(torch.equal, arguments, before))


@every_case
@pytest.mark.parametrize("name", CONFIGS)
def test_sequence_equals_repeated_steps(name: str, rate: float, dtype: torch.dtype) -> None:
    memory = make(name, dtype)
    arguments = sample(memory, rate)
    expected = memory(*arguments)
    with torch.inference_mode():
        acting = by_steps(memory)(*arguments)
        sequence = memory(*arguments)
    assert_same(acting, expected)
    assert_same(sequence, expected)
    assert_same(by_steps(memory)(*arguments), expected)
    assert_same_gradients(
        gradients(memory, by_steps(memory), *arguments), gradients(memory, memory, *arguments)
    )


@every_case
@pytest.mark.parametrize("name", CONFIGS)
def test_one_call_equals_several_with_the_state_carried(
    name: str, rate: float, dtype: torch.dtype
) -> None:
    memory = make(name, dtype)
    arguments = sample(memory, rate)
    check_carry(memory, memory, arguments)
    for cut in (1, 16, STEPS - 1):
        carried = in_pieces(memory, [cut])
        assert_same_gradients(
            gradients(memory, carried, *arguments), gradients(memory, memory, *arguments)
        )


@every_case
@pytest.mark.parametrize("name", CONFIGS)
def test_a_reset_equals_a_fresh_start(name: str, rate: float, dtype: torch.dtype) -> None:
    memory = make(name, dtype)
    check_fresh_start(memory, memory, sample(memory, rate))


@pytest.mark.parametrize("cut", [0, 1, 18, STEPS - 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_exactly_no_gradient_crosses_a_reset(name: str, cut: int) -> None:
    memory = make(name)
    x, state, reset = sample(memory, 0.15)
    reset[:, cut] = True
    x.requires_grad_()
    state.requires_grad_()
    features, final = memory(x, state, reset)
    loss = features[:, cut:].square().sum() + final.square().sum()
    dx, dstate = torch.autograd.grad(loss, [x, state], allow_unused=True, materialize_grads=True)
    assert dx[:, :cut].eq(0.0).all()
    assert dstate.eq(0.0).all()
    assert dx[:, cut].ne(0.0).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["x", "state"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_not_finite_does_not_cross_a_reset(name: str, where: str, value: float) -> None:
    memory = make(name)
    cut, (x, state, reset) = 19, sample(memory, 0.0)
    reset[1, cut] = True
    expected = memory(x, state, reset)
    spoiled = {"x": x.clone(), "state": state.clone()}
    spoiled[where][1, :3] = value
    features, final = memory(spoiled["x"], spoiled["state"], reset)
    others = [0, 2, 3]
    assert_same((features[others], final[others]), (expected[0][others], expected[1][others]))
    assert_same((features[1, cut:], final[1]), (expected[0][1, cut:], expected[1][1]))


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_state_is_float32_whatever_the_weights_are(
    name: str, dtype: torch.dtype, steps: int
) -> None:
    memory = make(name, dtype)
    x, reset = torch.randn(2, steps, INPUT_SIZE, dtype=dtype), torch.zeros(2, steps).bool()
    for recording in (True, False):
        with torch.set_grad_enabled(recording):
            _, state = memory(x, memory.initial_state(2), reset)
            assert state.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_that_holds_no_float32_is_an_error(
    name: str, dtype: torch.dtype, steps: int
) -> None:
    memory = make(name)
    x, state, reset = sample(memory, 0.0, steps)
    with pytest.raises(ValueError, match=rf"state is {dtype}; expected torch.float32"):
        memory(x, state.to(dtype), reset)


@pytest.mark.parametrize("dtype", LARGEST, ids=["float32", "float64"])
@pytest.mark.parametrize("steps", [1, STEPS])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_order_in_the_batch_is_irrelevant(name: str, steps: int, dtype: torch.dtype) -> None:
    memory = make(name, dtype)
    x, state, reset = sample(memory, 0.15, steps)
    features, final = memory(x, state, reset)
    order = torch.tensor([2, 0, 3, 1])
    assert_same(memory(x[order], state[order], reset[order]), (features[order], final[order]))
    for row in range(BATCH):
        rows = slice(row, row + 1)
        assert_same(memory(x[rows], state[rows], reset[rows]), (features[rows], final[rows]))


@pytest.mark.parametrize("cut", [1, 18, STEPS - 1])
@pytest.mark.parametrize("name", CONFIGS)
def test_features_depend_on_the_past_only(name: str, cut: int) -> None:
    memory = make(name)
    x, state, reset = sample(memory, 0.15)
    x.requires_grad_()
    features, _ = memory(x, state, reset)
    (dx,) = torch.autograd.grad(features[:, :cut].square().sum(), [x])
    assert dx[:, cut:].eq(0.0).all()
    other, other_reset = x.detach().clone(), reset.clone()
    other[:, cut:] = torch.randn_like(other[:, cut:])
    other_reset[:, cut:] = ~reset[:, cut:]
    assert_same((memory(other, state, other_reset)[0][:, :cut],), (features[:, :cut],))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_mode_of_the_module_changes_nothing(name: str) -> None:
    memory = make(name)
    arguments = sample(memory, 0.15)
    training = memory(*arguments), gradients(memory, memory, *arguments)
    memory.eval()
    assert_same(memory(*arguments), training[0])
    assert_same_gradients(gradients(memory, memory, *arguments), training[1])


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("name", STATEFUL)
def test_gradients_are_the_slopes_in_float64(name: str, rate: float) -> None:
    memory = make(name)
    x, state, reset = sample(memory, rate, steps=9)
    reset[0] = False
    direction = 0.1 * torch.randn_like(state).double() * state.double()
    _, dstate, *_ = gradients(memory, memory, x, state, reset)
    precise = make(name, torch.float64)

    def loss(step: float) -> Tensor:
        with torch.no_grad():
            outputs = precise(x.double(), state.double() + step * direction, reset)
        return projection(outputs)

    slope = (loss(1e-4) - loss(-1e-4)) / 2e-4
    actual = (dstate * direction).sum()
    assert slope.abs() > 1e-5
    torch.testing.assert_close(actual, slope, rtol=3e-3, atol=0.0)


class Wrong(Memory):
    """A memory with one defect."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.memory = memory


class LateReset(Wrong):
    """Clears the state one step late."""

    def forward(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        late = torch.cat([torch.zeros_like(reset[:, :1]), reset[:, :-1]], 1)
        return self.memory(x, state, late)


class NoReset(Wrong):
    """Never clears the state."""

    def forward(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        return self.memory(x, state, torch.zeros_like(reset))


class Forgets(Wrong):
    """Loses columns of the state between calls."""

    def __init__(self, memory: Memory, columns: slice) -> None:
        super().__init__(memory)
        self.columns = columns

    def forward(self, x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        state = state.clone()
        state[:, self.columns] = 0.0
        return self.memory(x, state, reset)


@pytest.mark.parametrize("defect", [LateReset, NoReset])
@pytest.mark.parametrize("name", STATEFUL)
def test_a_late_or_missing_reset_would_be_noticed(name: str, defect: type[Wrong]) -> None:
    memory = make(name)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check_fresh_start(defect(memory), memory, sample(memory, 0.15))


@pytest.mark.parametrize("name", STATEFUL)
def test_a_state_that_is_not_carried_would_be_noticed(name: str) -> None:
    memory = make(name)
    forgetful = Forgets(memory, slice(None))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check_carry(forgetful, memory, sample(memory, 0.15))


@pytest.mark.parametrize("name", STATEFUL)
def test_every_single_part_of_the_state_matters_to_the_features(name: str) -> None:
    memory = make(name)
    x, state, reset = sample(memory, 0.0)
    expected, _ = in_pieces(memory, [1, 5, 20])(x, state, reset)
    for part, shape in memory.layout.shapes.items():
        start = memory.layout.offset(part)
        columns = slice(start, start + torch.Size(shape).numel())
        actual, _ = in_pieces(Forgets(memory, columns), [1, 5, 20])(x, state, reset)
        moved = (actual - expected).abs().max()
        assert moved > VISIBLE, f"without {part!r} the features move by {moved:.1e} only"
