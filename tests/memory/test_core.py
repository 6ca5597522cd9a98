"""RWKV-7: a recurrence written in numpy, the official initialisation, names and counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_cases import cotangents, random_reset
from tolerances import NORMALISED, STACKED, assert_close, relative_error
from torch import nn

from doxastic.memory.core import RWKV7Memory
from doxastic.memory.time_mix import TimeMix

F64 = torch.float64
# Two recurrences in float64, one in numpy.
BY_HAND = 1e-9


def make(dtype=F64, **sizes):
    """Return a core whose every parameter matters: officially, output projections are zero."""
    torch.manual_seed(0)
    memory = RWKV7Memory(**{"input_size": 6, "width": 24, "head_size": 8, "layers": 2, **sizes})
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return memory.to(dtype)


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def layer_norm(x, p, name):
    deviation = np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
    return (x - x.mean()) / deviation * p[f"{name}.weight"] + p[f"{name}.bias"]


def time_mix_step(x, previous, S, v_first, p, heads, eps):
    """Return output, new state and v_first of one step of one row, as the paper writes it."""

    def shifted(name):
        return x + (previous - x) * p[f"x_{name}"]

    r = p["receptance.weight"] @ shifted("r")
    k = p["key.weight"] @ shifted("k")
    v = p["value.weight"] @ shifted("v")
    decay = np.exp(-np.exp(-0.5) * sigmoid(p["w0"] + np.tanh(shifted("w") @ p["w1"]) @ p["w2"]))
    alpha = sigmoid(p["a0"] + shifted("a") @ p["a1"] @ p["a2"])
    gate = sigmoid(shifted("g") @ p["g1"]) @ p["g2"]
    if v_first is None:
        v_first = v
    else:
        v = v + (v_first - v) * sigmoid(p["v0"] + shifted("v") @ p["v1"] @ p["v2"])
    removed, written = k * p["k_k"], k * (1 + (alpha - 1) * p["k_a"])
    out, S, size = np.empty_like(x), S.copy(), len(x) // heads
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        kk = removed[part] / max(np.linalg.norm(removed[part]), 1e-12)
        S[h] = (
            S[h] @ np.diag(decay[part])
            - np.outer(S[h] @ kk, kk * alpha[part])
            + np.outer(v[part], written[part])
        )
        y = S[h] @ r[part]
        y = (y - y.mean()) / np.sqrt(((y - y.mean()) ** 2).mean() + eps)
        y = y * p["ln_x.weight"][part] + p["ln_x.bias"][part]
        out[part] = y + (r[part] @ (written[part] * p["r_k"][h])) * v[part]
    return p["output.weight"] @ (out * gate), S, v_first


def core_step(x, state, p, layers, heads):
    """Return features and new state of one row; the state has three parts a layer."""
    x, v_first, new = p["projection.weight"] @ x, None, []
    width = len(x)
    for layer in range(layers):
        time_shift, S, channel_shift = state[3 * layer : 3 * layer + 3]
        prefix = f"blocks.{layer}."
        own = {key[len(prefix) :]: value for key, value in p.items() if key.startswith(prefix)}
        attention = {key[4:]: value for key, value in own.items() if key.startswith("att.")}
        h = layer_norm(x, own, "ln1")
        mixed, S, v_first = time_mix_step(
            h, time_shift, S, v_first, attention, heads, 1e-5 * width / heads
        )
        x = x + mixed
        g = layer_norm(x, own, "ln2")
        k = own["ffn.key.weight"] @ (g + (channel_shift - g) * own["ffn.x_k"])
        x = x + own["ffn.value.weight"] @ np.maximum(k, 0.0) ** 2
        new += [h, S, g]
    return layer_norm(x, p, "ln_out"), new


def parameters(module):
    return {name: x.detach().numpy() for name, x in module.named_parameters()}


@pytest.mark.parametrize("layer", [0, 1])
def test_the_time_mix_is_the_recurrence_of_rwkv7(layer):
    module = make().blocks[layer].att
    heads, size, width = module.heads, module.head_size, 24
    x, shift = torch.randn(1, 5, width, dtype=F64), torch.randn(1, width, dtype=F64)
    wkv = torch.randn(1, heads, size, size, dtype=F64)
    v_first = torch.randn(1, 5, width, dtype=F64) if layer else None
    reset = torch.zeros(1, 5, dtype=torch.bool)
    actual, final, values = module(x, shift, wkv, reset, v_first)
    S, p, previous = wkv[0].numpy(), parameters(module), shift[0].numpy()
    for t in range(5):
        given = None if v_first is None else v_first[0, t].numpy()
        now = x[0, t].numpy()
        out, S, first = time_mix_step(now, previous, S, given, p, heads, 1e-5 * size)
        previous = now
        assert relative_error(actual[0, t], torch.from_numpy(out)) < BY_HAND
        assert relative_error(values[0, t], torch.from_numpy(first)) < BY_HAND
    assert relative_error(final[0], torch.from_numpy(S)) < BY_HAND


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_core_is_the_recurrence_of_rwkv7(layers):
    memory = make(layers=layers)
    x, reset = torch.randn(2, 5, 6, dtype=F64), torch.zeros(2, 5, dtype=torch.bool)
    reset[1, 3] = True
    features, final = memory(x, memory.initial_state(2).double(), reset)
    for row in range(2):
        empty = [
            z[0].numpy() for z in memory.layout.split(torch.zeros(1, memory.state_size)).values()
        ]
        state, p = [z.astype(np.float64) for z in empty], parameters(memory)
        for t in range(5):
            if reset[row, t]:
                state = [np.zeros_like(z) for z in state]
            expected, state = core_step(x[row, t].numpy(), state, p, layers, 3)
            assert relative_error(features[row, t], torch.from_numpy(expected)) < BY_HAND
        flat = np.concatenate([z.ravel() for z in state])
        assert relative_error(final[row], torch.from_numpy(flat)) < BY_HAND


def outputs_and_gradients(memory, x, state, reset):
    """Return features, final state, and the gradients of a projection of them, by name."""
    x, state = x.clone().requires_grad_(), state.clone().requires_grad_()
    outputs = memory(x, state, reset)
    leaves = {"x": x, "initial state": state, **dict(memory.named_parameters())}
    gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents(outputs))
    return {
        "features": outputs[0],
        "state": outputs[1],
        **dict(zip(leaves, gradients, strict=True)),
    }


fused_and_composed = pytest.mark.parametrize(
    ("width", "head_size"), [(32, 16), (24, 8)], ids=["fused", "composed"]
)


@fused_and_composed
@pytest.mark.parametrize("probability", [0.0, 0.2])
def test_float32_equals_float64(width, head_size, probability):
    sizes = {"width": width, "head_size": head_size}
    precise, memory = make(**sizes), make(torch.float32, **sizes)
    x, reset = torch.randn(4, 37, 6), random_reset(4, 37, probability)
    state = memory.initial_state(4)
    expected = precise(x.double(), state.double(), reset)
    for ours, theirs in zip(memory(x, state, reset), expected, strict=True):
        assert theirs.dtype == F64
        assert relative_error(ours, theirs) < NORMALISED[torch.float32]


@fused_and_composed
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("probability", [0.0, 0.2])
def test_every_gradient_in_float32_equals_that_in_float64(width, head_size, layers, probability):
    sizes = {"width": width, "head_size": head_size, "layers": layers}
    precise, memory = make(**sizes), make(torch.float32, **sizes)
    for block in (*precise.blocks, *memory.blocks):
        # Large, so that the group norm is well conditioned and a wrong digit shows.
        block.att.ln_x.eps = 0.1
    x, reset = torch.randn(4, 37, 6), random_reset(4, 37, probability)
    state = 0.3 * torch.randn(4, memory.state_size)
    actual = outputs_and_gradients(memory, x, state, reset)
    expected = outputs_and_gradients(precise, x.double(), state.double(), reset)
    for name, theirs in expected.items():
        assert_close(name, actual[name], theirs, STACKED[torch.float32])


def test_fused_layers_read_parameters_of_any_layout():
    memory, strided = (make(torch.float32, width=32, head_size=16) for _ in range(2))
    for parameter in strided.parameters():
        twice = parameter.detach().repeat_interleave(2, -1)
        parameter.data = twice[..., ::2]
        assert not parameter.is_contiguous()
    arguments = torch.randn(3, 9, 6), memory.initial_state(3), random_reset(3, 9, 0.2)
    actual = outputs_and_gradients(strided, *arguments)
    for name, expected in outputs_and_gradients(memory, *arguments).items():
        assert_close(name, actual[name], expected, NORMALISED[torch.float32])


def test_autocast_is_never_read_as_float32():
    memory = make(torch.float32, width=32, head_size=16)
    x, state, reset = torch.randn(3, 9, 6), memory.initial_state(3), random_reset(3, 9, 0.2)
    expected, _ = memory(x, state, reset)
    with torch.autocast("cpu", torch.bfloat16):
        features, final = memory(x, state, reset)
        features.square().sum().backward()
    assert final.dtype == torch.float32
    assert (features - expected).abs().mean() < 0.1
    assert all(p.grad.isfinite().all() for p in memory.parameters())


@pytest.mark.parametrize(
    "path", ["att.receptance", "att.key", "att.value", "att.output", "ffn.key", "ffn.value"]
)
def test_a_hook_or_an_adapter_on_any_projection_takes_part(path):
    def scaled(x):
        return x * torch.linspace(0.5, 1.5, x.shape[-1])

    class Adapter(nn.Linear):
        def forward(self, x):
            return scaled(super().forward(x))

    def features(change):
        memory = make(torch.float32, width=32, head_size=16)
        owner, _, name = path.rpartition(".")
        change(memory.blocks[1].get_submodule(owner), name)
        x = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
        reset = torch.zeros(2, 9, dtype=torch.bool)
        return memory(x, memory.initial_state(2), reset)[0]

    def adapt(owner, name):
        adapter = Adapter(*reversed(getattr(owner, name).weight.shape), bias=False)
        adapter.weight = getattr(owner, name).weight
        setattr(owner, name, adapter)

    def hook(owner, name):
        getattr(owner, name).register_forward_hook(lambda module, inputs, output: scaled(output))

    plain = features(lambda owner, name: None)
    adapted, hooked = features(adapt), features(hook)
    assert (adapted - plain).abs().max() > 1e-2
    assert torch.equal(adapted, hooked)


WIDTH, HEAD, LAYERS = 32, 16, 3
CHANNEL = np.arange(WIDTH)
LINEAR = CHANNEL / (WIDTH - 1) - 0.5
CENTRED = (CHANNEL % HEAD - (HEAD - 1) / 2) / ((HEAD - 1) / 2)
ZIGZAG = CENTRED * np.abs(CENTRED)


def official(layer):
    """Return the initial values of `blocks.<layer>.` that are no random matrices."""
    p, q, u = 1 - layer / LAYERS, layer / (LAYERS - 1), CHANNEL / WIDTH
    powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
    values = {f"att.x_{name}": 1 - u ** (power * p) for name, power in powers.items()}
    values |= {
        "att.w0": -6 + 6 * (CHANNEL / (WIDTH - 1)) ** (1 + q**0.3) + 0.5 + 2.5 * ZIGZAG,
        "att.a0": -0.19 + 0.3 * ZIGZAG + 0.4 * LINEAR,
        "att.k_k": 0.71 - 0.1 * LINEAR,
        "att.k_a": np.full(WIDTH, 1.02),
        "att.r_k": np.full((WIDTH // HEAD, HEAD), -0.04),
        "att.ln_x.weight": np.full(WIDTH, ((1 + layer) / LAYERS) ** 0.7),
        "ffn.x_k": 1 - u ** (p**4),
        "ln1.weight": np.ones(WIDTH),
        "ln2.weight": np.ones(WIDTH),
    }
    if layer:
        values["att.v0"] = 0.73 - 0.4 * LINEAR
    zeros = ("att.ln_x.bias", "ln1.bias", "ln2.bias", "att.w1", "att.a1", "att.g1")
    zeros += ("att.v1",) if layer else ()
    return values, (*zeros, "att.output.weight", "ffn.value.weight")


@pytest.mark.parametrize("layer", range(LAYERS))
def test_initial_values_are_the_official_ones(layer):
    block = RWKV7Memory(6, WIDTH, layers=LAYERS, head_size=HEAD).blocks[layer]
    values, zeros = official(layer)
    for name, expected in values.items():
        actual = block.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    for name in zeros:
        assert not block.get_parameter(name).any(), name
    matrices = {"att.w2", "att.a2", "att.g2", "att.receptance.weight", "att.key.weight"}
    matrices |= {"att.value.weight", "ffn.key.weight"} | ({"att.v2"} if layer else set())
    assert {name for name, _ in block.named_parameters()} == matrices | {*values, *zeros}


@pytest.mark.parametrize("rank", [8, 64])
def test_initial_matrices_are_orthogonal_with_the_official_gains(rank):
    memory = RWKV7Memory(6, WIDTH, layers=2, head_size=HEAD, low_rank=rank)
    gains = {"receptance.weight": 1.0, "key.weight": 0.1, "value.weight": 1.0}
    low = 0.1 * max(1.0, rank / WIDTH) ** 0.5
    gains |= {"w2": low, "a2": low, "v2": low}
    matrices = {name: memory.blocks[1].att.get_parameter(name) for name in gains}
    matrices["ffn"], gains["ffn"] = memory.blocks[1].ffn.key.weight, 1.0
    for name, matrix in matrices.items():
        product = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        expected = gains[name] ** 2 * torch.eye(len(product))
        torch.testing.assert_close(product, expected, rtol=0.0, atol=1e-5, msg=name)


@pytest.mark.parametrize("rank", [1, 8, 64])
def test_every_gate_starts_at_one(rank):
    module = TimeMix(WIDTH, HEAD, low_rank=rank)
    gate = torch.sigmoid(torch.randn(7, WIDTH) @ module.g1) @ module.g2
    torch.testing.assert_close(gate, torch.ones(7, WIDTH), rtol=0.0, atol=1e-5)


def test_a_fresh_core_passes_its_projected_input_through_the_closing_norm():
    memory = RWKV7Memory(6, WIDTH, layers=2, head_size=HEAD)
    x = torch.randn(3, 5, 6)
    features, _ = memory(x, memory.initial_state(3), random_reset(3, 5, 0.2))
    torch.testing.assert_close(features, memory.ln_out(memory.projection(x)))


def test_parameters_are_named_as_in_official_checkpoints():
    memory = RWKV7Memory(6, WIDTH, layers=2, head_size=HEAD)
    mixes = [f"att.x_{name}" for name in "rwkvag"]
    ranks = [f"att.{name}{i}" for name in "wag" for i in (1, 2)]
    vectors = ["att.w0", "att.a0", "att.k_k", "att.k_a", "att.r_k"]
    matrices = [f"att.{name}.weight" for name in ("receptance", "key", "value", "output")]
    norms = [f"{name}.{end}" for name in ("ln1", "ln2", "att.ln_x") for end in ("weight", "bias")]
    channel = ["ffn.x_k", "ffn.key.weight", "ffn.value.weight"]
    names = {*mixes, *ranks, *vectors, *matrices, *norms, *channel}
    expected = {f"blocks.{layer}.{name}" for layer in (0, 1) for name in names}
    expected |= {f"blocks.1.att.{name}" for name in ("v0", "v1", "v2")}
    expected |= {"projection.weight", "ln_out.weight", "ln_out.bias"}
    assert set(memory.state_dict()) == expected


def test_only_later_layers_have_a_value_residual():
    module = TimeMix(WIDTH, HEAD, layer=0, layers=2)
    assert not any(hasattr(module, name) for name in ("v0", "v1", "v2"))
    x, state = torch.randn(2, 5, WIDTH), torch.zeros(2, 2, HEAD, HEAD)
    arguments = (x, torch.zeros(2, WIDTH), state, torch.zeros(2, 5, dtype=torch.bool))
    _, _, v_first = module(*arguments, None)
    _, _, passed = TimeMix(WIDTH, HEAD, layer=1, layers=2)(*arguments, v_first)
    assert passed is v_first


@pytest.mark.parametrize(("layers", "rank", "ratio"), [(1, 8, 2.0), (3, 8, 2.0), (2, 5, 4.0)])
def test_the_number_of_parameters_is_that_of_the_formula(layers, rank, ratio):
    C, hidden = 32, round(32 * ratio)
    memory = RWKV7Memory(6, C, layers=layers, head_size=16, low_rank=rank, channel_ratio=ratio)
    first = 18 * C + 4 * C**2 + 2 * C * hidden + 2 * C * 3 * rank
    later = first + C + 2 * C * rank
    expected = 6 * C + first + (layers - 1) * later + 2 * C
    assert sum(p.numel() for p in memory.parameters()) == expected


def test_the_state_is_two_shifts_and_a_matrix_a_head():
    memory = RWKV7Memory(6, 32, layers=2, head_size=16)
    assert memory.state_size == 2 * (32 + 2 * 16 * 16 + 32)
    assert memory.layout.shapes["1.wkv"] == (2, 16, 16)


def test_an_input_of_the_width_needs_no_projection():
    names = set(RWKV7Memory(32, 32).state_dict())
    assert not any(name.startswith("projection") for name in names)


def test_a_width_that_the_heads_do_not_divide_is_an_error():
    with pytest.raises(ValueError, match="width is 30; expected a multiple of head_size = 16"):
        RWKV7Memory(6, 30, head_size=16)
