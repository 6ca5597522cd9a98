"""A whole block as one operation against its layers in float64, and when it is not taken."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from kernel_cases import random_reset, reset_at
from tolerances import KERNEL, SAME, STACKED, assert_close
from torch import nn

from doxastic.memory.block import Block

block = pytest.importorskip("doxastic.kernels.cpu.block")

F32, F64 = torch.float32, torch.float64
C, K = 64, 16


def make_block(layer=0, width=C, size=K, hidden=2 * C, low_rank=8):
    """Return a block without zeros, which would hide whatever they multiply."""
    torch.manual_seed(0)
    made = Block(width, size, hidden, layer=layer, layers=2, low_rank=low_rank, norm_eps=0.1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def make_inputs(made, B=3, T=21, probability=0.1):
    """Return what a block is called with, from a state in the middle of an episode."""
    torch.manual_seed(1)
    heads, size = made.att.heads, made.att.head_size
    width = heads * size
    state = {
        "time_shift": torch.randn(B, width),
        "wkv": 0.3 * torch.randn(B, heads, size, size),
        "channel_shift": torch.randn(B, width),
    }
    v_first = torch.randn(B, T, width) if made.att.layer else None
    return torch.randn(B, T, width), state, random_reset(B, T, probability), v_first


def with_gradients(made, inputs, dtype):
    """Return outputs and the gradients of all inputs and parameters, in a dtype, by name."""
    made = copy.deepcopy(made).to(dtype)
    x, state, reset, v_first = inputs
    leaves = {"x": x, **state} | ({} if v_first is None else {"v_first": v_first})
    leaves = {name: z.to(dtype).clone().requires_grad_() for name, z in leaves.items()}
    state = {name: leaves[name] for name in state}
    out, new, value = made(leaves["x"], state, reset, leaves.get("v_first"))
    outputs = {"out": out, **{f"new {name}": z for name, z in new.items()}}
    if v_first is None:
        outputs["value"] = value
    random = torch.Generator().manual_seed(2)
    loss = sum(
        (z * torch.randn(z.shape, generator=random).to(dtype)).sum() for z in outputs.values()
    )
    leaves |= dict(made.named_parameters())
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return outputs | {f"gradient of {name}": z for name, z in zip(leaves, gradients, strict=True)}


@pytest.fixture
def runs(monkeypatch):
    """Return the list of the blocks that have run as one operation."""
    names = []
    original = block.block

    def counted(*args):
        names.append("block")
        return original(*args)

    monkeypatch.setattr(block, "block", counted)
    return names


def check(made, inputs, runs):
    truth = with_gradients(made, inputs, F64)
    assert not runs
    actual = with_gradients(made, inputs, F32)
    assert runs
    for name, expected in truth.items():
        tolerance = STACKED[F32] if name.startswith("gradient") else KERNEL[F32]
        assert_close(name, actual[name], expected, tolerance)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("probability", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 15, 17, 33])
def test_block_equals_its_layers_for_every_length_and_reset_rate(runs, steps, probability, layer):
    made = make_block(layer)
    check(made, make_inputs(made, T=steps, probability=probability), runs)


@pytest.mark.parametrize("steps", [(0,), (15,), (16,), (20,), (0, 1, 15, 16, 20)], ids=str)
def test_block_equals_its_layers_with_resets_at_the_edges(runs, steps):
    made = make_block()
    x, state, _, v_first = make_inputs(made)
    check(made, (x, state, reset_at(3, 21, steps), v_first), runs)


@pytest.mark.parametrize("batch", [1, 2, 5, 40])
def test_block_equals_its_layers_for_every_batch(runs, batch):
    made = make_block()
    check(made, make_inputs(made, B=batch), runs)


@pytest.mark.parametrize(
    ("width", "size", "hidden", "low_rank"),
    [(16, 16, 32, 1), (32, 32, 64, 5), (48, 16, 16, 16), (128, 64, 256, 8), (128, 16, 512, 3)],
)
def test_block_equals_its_layers_for_every_width(runs, width, size, hidden, low_rank):
    made = make_block(1, width, size, hidden, low_rank)
    check(made, make_inputs(made), runs)


def test_strided_arguments_are_read_as_they_are_meant(runs):
    made = make_block()
    x, state, reset, _ = make_inputs(made)
    # Rows of a longer segment and columns of a wider state, as a rollout hands them over.
    longer = torch.cat([x, x], dim=1)[:, : x.shape[1]]
    wider = {name: torch.stack([z, z], -1)[..., 0] for name, z in state.items()}
    backwards = reset.flip(1).flip(1).t().contiguous().t()
    expected = with_gradients(made, (x, state, reset, None), F32)
    for name, z in with_gradients(made, (longer, wider, backwards, None), F32).items():
        assert torch.equal(z, expected[name]), name
    with torch.no_grad():
        made.att.w1 = nn.Parameter(made.att.w1.t().contiguous().t())
    strided = made(x, state, reset, None)[0]
    assert torch.equal(strided, expected["out"])
    assert len(runs) == 3


def test_threads_do_not_change_a_bit():
    made = make_block()
    inputs = make_inputs(made, B=13, T=40)
    alone = with_gradients(made, inputs, F32)
    torch.set_num_threads(2)
    try:
        together = with_gradients(made, inputs, F32)
    finally:
        torch.set_num_threads(1)
    for name, expected in alone.items():
        assert torch.equal(together[name], expected), name


def test_nothing_is_kept_without_gradients_and_no_bit_changes(runs):
    made = make_block()
    x, state, reset, _ = make_inputs(made)
    out, new, _ = made(x, state, reset, None)
    with torch.no_grad():
        plain, other, _ = made(x, state, reset, None)
    assert torch.equal(out, plain) and out.requires_grad and not plain.requires_grad
    assert all(torch.equal(new[name], other[name]) for name in new)
    made.requires_grad_(False)
    assert made(x, state, reset, None)[0].grad_fn is None
    assert len(runs) == 3


def test_a_batch_row_is_the_same_alone(runs):
    made = make_block()
    x, state, reset, _ = make_inputs(made, B=5)
    together = made(x, state, reset, None)[0]
    for i in range(5):
        row = {name: z[i : i + 1] for name, z in state.items()}
        assert torch.equal(made(x[i : i + 1], row, reset[i : i + 1], None)[0][0], together[i])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nothing_not_finite_crosses_a_reset(runs, poison):
    made = make_block()
    x, state, _, _ = make_inputs(made, B=2)
    x[0, :10] = poison
    out, new, _ = made(x, state, reset_at(2, 21, (10,)), None)
    assert out[:, 10:].isfinite().all() and all(z.isfinite().all() for z in new.values())
    assert not out[0, :10].isfinite().any() and out[1].isfinite().all()


def test_no_rows_are_no_error(runs):
    made = make_block()
    x, state, reset, _ = make_inputs(made)
    out = made(x[:0], {name: z[:0] for name, z in state.items()}, reset[:0], None)[0]
    out.sum().backward()
    assert out.shape == (0, 21, C) and not made.att.w0.grad.any() and runs


def test_outputs_may_be_changed_in_place(runs):
    made = make_block()
    x, state, reset, _ = make_inputs(made)
    weights = list(made.parameters())
    expected = torch.autograd.grad(3 * made(x, state, reset, None)[0].sum(), weights)
    actual = torch.autograd.grad(made(x, state, reset, None)[0].mul_(3).sum(), weights)
    for z, other in zip(actual, expected, strict=True):
        assert_close("gradient", z, other, SAME[F32])
    out, new, value = made(x, state, reset, None)
    assert not any(z._is_view() for z in (out, value, *new.values()))


def test_a_weight_changed_after_the_forward_is_noticed(runs):
    made = make_block()
    x, state, reset, _ = make_inputs(made)
    out = made(x, state, reset, None)[0]
    with torch.no_grad():
        made.ffn.key.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        out.sum().backward()


def test_a_second_derivative_is_refused(runs):
    made = make_block()
    x, state, reset, _ = make_inputs(made)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(
        made(x, state, reset, None)[0].square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


PARTS = ["ln1", "att", "ln2", "ffn", "att.key", "ffn.value"]


@pytest.mark.parametrize("name", PARTS)
def test_every_hook_is_called(runs, name):
    made = make_block()
    calls = []
    made.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    x, state, reset, _ = make_inputs(made)
    made(x, state, reset, None)
    assert calls == [1] and not runs


@pytest.mark.parametrize("name", ["ln1", "att", "ln2", "ffn"])
def test_an_own_forward_is_called(runs, name):
    made = make_block()
    part, calls = made.get_submodule(name), []
    original = part.forward

    def forward(*args):
        calls.append(1)
        return original(*args)

    part.forward = forward
    x, state, reset, _ = make_inputs(made)
    made(x, state, reset, None)
    assert calls == [1] and not runs


def test_a_layer_of_another_kind_is_called(runs):
    made = make_block()
    made.ln2 = nn.Identity()
    x, state, reset, _ = make_inputs(made)
    made(x, state, reset, None)
    assert not runs


@pytest.mark.parametrize("name", [name for name, _ in make_block(1).named_parameters()])
@pytest.mark.parametrize("wrong", ["dtype", "shape"])
def test_every_parameter_is_looked_at(runs, name, wrong):
    made = make_block(1)
    inputs = make_inputs(made)
    path, _, key = name.rpartition(".")
    parameter = made.get_parameter(name).detach()
    other = parameter.double() if wrong == "dtype" else parameter[:1].clone()
    setattr(made.get_submodule(path), key, nn.Parameter(other))
    with contextlib.suppress(RuntimeError, ValueError):
        made(*inputs)
    assert not runs


@pytest.mark.parametrize("name", ["time_shift", "wkv", "channel_shift"])
def test_a_state_of_another_shape_or_dtype_is_no_argument(runs, name):
    made = make_block()
    x, state, reset, _ = make_inputs(made)
    for other in (state[name][:1], state[name].double()):
        with contextlib.suppress(RuntimeError, ValueError):
            made(x, state | {name: other}, reset, None)
        assert not runs


@pytest.mark.parametrize("width", [block.LARGEST_WIDTH + 16, C])
def test_what_would_not_stay_cached_goes_by_layers(runs, width):
    made = make_block(width=width, hidden=32)
    steps = 3 if width > C else block.LARGEST_LENGTH + 1
    made(*make_inputs(made, B=1, T=steps))
    assert not runs


def test_a_rank_beyond_the_compiled_maps_goes_by_layers(runs):
    made = make_block(low_rank=block.LARGEST_RANK + 1)
    made(*make_inputs(made))
    assert not runs
