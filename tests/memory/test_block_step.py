"""The compiled acting step against the sequence path, and everything that may change between."""

from __future__ import annotations

import copy
import io
import logging

import pytest
import torch
from kernel_cases import random_reset
from tolerances import NORMALISED, assert_close
from torch import nn
from torch.nn.utils import parametrize

from doxastic.kernels import checks
from doxastic.memory.belief import BeliefMemory
from doxastic.memory.block import Block
from doxastic.memory.core import RWKV7Memory

TOLERANCE = NORMALISED[torch.float32]


def make(layers=2, input_size=5, **sizes):
    """Return a core whose every parameter matters: officially, output projections are zero."""
    torch.manual_seed(0)
    memory = RWKV7Memory(input_size, **{"width": 32, "layers": layers, **sizes})
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return memory


def sample(memory, batch=5):
    """Return an input, a state that the memory itself reached, and some resets."""
    x = torch.randn(batch, 7, memory.input_size)
    nothing = torch.zeros(batch, 7, dtype=torch.bool)
    _, state = memory(x, memory.initial_state(batch), nothing)
    x = torch.randn(batch, 1, memory.input_size)
    return x, state.detach(), torch.arange(batch)[:, None] % 3 == 1


@pytest.fixture
def compiled_only(monkeypatch):
    """The modules of a block run only where gradients are recorded."""
    forward = Block.forward

    def refuse(*args):
        if not torch.is_grad_enabled():
            raise AssertionError("the modules ran")
        return forward(*args)

    monkeypatch.setattr(Block, "forward", refuse)


def assert_acting_equals_the_sequence(memory, *arguments):
    """Compare the acting step with the modules, which run while gradients are recorded."""
    expected = memory(*arguments)
    with torch.no_grad():
        actual = memory(*arguments)
    for name, x, y in zip(("features", "state"), actual, expected, strict=True):
        assert not x.requires_grad
        assert_close(name, x, y, TOLERANCE)
    return actual


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 17, 40])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_steps_equal_the_sequence(compiled_only, layers, batch):
    memory = make(layers)
    x, reset = torch.randn(batch, 9, 5), random_reset(batch, 9, 0.2)
    expected, last = memory(x, memory.initial_state(batch), reset)
    state, features = memory.initial_state(batch), []
    with torch.no_grad():
        for t in range(9):
            y, state = memory(x[:, t : t + 1], state, reset[:, t : t + 1])
            features.append(y)
    assert_close("features", torch.cat(features, 1), expected, TOLERANCE)
    assert_close("state", state, last, TOLERANCE)


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 16},
        {"width": 64, "head_size": 32},
        {"width": 48, "channel_ratio": 3.0},
        {"low_rank": 1},
        {"low_rank": 21},
        {"input_size": 32},
    ],
    ids=str,
)
def test_every_size_of_whole_vectors_is_compiled(compiled_only, sizes):
    memory = make(**sizes)
    assert_acting_equals_the_sequence(memory, *sample(memory))


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 36, "head_size": 6},
        {"width": 32, "head_size": 2},
        {"width": 30, "head_size": 15},
        {"channel_ratio": 1.1},
    ],
    ids=str,
)
def test_sizes_that_do_not_fill_vectors_run_the_modules(compiled_only, sizes):
    memory = make(**sizes)
    arguments = sample(memory)
    with torch.no_grad(), pytest.raises(AssertionError, match="the modules ran"):
        memory(*arguments)


@pytest.mark.parametrize(
    "sizes", [{"width": 36, "head_size": 6}, {"width": 32, "head_size": 2}], ids=str
)
def test_sizes_that_do_not_fill_vectors_agree(sizes):
    memory = make(**sizes)
    assert_acting_equals_the_sequence(memory, *sample(memory))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_in_the_state_of_a_reset_row_goes_nowhere(compiled_only, value):
    memory = make()
    x, state, reset = sample(memory)
    with torch.no_grad():
        expected = memory(x, state, reset)
        actual = memory(x, state.masked_fill(reset, value), reset)
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_not_a_number_stays_in_its_row(compiled_only):
    memory = make()
    x, state, reset = sample(memory)
    with torch.no_grad():
        expected, _ = memory(x, state, reset)
        state[3] = float("nan")
        actual, _ = memory(x, state, reset)
    assert actual[3].isnan().all() and not reset[3]
    others = [0, 1, 2, 4]
    assert torch.equal(actual[others], expected[others])


