"""The baselines against plain loops over time, in float64 where that is possible."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from doxastic.memory.base import Memory
from doxastic.memory.baselines import GRUMemory, LSTMMemory, NoMemory, WindowMemory
from doxastic.memory.segments import run_cleared, run_packed

Run = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
RunSegment = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]

GATED = [GRUMemory, LSTMMemory]
RUNS = [run_cleared, run_packed]


def resets(pattern: str, batch: int = 4, steps: int = 11) -> Tensor:
    reset = torch.zeros(batch, steps, dtype=torch.bool)
    if pattern == "random":
        reset = torch.rand(batch, steps) < 0.3
    elif pattern == "every step":
        reset[:] = True
    elif pattern == "one row":
        reset[1, 1:] = True
    elif pattern == "second step":
        reset[:, 1] = True
    elif pattern == "last step":
        reset[2, -1] = True
    return reset


PATTERNS = ["random", "every step", "one row", "second step", "last step"]


def outputs_and_gradients(
    memory: Memory, run: Run, x: Tensor, state: Tensor, reset: Tensor
) -> list[Tensor]:
    """Features, final state and the gradients of a random projection of both."""
    features, final = run(x, state, reset)
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum()
        for out in (features, final)
    )
    return [features, final, *torch.autograd.grad(loss, [x, state, *memory.parameters()])]


def loop_over_cells(memory: GRUMemory | LSTMMemory) -> Run:
    """Return the plain recurrence: the state is zeroed, then torch's cell is applied."""
    rnn, lstm = memory.rnn, isinstance(memory, LSTMMemory)

    def run(x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        features = []
        h, *c = memory.layout.split(state).values()
        for t in range(x.shape[1]):
            keep = (~reset[:, t])[:, None, None]
            h, c = h * keep, [part * keep for part in c]
            hs, cs, out = [], [], x[:, t]
            for layer, weights in enumerate(rnn.all_weights):
                if lstm:
                    out, cell = torch.lstm_cell(out, (h[:, layer], c[0][:, layer]), *weights)
                    cs.append(cell)
                else:
                    out = torch.gru_cell(out, h[:, layer], *weights)
                hs.append(out)
            h, c = torch.stack(hs, 1), [torch.stack(cs, 1)] if lstm else []
            features.append(out)
        return torch.stack(features, 1), torch.cat([part.flatten(1) for part in (h, *c)], 1)

    return run


def through_segment(memory: GRUMemory | LSTMMemory, run_segment: RunSegment) -> Run:
    def run(x: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        past = memory.layout.split(state.masked_fill(reset[:, :1], 0.0)).values()
        features, parts = run_segment(
            memory.rnn, x, tuple(part.transpose(0, 1).contiguous() for part in past), reset
        )
        return features, torch.cat([part.transpose(0, 1).flatten(1) for part in parts], 1)

    return run


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("run_segment", RUNS)
@pytest.mark.parametrize("kind", GATED)
def test_clearing_and_packing_equal_the_recurrence_with_all_gradients(
    kind: type[GRUMemory] | type[LSTMMemory], run_segment: RunSegment, layers: int, pattern: str
) -> None:
    memory = kind(3, 5, layers).double()
    # Wide weights: gates that are deep in saturation by themselves must not matter.
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.mul_(4.0)
    x = torch.randn(4, 11, 3, dtype=torch.float64, requires_grad=True)
    state = torch.randn(4, memory.state_size, dtype=torch.float64, requires_grad=True)
    reset = resets(pattern)
    expected = outputs_and_gradients(memory, loop_over_cells(memory), x, state, reset)
    actual = outputs_and_gradients(memory, through_segment(memory, run_segment), x, state, reset)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pattern", [*PATTERNS, "none"])
@pytest.mark.parametrize("kind", GATED)
def test_float32_segments_equal_the_recurrence_with_all_gradients(
    kind: type[GRUMemory] | type[LSTMMemory], pattern: str, training: bool
) -> None:
    memory = kind(16, 32).train(training)
    x = torch.randn(4, 11, 16, requires_grad=True)
    state = torch.randn(4, memory.state_size, requires_grad=True)
    reset = resets(pattern)
    expected = outputs_and_gradients(memory, loop_over_cells(memory), x, state, reset)
    actual = outputs_and_gradients(memory, memory, x, state, reset)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("run_segment", RUNS)
@pytest.mark.parametrize("kind", GATED)
def test_exactly_no_gradient_crosses_a_reset(
    kind: type[GRUMemory] | type[LSTMMemory], run_segment: RunSegment
) -> None:
    memory = kind(16, 16, 2)
    x = torch.randn(3, 9, 16, requires_grad=True)
    state = torch.randn(3, memory.state_size, requires_grad=True)
    reset = torch.zeros(3, 9, dtype=torch.bool)
    reset[:, 4] = True
    features, final = through_segment(memory, run_segment)(x, state, reset)
    dx, dstate = torch.autograd.grad(features[:, 4:].sum() + final.sum(), [x, state])
    assert dx[:, :4].eq(0.0).all() and dstate.eq(0.0).all()
    assert dx[:, 4:].ne(0.0).any(2).all()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", GATED)
def test_no_gradient_of_what_is_not_finite_crosses_a_reset(
    kind: type[GRUMemory] | type[LSTMMemory], layers: int
) -> None:
    memory = kind(3, 5, layers)
    x, reset = torch.randn(2, 40, 3), torch.zeros(2, 40, dtype=torch.bool)
    reset[0, 20] = True
    state = memory.initial_state(2)
    clean = x.clone().requires_grad_()
    x[0, 7, 0] = float("nan")
    x.requires_grad_()
    gradients = [
        torch.autograd.grad(memory(inputs, state, reset)[0][0, 20:].square().sum(), inputs)[0]
        for inputs in (clean, x)
    ]
    for part in ((0, slice(20, None)), (1,)):
        torch.testing.assert_close(gradients[1][part], gradients[0][part])


def test_a_segment_with_resets_is_one_call_per_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, lstm = [], torch.lstm

    def counted(x: Tensor, *rest: object) -> object:
        calls.append(x.shape)
        return lstm(x, *rest)

    monkeypatch.setattr("doxastic.memory.segments.torch.lstm", counted)
    memory = LSTMMemory(3, 5, layers=2)
    reset = torch.zeros(4, 40, dtype=torch.bool)
    reset[1, [7, 9]] = reset[3, 20] = True
    memory(torch.randn(4, 40, 3), memory.initial_state(4), reset)
    # Two resets in the fullest row: two steps more. Two marker channels.
    assert calls == [(42, 4, 3 + 2), (42, 4, 5 + 2)]


@pytest.mark.parametrize(("kind", "peer"), [(GRUMemory, nn.GRU), (LSTMMemory, nn.LSTM)])
def test_without_resets_the_features_are_those_of_torchs_layer(
    kind: type[GRUMemory] | type[LSTMMemory], peer: type[nn.GRU] | type[nn.LSTM]
) -> None:
    memory = kind(3, 5, layers=2)
    layer = peer(3, 5, 2, batch_first=True)
    layer.load_state_dict(memory.rnn.state_dict())
    x = torch.randn(4, 7, 3)
    features, _ = memory(x, memory.initial_state(4), torch.zeros(4, 7, dtype=torch.bool))
    torch.testing.assert_close(features, layer(x)[0], rtol=1e-6, atol=1e-6)


def test_the_lstm_state_is_h_then_c() -> None:
    memory = LSTMMemory(3, 5, layers=2)
    x, state = torch.randn(4, 1, 3), torch.randn(4, 20)
    features, final = memory(x, state, torch.zeros(4, 1, dtype=torch.bool))
    h, c = (part.view(4, 2, 5).transpose(0, 1).contiguous() for part in state.split(10, 1))
    out, (h, c) = memory.rnn(x.transpose(0, 1), (h, c))
    torch.testing.assert_close(features, out.transpose(0, 1))
    torch.testing.assert_close(final, torch.cat([h[0], h[1], c[0], c[1]], 1))


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("kind", [*GATED, WindowMemory])
def test_the_state_stays_float32_when_the_weights_are_bfloat16(
    kind: type[Memory], steps: int
) -> None:
    memory = kind(4, 8).bfloat16()
    x = torch.randn(3, steps, 4, dtype=torch.bfloat16)
    reset = torch.zeros(3, steps, dtype=torch.bool)
    reset[1, steps // 2] = True
    features, state = memory(x, memory.initial_state(3), reset)
    assert features.dtype == torch.bfloat16
    assert state.dtype == torch.float32


def windows_by_hand(x: Tensor, reset: Tensor, window: int) -> Tensor:
    """The MLP's inputs for one fresh row: `window` inputs, oldest first, then their validity."""
    rows, start = [], 0
    for t in range(x.shape[0]):
        start = t if reset[t] else start
        times = range(t - window + 1, t + 1)
        inputs = [x[s] if s >= start else torch.zeros(x.shape[1]) for s in times]
        rows.append(torch.cat([*inputs, torch.tensor([float(s >= start) for s in times])]))
    return torch.stack(rows)


@pytest.mark.parametrize("window", [2, 5, 30])
@pytest.mark.parametrize("pattern", [*PATTERNS, "none"])
def test_the_window_sees_the_last_inputs_of_the_episode_and_their_validity(
    window: int, pattern: str
) -> None:
    memory = WindowMemory(3, 8, window)
    x, reset = torch.randn(4, 11, 3), resets(pattern)
    features, state = memory(x, memory.initial_state(4), reset)
    expected = torch.stack(
        [windows_by_hand(row, mask, window) for row, mask in zip(x, reset, strict=True)]
    )
    torch.testing.assert_close(features, memory.mlp(expected))
    last, valid = expected[:, -1].split([3 * window, window], 1)
    assert torch.equal(state, torch.cat([last[:, 3:], valid[:, 1:]], 1))


def test_the_window_tells_an_input_of_zeros_from_none() -> None:
    memory = WindowMemory(3, 8, window=4)
    x = torch.zeros(1, 4, 3)
    features, _ = memory(x, memory.initial_state(1), torch.zeros(1, 4, dtype=torch.bool))
    assert features[0, 0].sub(features[0, 3]).abs().max() > 1e-2


def test_no_memory_has_no_state_and_sees_the_current_input_only() -> None:
    memory = NoMemory(3, 8)
    x, reset = torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)
    features, state = memory(x, memory.initial_state(2), reset)
    assert memory.state_size == 0 and state.shape == (2, 0)
    torch.testing.assert_close(features, memory.mlp(x.flatten(0, 1)).view(2, 5, 8))


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "64"])
@pytest.mark.parametrize("name", ["input_size", "hidden_size"])
@pytest.mark.parametrize("kind", [*GATED, WindowMemory, NoMemory])
def test_a_size_that_is_no_positive_integer_is_an_error_that_names_it(
    kind: type[Memory], name: str, wrong: object
) -> None:
    sizes = {"input_size": 3, "hidden_size": 4, name: wrong}
    with pytest.raises(ValueError, match=f"{name} is {wrong!r}; expected an integer >= 1"):
        kind(**sizes)


def test_layers_and_window_are_checked() -> None:
    for kind in GATED:
        with pytest.raises(ValueError, match="layers is 0"):
            kind(3, 4, layers=0)
    with pytest.raises(ValueError, match=r"window is 1; expected >= 2\. Use NoMemory"):
        WindowMemory(3, 4, window=1)


@pytest.mark.parametrize("kind", [*GATED, WindowMemory, NoMemory])
def test_arguments_that_break_the_contract_are_errors(kind: type[Memory]) -> None:
    memory = kind(3, 4)
    x, state = torch.randn(2, 5, 3), memory.initial_state(2)
    reset = torch.zeros(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"x has shape \[2, 5, 4\]"):
        memory(torch.randn(2, 5, 4), state, reset)
    with pytest.raises(ValueError, match=r"x has shape \[2, 3\]"):
        memory(x[:, 0], state, reset)
    with pytest.raises(ValueError, match="state has shape"):
        memory(x, memory.initial_state(3), reset)
    with pytest.raises(ValueError, match=r"reset is \[2, 4\]"):
        memory(x, state, reset[:, 1:])
    with pytest.raises(ValueError, match=r"torch\.float32; expected"):
        memory(x, state, reset.float())
