"""The privileged critic: what it sees, what it leaves alone, and that it explains the returns."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from safetensors.torch import load, save
from torch import Tensor

from doxastic.agents.config import EncoderConfig, PolicyConfig, PPOConfig
from doxastic.agents.critic import PrivilegedCritic
from doxastic.agents.optimization import TrainingDiverged
from doxastic.agents.policy import ActorCritic
from doxastic.agents.ppo import PPO
from doxastic.envs.gymnasium import POMDPVectorEnv
from doxastic.envs.tasks.cartpole import CartPole
from doxastic.envs.tasks.sequential_test import SequentialTest
from doxastic.memory.build import MemoryConfig, build_memory

CONFIG = PPOConfig(segment_steps=16, epochs=2, minibatches=2, privileged_critic=True, discount=1.0)


def make_ppo(env: Any = None, config: PPOConfig = CONFIG, envs: int = 8, seed: int = 0) -> PPO:
    env = env or POMDPVectorEnv(SequentialTest(variant="hard", horizon=6), envs)
    torch.manual_seed(0)
    policy = ActorCritic(
        env.single_observation_space,
        env.single_action_space,
        EncoderConfig(width=16),
        build_memory(MemoryConfig(width=16, head_size=8, belief_size=4), 16),
        PolicyConfig(hidden_size=16),
    )
    return PPO(policy, env, config, 100_000, seed)


def weights(ppo: PPO) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in ppo.policy.state_dict().items()}


def test_no_gradient_of_the_critic_reaches_the_memory() -> None:
    critic, features = PrivilegedCritic(5, ("sign", "noise")), torch.randn(3, 4, 5)
    features.requires_grad_()
    critic.loss(features, torch.randn(3, 4, 2), torch.randn(3, 4, 1)).backward()
    assert features.grad is None
    assert all(parameter.grad is not None for parameter in critic.parameters())


def test_the_value_depends_on_what_is_hidden() -> None:
    critic, features = PrivilegedCritic(5, ("sign", "noise")), torch.randn(3, 4, 5)
    one, other = (critic(features, torch.full((3, 4, 2), level)) for level in (0.5, 1.0))
    assert not torch.isclose(one, other).any()


def test_advantages_come_from_the_critic_and_ends_from_the_policy() -> None:
    # Episodes of the cart-pole that are cut at 10 steps: truncations within the segment.
    ppo = make_ppo(POMDPVectorEnv(CartPole(horizon=10), 8))
    assert ppo.critic is not None
    rollout = ppo.collector.collect()
    plain = rollout.clone()
    privileged = ppo._privileged(rollout, ppo.critic)
    value, following = privileged["value"], privileged["next_value"]
    assert not torch.isclose(value, plain["value"]).any()
    own = plain["truncated"].clone()
    own[:, -1] = True
    assert plain["truncated"].any() and torch.equal(following[own], plain["next_value"][own])
    inside = ~own & ~plain["terminated"]
    inside[:, -1] = False
    torch.testing.assert_close(following[:, :-1][inside[:, :-1]], value[:, 1:][inside[:, :-1]])
    assert not following[plain["terminated"]].any()


def test_a_change_of_units_keeps_the_values_of_both_critics() -> None:
    ppo = make_ppo()
    assert ppo.critic is not None
    ppo.update()
    rollout = ppo.collector.collect()
    before = ppo._privileged(rollout.clone(), ppo.critic)["value"]
    ppo._change_units(torch.randn(8, 16) * 5.0 + 3.0)
    after = ppo._privileged(rollout.clone(), ppo.critic)["value"]
    # The statistics of the hidden states went on by the same rollout.
    torch.testing.assert_close(after, before, atol=2e-2, rtol=2e-2)
    assert ppo.policy.value_scale.item() > 2.0


def test_it_explains_returns_that_the_memory_cannot() -> None:
    explained = {}
    for privileged in (False, True):
        config = replace(CONFIG, privileged_critic=privileged, learning_rate=3e-3, segment_steps=32)
        ppo = make_ppo(config=config, envs=64)
        explained[privileged] = [ppo.update()["explained_variance"] for _ in range(25)][-1]
    assert explained[True] > explained[False] + 0.2


def test_all_else_is_drawn_as_without_it() -> None:
    with_it, without = make_ppo(), make_ppo(config=replace(CONFIG, privileged_critic=False))
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(with_it).values(), weights(without).values(), strict=True)
    )
    one, other = with_it.collector.collect(), without.collector.collect()
    assert torch.equal(one["action"], other["action"])
    assert torch.equal(one["value"], other["value"])


def test_a_restored_run_continues_bit_for_bit() -> None:
    whole = make_ppo()
    whole.update()
    tensors, data = whole.checkpoint()
    saved = save({name: tensor.contiguous() for name, tensor in tensors.items()}), json.dumps(data)
    measured = [whole.update() for _ in range(2)]
    resumed = make_ppo(seed=1)
    resumed.restore(load(saved[0]), json.loads(saved[1]))
    again = [resumed.update() for _ in range(2)]
    for name in ("loss_policy", "loss_value", "explained_variance", "return_mean"):
        assert [row[name] for row in measured] == [row[name] for row in again], name
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True)
    )


def test_a_critic_that_is_not_finite_stops_the_run_and_is_named() -> None:
    ppo = make_ppo()
    assert ppo.critic is not None
    with torch.no_grad():
        ppo.critic.body[0].weight[0] = float("inf")
    with pytest.raises(TrainingDiverged, match="Update 1: "):
        ppo.update()


def test_an_environment_that_hides_its_state_is_refused_with_the_remedy() -> None:
    env = SyncVectorEnv(
        [lambda: gym.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    with pytest.raises(ValueError, match=r"does not tell its hidden state.*privileged_critic"):
        make_ppo(env)