def test_strided_arguments_are_understood_and_left_as_they_were(compiled_only):
    memory = make()
    x, state, reset = sample(memory)
    strided = (
        x.repeat(1, 1, 2)[..., ::2].copy_(x),
        state.t().contiguous().t(),
        reset.repeat(1, 2)[:, 1:],
    )
    before = [argument.clone() for argument in strided]
    with torch.no_grad():
        for ours, theirs in zip(memory(*strided), memory(x, state, reset), strict=True):
            assert torch.equal(ours, theirs)
    assert all(map(torch.equal, strided, before))


@pytest.mark.parametrize("low_rank", [8, 32, 48])
def test_the_rows_beside_it_do_not_change_a_bit_of_a_row(compiled_only, low_rank):
    # As wide as the core: an input projection is PyTorch's, whose bits depend on the batch.
    memory = make(input_size=32, low_rank=low_rank)
    arguments = sample(memory, batch=23)
    with torch.no_grad():
        together = memory(*arguments)
        for size in (1, 3, 7):
            pieces = [x.split(size) for x in arguments]
            parts = [memory(*given) for given in zip(*pieces, strict=True)]
            for whole, part in zip(together, zip(*parts, strict=True), strict=True):
                assert torch.equal(whole, torch.cat(part)), size


@pytest.mark.parametrize("low_rank", [8, 32])
def test_threads_do_not_change_a_bit(compiled_only, low_rank):
    memory = make(low_rank=low_rank)
    arguments = sample(memory, batch=300)
    with torch.no_grad():
        single = memory(*arguments)
        torch.set_num_threads(2)
        try:
            double = memory(*arguments)
        finally:
            torch.set_num_threads(1)
    assert all(map(torch.equal, single, double))


def optimise(memory, arguments):
    optimiser = torch.optim.AdamW(memory.parameters(), lr=0.1)
    features, state = memory(*arguments)
    (features.square().sum() + state.square().sum()).backward()
    optimiser.step()


def load(memory, arguments):
    memory.load_state_dict({name: x + 0.2 for name, x in memory.state_dict().items()})


def assign_on_load(memory, arguments):
    states = {name: x + 0.2 for name, x in memory.state_dict().items()}
    memory.load_state_dict(states, assign=True)


def assign_data(memory, arguments):
    for parameter in memory.parameters():
        parameter.data = parameter.data + 0.2


def add_in_place(memory, arguments):
    for parameter in memory.parameters():
        parameter.data.add_(0.2)


def replace_parameters(memory, arguments):
    attention = memory.blocks[0].att
    attention.x_r = nn.Parameter(attention.x_r.detach() + 0.5)
    memory.blocks[1].ffn.key.weight = nn.Parameter(torch.randn(64, 32))
    memory.ln_out.bias = nn.Parameter(torch.randn(32))


def share(memory, arguments):
    memory.share_memory()
    memory.blocks[0].ln1.bias.data.add_(0.5)


def change_eps(memory, arguments):
    memory.blocks[1].att.ln_x.eps = 1.0
    for norm in (memory.ln_out, *(n for block in memory.blocks for n in (block.ln1, block.ln2))):
        norm.eps = 0.5


