"""The laws of the language model: one result however it is fed, exact gradients, clear errors."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from kernel_cases import cotangents
from model_cases import COMPOSED, FUSED, OPTIONS, VOCABULARY, make, sample
from tolerances import NORMALISED, STACKED, assert_close, relative_error

from doxastic.memory.state import CoreState, StateLayout

TOLERANCE = NORMALISED[torch.float32]
# In roundings of the dtype: two layers are some thirty operations in a row, and errors of unlike
# sign add up like the square root of their number, twice that for the group norm's division.
HALF = 12

every_option = pytest.mark.parametrize("option", OPTIONS)


def reached(model, rows):
    """Return a state that the model itself reached."""
    tokens = torch.randint(0, VOCABULARY, (rows, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model(tokens)[1]


def assert_equal_results(actual, expected):
    assert_close("logits", actual[0], expected[0], TOLERANCE)
    assert_close("state", actual[1].flat, expected[1].flat, TOLERANCE)


@every_option
def test_tokens_one_by_one_and_pieces_equal_the_whole(option):
    model, (tokens, reset) = make(**OPTIONS[option]), sample()
    start = reached(model, 3)
    expected = model(tokens, start, reset)
    for borders in ([0, 1, 21], [0, 16, 17, 21], list(range(22))):
        state, logits = start, []
        for first, last in itertools.pairwise(borders):
            part, state = model(tokens[:, first:last], state, reset[:, first:last])
            logits.append(part)
        assert_equal_results((torch.cat(logits, 1), state), expected)


@every_option
def test_a_reset_is_a_fresh_start(option):
    model, (tokens, _) = make(**OPTIONS[option]), sample()
    reset = torch.zeros_like(tokens, dtype=torch.bool)
    for row, place in enumerate((0, 7, 20)):
        reset[row, place] = True
    logits, state = model(tokens, reached(model, 3), reset)
    for row, place in enumerate((0, 7, 20)):
        fresh, last = model(tokens[row : row + 1, place:])
        assert_close("logits", logits[row, place:], fresh[0], TOLERANCE)
        assert_close("state", state.flat[row], last.flat[0], TOLERANCE)


@every_option
def test_the_order_of_the_rows_is_irrelevant(option):
    model, (tokens, reset) = make(**OPTIONS[option]), sample()
    start, order = reached(model, 3), torch.tensor([2, 0, 1])
    logits, state = model(tokens, start, reset)
    shuffled = model(tokens[order], start.index(order), reset[order])
    assert_equal_results(shuffled, (logits[order], state.index(order)))


def test_left_padding_with_a_reset_is_exact():
    model, (tokens, _) = make(), sample(1, 8)
    padded = torch.cat([torch.full((1, 5), 3), tokens], 1)
    reset = torch.zeros_like(padded, dtype=torch.bool)
    reset[0, 5] = True
    logits, state = model(padded, None, reset)
    assert_equal_results((logits[:, 5:], state), model(tokens))


def gradients(model, tokens, reset, flat):
    """Return logits, final state, and the gradients of a projection of them, by name."""
    flat = flat.clone().requires_grad_()
    logits, state = model(tokens, CoreState(model.layout, flat), reset)
    leaves = {"initial state": flat, **dict(model.named_parameters())}
    outputs = (logits, state.flat)
    found = torch.autograd.grad(outputs, list(leaves.values()), cotangents(outputs))
    return {"logits": logits, "state": state.flat, **dict(zip(leaves, found, strict=True))}


@every_option
def test_every_gradient_equals_that_of_a_float64_model(option):
    # A large eps of the group norm: well conditioned, so that a wrong digit shows.
    sizes = {**OPTIONS[option], "group_norm_eps": 0.1}
    model, precise = make(**sizes), make(**sizes).double()
    tokens, reset = sample(length=37)
    flat = 0.3 * torch.randn(3, model.layout.size)
    expected = gradients(precise, tokens, reset, flat)
    for name, found in gradients(model, tokens, reset, flat).items():
        assert_close(name, found, expected[name], STACKED[torch.float32])


def test_no_gradient_crosses_a_reset():
    model, (tokens, _) = make(), sample()
    flat = reached(model, 3).flat.requires_grad_()
    reset = torch.zeros_like(tokens, dtype=torch.bool)
    reset[:2, 4] = True
    logits, _ = model(tokens, CoreState(model.layout, flat), reset)
    (gradient,) = torch.autograd.grad(logits[:, 4:].square().sum(), flat)
    assert not gradient[:2].any()
    assert gradient[2].any()


@pytest.mark.parametrize("option", ["fused", "composed", "matrix"])
def test_checkpointing_changes_no_gradient(option):
    model, (tokens, reset) = make(3, **OPTIONS[option]), sample()
    flat = reached(model, 3).flat
    expected = gradients(model, tokens, reset, flat)
    model.checkpointing = True
    for name, found in gradients(model, tokens, reset, flat).items():
        assert torch.equal(found, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("option", OPTIONS)
def test_weights_in_half_precision_keep_a_float32_state(option, dtype):
    half, (tokens, reset) = make(**OPTIONS[option]).to(dtype), sample()
    expected, _ = copy.deepcopy(half).float()(tokens, None, reset)
    logits, state = half(tokens, None, reset)
    assert logits.dtype == dtype
    assert state.flat.dtype == torch.float32
    tolerance = HALF * torch.finfo(dtype).eps
    assert relative_error(logits, expected) < tolerance
    one, _ = half.step(tokens[:, 0], half.initial_state(3))
    assert relative_error(one, expected[:, 0]) < tolerance
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in half.parameters() if p.grad is not None)


@every_option
def test_autocast_computes_a_float32_state_and_finite_gradients(option):
    model, (tokens, reset) = make(**OPTIONS[option]), sample()
    expected, _ = model(tokens, None, reset)
    with torch.autocast("cpu", torch.bfloat16):
        logits, state = model(tokens, None, reset)
        with torch.no_grad():
            one, _ = model.step(tokens[:, 0], model.initial_state(3))
    assert state.flat.dtype == torch.float32
    tolerance = HALF * torch.finfo(torch.bfloat16).eps
    assert relative_error(logits, expected) < tolerance
    assert relative_error(one, expected[:, 0]) < tolerance
    logits.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_features_are_what_the_head_reads():
    model, (tokens, reset) = make(), sample()
    features, state = model.features(tokens, None, reset)
    assert features.shape == (3, 21, 64)
    assert_equal_results((model.head(features), state), model(tokens, None, reset))


@pytest.mark.parametrize("sizes", [FUSED, COMPOSED], ids=["fused", "composed"])
@pytest.mark.parametrize("token", [VOCABULARY, -1])
def test_a_token_out_of_range_is_named(sizes, token):
    model, (tokens, _) = make(**sizes), sample()
    tokens[1, 4] = token
    message = rf"token id {token} at \[row, position\] = \[1, 4\].*expected 0 to 10"
    with pytest.raises(ValueError, match=message):
        model(tokens)
    with pytest.raises(ValueError, match=rf"token id {token} at \[row, position\] = \[1, 0\]"):
        model.step(tokens[:, 4], model.initial_state(3))


WRONG = {
    "a float": (lambda m, t: m(t.float()), r"tokens are \[3, 21\] torch.float32"),
    "one axis": (lambda m, t: m(t[0]), r"tokens are \[21\] torch.int64; expected \[B, T\]"),
    "no tokens": (lambda m, t: m(t[:, :0]), r"tokens are \[3, 0\]"),
    "two axes": (lambda m, t: m.step(t, m.initial_state(3)), r"tokens have shape \[3, 21\]"),
    "rows": (lambda m, t: m(t, m.initial_state(2)), "state has 2 rows on cpu; expected 3 on cpu"),
    "rows of a step": (lambda m, t: m.step(t[:, 0], m.initial_state(2)), "state has 2 rows"),
    "a tensor": (lambda m, t: m(t, m.initial_state(3).flat), "state is a Tensor; expected a Core"),
    "a larger model": (lambda m, t: m(t, make(3).initial_state(3)), r"has the parts .*2\.wkv"),
    "another part": (
        lambda m, t: m(t, CoreState(StateLayout({"h": (4,)}), torch.zeros(3, 4))),
        "state has the parts {'h': .*It belongs to a model of other sizes",
    ),
    "reset": (lambda m, t: m(t, None, t), r"reset is \[3, 21\] torch.int64; expected \[B, T\]"),
    "short reset": (lambda m, t: m(t, None, t[:, 1:] > 0), r"reset is \[3, 20\] torch.bool"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_an_argument_that_does_not_fit_is_named(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call(make(), sample()[0])


def test_a_state_saved_is_the_state_loaded(tmp_path):
    model, (tokens, _) = make(), sample()
    _, state = model(tokens)
    state.save(tmp_path / "state.safetensors")
    loaded = CoreState.load(tmp_path / "state.safetensors", model.layout)
    assert torch.equal(model(tokens, loaded)[0], model(tokens, state)[0])


def test_a_state_keeps_its_gradient_through_index_reset_and_to():
    model = make()
    flat = reached(model, 3).flat.requires_grad_()
    state = CoreState(model.layout, flat).index([0, 0, 2]).to("cpu")
    state = state.reset(torch.tensor([False, True, False]))
    (gradient,) = torch.autograd.grad(state.flat.sum(), flat)
    assert torch.equal(gradient, torch.tensor([1.0, 0.0, 1.0])[:, None].expand_as(gradient))
