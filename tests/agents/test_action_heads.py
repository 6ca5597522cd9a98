import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from doxastic.agents.action_heads import BetaHead, NormalHead, build_action_head

SPACES = {
    "discrete": spaces.Discrete(4, start=3),
    "multi-discrete": spaces.MultiDiscrete([2, 5, 3], start=[0, -1, 2]),
    "multi-discrete matrix": spaces.MultiDiscrete([[2, 3], [4, 2]]),
    "multi-binary": spaces.MultiBinary(3),
    "bounded box": spaces.Box(np.array([-2, 0], "f4"), np.array([2, 0.1], "f4")),
    "bounded matrix": spaces.Box(-1, 1, (2, 2), np.float64),
    "unbounded box": spaces.Box(-np.inf, np.inf, (2,)),
    "half-bounded box": spaces.Box(0, np.inf, (2,)),
}
FEATURES = 8


@pytest.fixture(params=SPACES)
def head(request):
    torch.manual_seed(0)
    head = build_action_head(SPACES[request.param], FEATURES)
    # Far from the nearly uniform start, so that the parameters matter.
    torch.nn.init.normal_(head.linear.weight)
    return head


def parameters_of(head, *leading):
    return head(torch.randn(*leading, FEATURES, generator=torch.Generator().manual_seed(1)))


@torch.no_grad()
@pytest.mark.parametrize("deterministic", [False, True])
def test_quick_log_probs_equal_those_of_the_distribution(head, deterministic):
    parameters = parameters_of(head, 7, 5)
    generator = torch.Generator().manual_seed(2)
    action, log_prob = head.sample(parameters, generator, deterministic)
    assert action.shape == (7, 5, *head.action_shape)
    assert action.dtype == head.action_dtype
    expected = head.distribution(parameters).log_prob(action)
    torch.testing.assert_close(log_prob, expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_the_deterministic_action_is_that_of_the_distribution(head):
    parameters = parameters_of(head, 9)
    action, _ = head.sample(parameters, deterministic=True)
    torch.testing.assert_close(action, head.distribution(parameters).deterministic_sample)


@torch.no_grad()
def test_quick_samples_follow_the_distribution(head):
    parameters = {k: v.expand(20000, *v.shape[1:]) for k, v in parameters_of(head, 1).items()}
    distribution = head.distribution(parameters)
    generator = torch.Generator().manual_seed(3)
    _, log_prob = head.sample(parameters, generator)
    # The mean negative log-probability is the entropy only under the distribution itself.
    assert -log_prob.mean() == pytest.approx(distribution.entropy()[0].item(), abs=0.05)


@torch.no_grad()
def test_the_generator_decides_the_actions(head):
    parameters = parameters_of(head, 50)
    one, two = (head.sample(parameters, torch.Generator().manual_seed(4))[0] for _ in range(2))
    torch.testing.assert_close(one, two)
    state = torch.get_rng_state()
    other, _ = head.sample(parameters, torch.Generator().manual_seed(5))
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_environment_actions_are_in_the_space(head):
    action, _ = head.sample(parameters_of(head, 200), torch.Generator().manual_seed(6))
    array = head.to_env(action)
    assert array in batch_space(head.space, 200)
    assert array.dtype == head.space.dtype


def test_log_probs_are_finite_at_the_bounds():
    head = build_action_head(SPACES["bounded box"], FEATURES)
    bounds = torch.as_tensor(np.stack([head.space.low, head.space.high]))
    log_prob = head.distribution(parameters_of(head, 2)).log_prob(bounds)
    assert log_prob.isfinite().all()
    log_prob.sum().backward()
    assert head.linear.weight.grad.isfinite().all()


def test_extreme_features_give_finite_beta_actions():
    head = build_action_head(SPACES["bounded box"], FEATURES)
    for scale in (1e4, -1e4):
        with torch.no_grad():
            head.linear.bias.fill_(scale)
            action, log_prob = head.sample(parameters_of(head, 3), deterministic=True)
        assert action.isfinite().all() and log_prob.isfinite().all()


@pytest.mark.parametrize("name", ["discrete", "multi-discrete", "multi-binary"])
def test_a_new_policy_is_nearly_uniform(name):
    torch.manual_seed(0)
    head = build_action_head(SPACES[name], FEATURES)
    space = SPACES[name]
    count = {"discrete": 4, "multi-discrete": 30, "multi-binary": 8}[name]
    entropy = head.distribution(parameters_of(head, 10)).entropy()
    torch.testing.assert_close(entropy, torch.full((10,), np.log(count)).float(), atol=1e-2, rtol=0)
    assert space is head.space


def test_boxes_are_told_apart_by_their_bounds():
    assert isinstance(build_action_head(SPACES["bounded box"], 4), BetaHead)
    assert isinstance(build_action_head(SPACES["unbounded box"], 4), NormalHead)
    assert isinstance(build_action_head(SPACES["half-bounded box"], 4), NormalHead)
    widest = spaces.Box(-np.finfo(np.float32).max, np.finfo(np.float32).max, (2,))
    assert isinstance(build_action_head(widest, 4), NormalHead)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Dict({"a": spaces.Discrete(2)}),
        spaces.Box(0, 255, (2,), np.uint8),
        spaces.Box(np.zeros(2, "f4"), np.array([1, 0], "f4")),
    ],
    ids=lambda space: str(space),
)
def test_a_space_that_cannot_be_acted_in_is_named_with_the_remedy(space):
    with pytest.raises(ValueError, match="cannot be acted in; supported are Discrete") as error:
        build_action_head(space, 4)
    assert str(space) in str(error.value)
    assert "Wrap the environment" in str(error.value)