CHANGES = [
    optimise, load, assign_on_load, assign_data, add_in_place, replace_parameters, share,
    change_eps,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_next_step_sees_changed_parameters(compiled_only, change):
    memory = make()
    arguments = sample(memory)
    before, _ = assert_acting_equals_the_sequence(memory, *arguments)
    change(memory, arguments)
    after, _ = assert_acting_equals_the_sequence(memory, *arguments)
    assert (after - before).abs().max() > 1e-2


@pytest.mark.parametrize("name", [name for name, _ in make().named_parameters()])
def test_every_single_parameter_is_read_at_every_step(compiled_only, name):
    memory = make()
    arguments = sample(memory)
    with torch.no_grad():
        before = memory(*arguments)
        parameter = memory.get_parameter(name)
        parameter.add_(torch.randn_like(parameter))
        after = memory(*arguments)
    assert any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert_acting_equals_the_sequence(memory, *arguments)


def test_a_functional_call_sees_the_parameters_it_is_given(compiled_only):
    memory = make()
    arguments = sample(memory)
    other = {name: x + 0.2 for name, x in memory.state_dict().items()}
    expected = torch.func.functional_call(memory, other, arguments)
    with torch.no_grad():
        before = memory(*arguments)
        actual = torch.func.functional_call(memory, other, arguments)
        after = memory(*arguments)
    assert_close("features", actual[0], expected[0], TOLERANCE)
    assert (actual[0] - before[0]).abs().max() > 1e-2
    assert torch.equal(before[0], after[0])


def deep(memory):
    return copy.deepcopy(memory)


def saved(memory):
    file = io.BytesIO()
    torch.save(memory, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [deep, saved])
def test_a_copy_has_a_step_of_its_own(compiled_only, duplicate):
    memory = make()
    arguments = sample(memory)
    with torch.no_grad():
        before = memory(*arguments)
        other = duplicate(memory)
        assert torch.equal(other(*arguments)[0], before[0])
        for parameter in other.parameters():
            parameter.add_(0.2)
        assert (other(*arguments)[0] - before[0]).abs().max() > 1e-2
        assert torch.equal(memory(*arguments)[0], before[0])
    assert_acting_equals_the_sequence(other, *arguments)


class Doubled(nn.Module):
    def forward(self, x):
        return 2.0 * x


def replace_a_submodule(memory):
    memory.blocks[0].att.value = nn.Linear(32, 32, bias=False)


def replace_a_block(memory):
    memory.blocks[0] = make().blocks[0]
    memory.blocks[0].att.k_k.data.add_(1.0)


def replace_the_norm(memory):
    memory.ln_out = nn.Sequential(memory.ln_out, Doubled())


def parametrise(memory):
    parametrize.register_parametrization(memory.blocks[1].ffn.key, "weight", Doubled())


def hook(memory):
    memory.blocks[1].ffn.register_forward_hook(lambda module, inputs, output: 2.0 * output)


def hook_before(memory):
    memory.blocks[0].att.key.register_forward_pre_hook(lambda module, inputs: inputs[0] + 1.0)


def transpose(memory):
    weight = memory.blocks[0].att.key.weight
    weight.data = (2.0 * weight.data).t()


def transpose_in_place(memory):
    memory.blocks[0].att.key.weight.t_()


def transpose_the_data(memory):
    weight = memory.blocks[1].att.value.weight
    weight.data = weight.data.t()


def share_transposed(memory):
    value = memory.blocks[0].att.value
    value.weight = nn.Parameter(value.weight.detach().t())


def take_another_rank(memory):
    attention = memory.blocks[0].att
    attention.w1 = nn.Parameter(torch.randn(32, 4))
    attention.w2 = nn.Parameter(torch.randn(4, 32))


def take_another_rank_where_the_old_was(memory):
    """Shrink both factors in their own memory, which a kernel of the old rank would read past."""
    attention = memory.blocks[0].att
    for name, shape in (("g1", (32, 3)), ("g2", (3, 32))):
        storage = getattr(attention, name).detach().flatten()
        factor = storage[: 32 * 3].view(shape).copy_(torch.randn(shape))
        setattr(attention, name, nn.Parameter(factor))


def take_another_hidden_width(memory):
    ffn = memory.blocks[1].ffn
    ffn.key.weight = nn.Parameter(torch.randn(48, 32))
    ffn.value.weight = nn.Parameter(torch.randn(32, 48))


def change_one_eps(memory):
    memory.blocks[0].ln1.eps = 1.0


def change_the_last_eps(memory):
    memory.ln_out.eps = 1.0


def double_the_rate(memory):
    memory.blocks[0].att.double_rate = True


def forward_differently(memory):
    value = memory.blocks[0].att.value
    value.forward = lambda x: 2.0 * nn.Linear.forward(value, x)


def hook_the_core(memory):
    memory.register_forward_hook(lambda module, inputs, output: (2.0 * output[0], output[1]))


REBUILT = {
    replace_a_submodule: "a submodule was replaced",
    replace_a_block: "a submodule was replaced",
    replace_the_norm: "a submodule was replaced",
    parametrise: "a submodule was replaced|a parameter was replaced by a computed one",
    hook: "a module has a forward hook or a forward of its own",
    hook_before: "a module has a forward hook or a forward of its own",
    hook_the_core: "a module has a forward hook or a forward of its own",
    forward_differently: "a module has a forward hook or a forward of its own",
    transpose: "a parameter is not contiguous float32",
    transpose_in_place: "a parameter is not contiguous float32",
    transpose_the_data: "a parameter is not contiguous float32",
    share_transposed: "a parameter is not contiguous float32",
    take_another_rank: "a parameter has another shape",
    take_another_rank_where_the_old_was: "a parameter has another shape",
    take_another_hidden_width: "a parameter has another shape",
    change_one_eps: "its layer norms have different eps",
    change_the_last_eps: "its layer norms have different eps",
    double_the_rate: "its rate was doubled",
}


@pytest.mark.parametrize("change", REBUILT, ids=lambda change: change.__name__)
def test_a_rebuilt_core_runs_its_modules_and_says_so(change, caplog, monkeypatch):
    monkeypatch.setattr(checks, "_logged", set())
    memory = make()
    arguments = sample(memory)
    with torch.no_grad():
        before, _ = memory(*arguments)
        change(memory)
        with caplog.at_level(logging.WARNING, "doxastic.kernels"):
            after, _ = memory(*arguments)
            memory(*arguments)
    assert (after - before).abs().max() > 1e-2
    (message,) = [m for m in caplog.messages if "acting step" in m]
    assert any(reason in message for reason in REBUILT[change].split("|"))
    assert_acting_equals_the_sequence(memory, *arguments)


def test_a_hook_of_all_modules_is_called(caplog, monkeypatch):
    monkeypatch.setattr(checks, "_logged", set())
    memory, called = make(), []
    arguments = sample(memory)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: called.append(module)
    )
    try:
        with torch.no_grad(), caplog.at_level(logging.WARNING, "doxastic.kernels"):
            memory(*arguments)
    finally:
        handle.remove()
    assert {memory.blocks[1].att.key, memory.ln_out, memory} <= set(called)
    assert any("all modules have a hook" in message for message in caplog.messages)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_hook_on_the_core_of_a_belief_is_called(steps):
    memory, called = BeliefMemory(5, 32), []
    memory.core.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        reset = torch.zeros(3, steps, dtype=torch.bool)
        memory(torch.randn(3, steps, 5), memory.initial_state(3), reset)
    assert called == [1]


def test_float64_runs_the_modules():
    memory = make().double()
    x, state, reset = sample(make())
    arguments = (x.double(), state.double(), reset)
    expected, _ = memory(*arguments)
    with torch.no_grad():
        assert torch.equal(memory(*arguments)[0], expected)


def test_a_state_of_another_dtype_is_never_read_as_float32():
    memory = make(input_size=32)
    x, state, reset = sample(memory)
    with torch.no_grad(), pytest.raises(ValueError, match=r"state is torch\.float64"):
        memory(x, state.double(), reset)
    with torch.no_grad(), pytest.raises((RuntimeError, ValueError)):
        memory.double()(x, state, reset)
