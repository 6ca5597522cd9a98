"""The readouts' equations on numbers worked out by hand, and the belief beside the summary."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_cases import random_reset
from tolerances import KERNEL, SAME, assert_close

from doxastic.memory.belief import BeliefMemory
from doxastic.memory.readouts import Belief, LearnedReadout, MomentsReadout, PrecisionReadout

F32, F64 = torch.float32, torch.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
READOUTS = ("moments", "precision", "learned")
# What a prior parameter of zero stands for: softplus(0) and a little.
PRIOR = math.log(2.0) + 1e-3
# A sigmoid of this is zero for the decay: nothing is forgotten.
NEVER = -1e3


def make(readout="moments", seed=0, **sizes):
    """Return a memory whose every parameter matters."""
    torch.manual_seed(seed)
    memory = BeliefMemory(6, **{"width": 32, "readout": readout, **sizes})
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return memory


def sample(memory, batch=4, steps=21):
    x, reset = torch.randn(batch, steps, 6), random_reset(batch, steps, 0.1)
    return x, memory.initial_state(batch), reset


def posterior(spread, evidence):
    """Return the variance of a mean: the noise, a unit variance worth PRIOR, over all evidence."""
    noise = (PRIOR * 1.0 + evidence * spread) / (PRIOR + evidence)
    return noise / (PRIOR + evidence)


def moments_readout(dtype, size=16, log_weight=0.0, decay=NEVER):
    """Return a readout of one feature: its values, with fixed evidence and decay."""
    readout = MomentsReadout(1, size).to(dtype)
    with torch.no_grad():
        readout.projection.weight.copy_(
            torch.tensor([1.0, 0.0, 0.0]).repeat_interleave(size)[:, None]
        )
        readout.projection.bias.copy_(
            torch.tensor([0.0, log_weight, decay], dtype=F64).repeat_interleave(size)
        )
    return readout


def read(readout, values, dtype):
    h = torch.tensor(values, dtype=dtype).reshape(1, -1, 1)
    state = torch.zeros(1, 3, readout.channels, dtype=dtype)
    reset = torch.zeros(1, len(values), dtype=torch.bool)
    belief, _ = readout(h, state, reset)
    features, _ = readout.features(h, state, reset)
    assert_close("features", features, belief.features(), KERNEL[dtype])
    return Belief(*(part[0] for part in belief))


def assert_numbers(name, actual, expected, dtype):
    expected = torch.tensor(expected, dtype=F64)[:, None].expand_as(actual)
    assert_close(name, actual, expected, KERNEL[dtype])


@DTYPES
def test_moments_are_those_of_the_values_seen(dtype):
    belief = read(moments_readout(dtype), [1.0, 3.0, 8.0], dtype)
    assert_numbers("mean", belief.mean, [1.0, 2.0, 4.0], dtype)
    assert_numbers("evidence", belief.evidence, [1.0, 2.0, 3.0], dtype)
    variances = [posterior(0.0, 1.0), posterior(1.0, 2.0), posterior(26.0 / 3.0, 3.0)]
    assert_numbers("variance", belief.variance, variances, dtype)


@DTYPES
def test_evidence_counts_what_each_step_weighs(dtype):
    belief = read(moments_readout(dtype, log_weight=math.log(2.5)), [4.0] * 5, dtype)
    assert_numbers("evidence", belief.evidence, [2.5, 5.0, 7.5, 10.0, 12.5], dtype)


@DTYPES
def test_constant_values_leave_the_prior_variance_alone(dtype):
    belief = read(moments_readout(dtype), [4.0] * 9, dtype)
    assert_numbers("mean", belief.mean, [4.0] * 9, dtype)
    variances = [PRIOR / (PRIOR + n) ** 2 for n in range(1, 10)]
    assert_numbers("variance", belief.variance, variances, dtype)


@DTYPES
def test_decay_halves_the_past(dtype):
    # e^(-e^(-1/2) sigmoid(o)) = 0.75
    gate = -math.log(0.75) * math.exp(0.5)
    readout = moments_readout(dtype, decay=math.log(gate / (1.0 - gate)))
    belief = read(readout, [8.0, 1.0], dtype)
    assert_numbers("evidence", belief.evidence, [1.0, 1.75], dtype)
    assert_numbers("mean", belief.mean, [8.0, 4.0], dtype)
    assert_numbers("variance", belief.variance[1:], [posterior(12.0, 1.75)], dtype)


@DTYPES
def test_surprise_is_the_standardised_innovation(dtype):
    readout = MomentsReadout(1, 1, surprise=True).to(dtype)
    readout.load_state_dict(moments_readout(dtype, size=1).state_dict())
    h = torch.tensor([1.0, 3.0, 8.0], dtype=dtype).reshape(1, -1, 1)
    state, reset = torch.zeros(1, 3, 1, dtype=dtype), torch.zeros(1, 3, dtype=torch.bool)
    features, _ = readout.features(h, state, reset)
    # Before: nothing; mean 1 after 1 step; mean 2 and spread 1 after 2. The noise is that of
    # `posterior`, and the mean's own uncertainty comes on top.
    noise = [1.0, PRIOR / (PRIOR + 1.0), 1.0]
    expected = [
        0.5 * math.log1p(innovation**2 / (level * (1.0 + 1.0 / (PRIOR + n))))
        for n, (innovation, level) in enumerate(zip([1.0, 2.0, 6.0], noise, strict=True))
    ]
    assert_numbers("surprise", features[0, :, 4:], expected, dtype)
    belief, _ = readout(h, state, reset)
    assert_close("features", features[..., :4], belief.features(), KERNEL[dtype])


def test_decays_span_the_range_that_is_asked_for():
    moments, precision = MomentsReadout(4, 3, (-3.0, 1.0)), PrecisionReadout(4, 2, (-3.0, 1.0))
    assert moments.projection.bias[-3:].tolist() == [-3.0, -1.0, 1.0]
    assert precision.projection.bias[-2:].tolist() == [-3.0, 1.0]


@DTYPES
def test_features_are_mean_log_deviation_half_log_evidence_and_ratio(dtype):
    parts = (torch.tensor([[3.0, -0.5]]), torch.tensor([[16.0, 0.25]]), torch.tensor([[1.0, 7.0]]))
    features = Belief(*(part.to(dtype) for part in parts)).features()
    expected = [3.0, -0.5, math.log(4.0), math.log(0.5), math.log(2.0) / 2, math.log(8.0) / 2]
    expected += [0.6, -(0.5**0.5)]
    assert_close("features", features, torch.tensor([expected], dtype=F64), SAME[dtype])


@DTYPES
@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_the_variance_is_that_of_the_mean_and_falls_with_evidence(dtype, noise):
    values = (noise * torch.randn(400)).tolist()
    variance = read(moments_readout(dtype), values, dtype).variance[:, 0]
    assert variance[399] < variance[99] < variance[24]
    expected = torch.tensor(values).var(correction=0) / 400
    assert variance[399].item() == pytest.approx(expected.item(), rel=0.02)


@DTYPES
def test_precision_is_read_along_the_query(dtype):
    readout = PrecisionReadout(2, 1).to(dtype)
    bias = torch.tensor(
        [3.0, 5.0, 7.0, 0.0, 1.2, 1.6, 1e3, NEVER], dtype=F64
    )  # z, k, q, rate, decay
    with torch.no_grad():
        readout.projection.weight.zero_()
        readout.projection.bias.copy_(bias)
    state, reset = torch.zeros(1, 3, 2, dtype=dtype), torch.zeros(1, 4, dtype=torch.bool)
    belief, _ = readout(torch.zeros(1, 4, 2, dtype=dtype), state, reset)
    seen = [(t * (1.0 + 1e-4), t * 1e-4) for t in range(1, 5)]
    evidence = [0.36 * n + 0.64 * m for n, m in seen]
    variance = [0.36 * posterior(0.0, n) + 0.64 * posterior(0.0, m) for n, m in seen]
    assert_numbers("mean", belief.mean[0], [0.6 * 3.0 + 0.8 * 5.0] * 4, dtype)
    assert_numbers("evidence", belief.evidence[0], evidence, dtype)
    assert_numbers("variance", belief.variance[0], variance, dtype)


@DTYPES
def test_the_learned_variance_is_clamped_and_its_inverse_the_evidence(dtype):
    readout = LearnedReadout(1, 1).to(dtype)
    with torch.no_grad():
        readout.projection.weight.copy_(torch.tensor([[2.0], [1.0]]))
        readout.projection.bias.copy_(torch.tensor([1.0, 0.0]))
    h = torch.tensor([-20.0, 1.5, 20.0], dtype=dtype).reshape(1, 3, 1)
    belief, state = readout(h, None, torch.zeros(1, 3, dtype=torch.bool))
    assert state is None
    assert_numbers("mean", belief.mean[0], [-39.0, 4.0, 41.0], dtype)
    assert_numbers("variance", belief.variance[0], [math.exp(x) for x in (-8.0, 1.5, 4.0)], dtype)
    assert_numbers("evidence", belief.evidence[0], [math.exp(x) for x in (8.0, -1.5, -4.0)], dtype)


@pytest.mark.parametrize("readout", [MomentsReadout(4, 3), PrecisionReadout(4, 2)])
def test_a_readout_with_a_state_asks_for_it(readout):
    h, reset = torch.zeros(1, 2, 4), torch.zeros(1, 2, dtype=torch.bool)
    for read_out in (readout, readout.features):
        with pytest.raises(ValueError, match="state is None; expected"):
            read_out(h, None, reset)


@pytest.mark.parametrize("sizes", [{}, {"belief_size": 5}, {"layers": 2}], ids=str)
@pytest.mark.parametrize("readout", READOUTS)
def test_the_belief_is_what_the_features_show(readout, sizes):
    memory = make(readout, **sizes)
    arguments = sample(memory)
    features, state = memory(*arguments)
    belief, last = memory.belief(*arguments)
    assert belief.mean.shape == (4, 21, memory.readout.size)
    assert_close("state", state, last, SAME[F32])
    assert_close("features", features[..., 32:], belief.features(), KERNEL[F32])
    for part, expected in zip(memory.belief_in(features), belief, strict=True):
        assert_close("part", part, expected, 1e-5)
    with torch.no_grad():
        belief, _ = memory.belief(arguments[0][:, :1], arguments[1], arguments[2][:, :1])
    assert_close("first", features[:, :1, 32:], belief.features(), 1e-4)


@pytest.mark.parametrize("readout", (*READOUTS, "none"))
def test_the_summary_stands_before_the_belief(readout):
    memory = make(readout)
    x, state, reset = sample(memory)
    features, _ = memory(x, state, reset)
    h, _ = memory.core(x, state[:, : memory.core.state_size], reset)
    assert torch.equal(features[..., :32], h)
    sizes = {"moments": 4 * 16, "precision": 4 * 2, "learned": 4 * 16, "none": 0}
    assert features.shape[-1] == memory.feature_size == 32 + sizes[readout]


def test_a_memory_without_readout_has_no_belief():
    memory = make("none")
    with pytest.raises(ValueError, match="readout 'none' and keeps no belief"):
        memory.belief(*sample(memory))
    with pytest.raises(ValueError, match="readout 'none' and keeps no belief"):
        memory.belief_in(torch.zeros(1, 32))


def test_an_unknown_readout_is_named():
    with pytest.raises(ValueError, match="readout is 'mean'; expected 'moments'"):
        BeliefMemory(6, 32, readout="mean")


@pytest.mark.parametrize("readout", READOUTS)
def test_the_belief_reads_inputs_of_the_wrong_shape_as_an_error(readout):
    memory = make(readout)
    x, state, reset = sample(memory)
    with pytest.raises(ValueError, match="state has shape"):
        memory.belief(x, state[:, 1:], reset)


@pytest.mark.parametrize("steps", [1, 50])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("readout", READOUTS)
def test_beliefs_features_and_gradients_are_finite_at_the_extremes(readout, scale, steps):
    memory = make(readout)
    with torch.no_grad():
        memory.readout.projection.weight.mul_(30.0)
    x, state, reset = sample(memory, steps=steps)
    features, last = memory(scale * x, state, reset)
    (features.square().mean() + last.square().mean()).backward()
    gradients = [p.grad for p in memory.parameters() if p.grad is not None]
    assert all(z.isfinite().all() for z in (features, last, *gradients))
    belief, _ = memory.belief(scale * x, state, reset)
    assert (belief.variance > 0.0).all() and (belief.evidence > 0.0).all()
    assert features[..., -memory.readout.size :].abs().max() <= 1.0


def test_gradients_reach_every_parameter_of_the_readout():
    for readout in READOUTS:
        memory = make(readout)
        features, _ = memory(*sample(memory))
        features[..., 32:].square().sum().backward()
        for name, parameter in memory.readout.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), (readout, name)
