import time

import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torchrl.objectives import ClipPPOLoss

from doxastic.agents.encoders import EncoderConfig
from doxastic.agents.policy import ActorCritic, PolicyConfig
from doxastic.memory.base import Memory
from doxastic.memory.baselines import GRUMemory

OBSERVATIONS = spaces.Box(-1, 1, (5,))
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(3),
    "bounded box": spaces.Box(-2, 2, (2,)),
    "unbounded box": spaces.Box(-float("inf"), float("inf"), (2,)),
}


class PassThrough(Memory):
    """No state and no work, to time everything else."""

    def __init__(self, size):
        super().__init__()
        self.input_size = self.feature_size = size
        self.state_size = 0

    def forward(self, x, state, reset):
        return x, state


def make_policy(action_space=ACTIONS["discrete"], memory=None, **config):
    torch.manual_seed(0)
    encoder_config = EncoderConfig(width=16)
    memory = memory or GRUMemory(16, 12)
    return ActorCritic(OBSERVATIONS, action_space, encoder_config, memory, PolicyConfig(**config))


def make_sequence(policy, batch=4, time=9):
    generator = torch.Generator().manual_seed(1)
    observation = torch.randn(batch, time, 5, generator=generator)
    reset = torch.rand(batch, time, generator=generator) < 0.3
    state = torch.randn(batch, policy.memory.state_size, generator=generator)
    return observation, state, reset


@pytest.mark.parametrize("name", ACTIONS)
@torch.no_grad()
def test_acting_step_by_step_equals_the_sequence(name):
    policy = make_policy(ACTIONS[name], hidden_layers=2)
    observation, state, reset = make_sequence(policy)
    features, last = policy.features(observation, state, reset)
    generator = torch.Generator().manual_seed(2)
    for t in range(observation.shape[1]):
        action, log_prob, value, next_state = policy.act(
            observation[:, t], state, reset[:, t], generator=generator
        )
        distribution = policy.action_head.distribution(policy.action_head(features[:, t]))
        torch.testing.assert_close(log_prob, distribution.log_prob(action), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(value, policy.values(features[:, t]))
        torch.testing.assert_close(value, policy.value(observation[:, t], state, reset[:, t]))
        state = next_state
    torch.testing.assert_close(state, last)


def test_acting_needs_no_gradient_and_values_leave_the_state_alone():
    policy = make_policy()
    observation, state, reset = make_sequence(policy)
    before = state.clone()
    outputs = policy.act(observation[:, 0], state, reset[:, 0])
    assert not any(output.requires_grad for output in outputs)
    policy.value(observation[:, 0], state, reset[:, 0])
    torch.testing.assert_close(state, before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ACTIONS)
def test_the_heads_serve_the_clipped_ppo_loss_and_its_gradient_reaches_the_encoder(name):
    policy = make_policy(ACTIONS[name])
    observation, state, reset = make_sequence(policy)
    features, _ = policy.features(observation, state, reset)
    with torch.no_grad():
        action, log_prob = policy.action_head.sample(
            policy.action_head(features), torch.Generator().manual_seed(3)
        )
    loss = ClipPPOLoss(policy.actor_network, policy.critic_network, normalize_advantage=False)
    loss.set_keys(sample_log_prob="log_prob")
    losses = loss(
        TensorDict(
            {
                "features": features,
                "action": action,
                "log_prob": log_prob,
                "advantage": torch.randn(4, 9, 1),
                "value_target": torch.randn(4, 9, 1),
            },
            [4],
        )
    )
    assert losses["max_ratio"].item() == pytest.approx(1, abs=1e-4)
    (losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]).backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert policy.encoder.hidden.weight.grad.abs().sum() > 0


def test_the_heads_share_their_parameters_with_the_policy():
    policy = make_policy()
    td = TensorDict({"features": torch.randn(6, policy.feature_size)}, [6])
    with torch.no_grad():
        policy.value_head.bias.fill_(7.0)
        policy.actor_network(td)
        policy.critic_network(td)
    torch.testing.assert_close(td["state_value"], policy.value_head(td["features"]))
    logits = policy.action_head(td["features"])["logits"]
    expected = logits.log_softmax(-1).gather(-1, td["action"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(td["log_prob"], expected)


def test_changing_the_units_of_the_value_head_keeps_the_values():
    policy = make_policy()
    features = torch.randn(10, policy.feature_size)
    before, head = policy.values(features), policy.value_head(features)
    policy.normalize_value_head(mean=50.0, std=20.0)
    torch.testing.assert_close(policy.values(features), before, atol=1e-4, rtol=0)
    torch.testing.assert_close(policy.value_head(features), (head - 50) / 20)
    policy.normalize_value_head(mean=torch.tensor(-3.0), std=torch.tensor(0.5))
    torch.testing.assert_close(policy.values(features), before, atol=1e-4, rtol=0)
    torch.testing.assert_close(policy.value_head(features), (head + 3) / 0.5, atol=1e-3, rtol=0)


def test_the_units_of_the_value_head_are_saved():
    policy, other = make_policy(), make_policy()
    policy.normalize_value_head(mean=5.0, std=2.0)
    other.load_state_dict(policy.state_dict())
    features = torch.randn(10, policy.feature_size)
    torch.testing.assert_close(other.values(features), policy.values(features))


def test_a_memory_of_another_width_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="width 8; expected the encoder's width, 16"):
        make_policy(memory=GRUMemory(8, 12))


@pytest.mark.parametrize("values", [{"hidden_size": 0}, {"hidden_layers": 0}])
def test_impossible_sizes_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        PolicyConfig(**values)


@pytest.mark.slow
def test_acting_costs_little_more_than_its_dispatch():
    policy = ActorCritic(
        OBSERVATIONS, ACTIONS["discrete"], EncoderConfig(), PassThrough(64), PolicyConfig()
    )
    arguments = torch.randn(16, 5), policy.initial_state(16), torch.zeros(16, dtype=torch.bool)
    generator = torch.Generator()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    durations = []
    for _ in range(2000):
        start = time.perf_counter()
        policy.act(*arguments, generator=generator)
        durations.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    assert sorted(durations)[len(durations) // 2] < 240e-6
