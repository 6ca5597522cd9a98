"""Targets, minibatches, schedules, divergence, checkpoints, and that it learns."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from safetensors.torch import load, save
from torch import Tensor

from doxastic.agents.encoders import EncoderConfig
from doxastic.agents.losses import estimate_advantages
from doxastic.agents.optimization import FlatAdam, TrainingDiverged, schedule
from doxastic.agents.policy import ActorCritic, PolicyConfig
from doxastic.agents.ppo import PPO, PPOConfig
from doxastic.envs.gymnasium import POMDPVectorEnv
from doxastic.envs.tasks.cartpole import CartPole
from doxastic.memory.baselines import GRUMemory

SMALL = PPOConfig(segment_steps=16, epochs=2, minibatches=2)


class Recall(gym.Env):
    """Shows a sign once; after three blank steps the action must repeat it for a reward of 1."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.time, self.sign = 0, int(self.np_random.integers(2))
        return np.array([2 * self.sign - 1, 0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.time += 1
        ends = self.time == 4
        observation = np.array([0, self.time == 3], np.float32)
        return observation, float(ends and action == self.sign), ends, False, {}


def make_ppo(
    env: gym.vector.VectorEnv | None = None,
    config: PPOConfig = SMALL,
    total_steps: int = 10_000,
    seed: int = 0,
) -> PPO:
    env = POMDPVectorEnv(CartPole(), 8) if env is None else env
    torch.manual_seed(0)
    policy = ActorCritic(
        env.single_observation_space,
        env.single_action_space,
        EncoderConfig(width=16),
        GRUMemory(16, 16),
        PolicyConfig(hidden_size=16),
    )
    return PPO(policy, env, config, total_steps, seed)


def weights(ppo: PPO) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in ppo.policy.state_dict().items()}


@pytest.mark.parametrize("normalize", [True, False])
def test_advantages_are_centred_and_scaled_where_that_is_asked_for(normalize: bool) -> None:
    ppo = make_ppo(config=replace(SMALL, normalize_advantage=normalize))
    rollout = ppo.collector.collect()
    advantage, _ = estimate_advantages(rollout, SMALL.discount, SMALL.gae_lambda)
    if normalize:
        advantage = (advantage - advantage.mean()) / advantage.std(correction=0)
    kept, _ = ppo._with_targets(rollout)
    torch.testing.assert_close(kept["advantage"].squeeze(-1), advantage)


@pytest.mark.parametrize("privileged", [False, True])
def test_the_value_loss_clips_around_what_the_head_gave_in_acting(privileged: bool) -> None:
    ppo = make_ppo(config=replace(SMALL, clip_value=True, privileged_critic=privileged))
    # The units change with the second update's targets: old values have to follow them.
    ppo.update()
    kept, _ = ppo._with_targets(ppo.collector.collect())
    features, _ = ppo.policy.features(kept["observation"], kept["state"], kept["reset"])
    value = ppo.policy.value_head(features)
    assert value.abs().min() > 0
    torch.testing.assert_close(kept["state_value"], value, rtol=1e-4, atol=1e-5)
    # Values that went towards their targets are held at the edge of the interval.
    with torch.no_grad():
        ppo.policy.value_head.bias.add_(1.0)
    target, free_error = kept["value_target"], (value + 1 - kept["value_target"]).square()
    error = torch.maximum(free_error, (value + SMALL.clip - target).square())
    assert (error > free_error).any()
    expected = SMALL.value_coefficient * error.mean()
    torch.testing.assert_close(ppo._loss(features, kept, 0.0).value, expected)


def test_minibatches_split_environments_and_never_time() -> None:
    ppo = make_ppo(config=replace(SMALL, minibatches=3))
    shapes, states = [], []
    memory_features = ppo.policy.memory_features

    def spy(observation: Tensor, state: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append(tuple(reset.shape))
        states.append(state)
        return memory_features(observation, state, reset)

    ppo.policy.memory_features = spy
    ppo.update()
    shapes.clear()
    states.clear()
    ppo.update()
    assert [time for _, time in shapes] == [16] * 6
    assert [number for number, _ in shapes] == [2, 3, 3] * 2
    first, second = torch.cat(states[:3]), torch.cat(states[3:])
    assert len(first.unique(dim=0)) == 8
    assert torch.equal(first.sort(0).values, second.sort(0).values)


@pytest.mark.parametrize("privileged", [False, True])
def test_parts_of_a_minibatch_descend_as_the_whole(
    privileged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, minibatches=1, epochs=1, privileged_critic=privileged)
    ends = []
    for part_steps, number in ((16 * 8, 1), (16 * 3, 3), (1, 8)):
        monkeypatch.setattr("doxastic.agents.ppo.PART_STEPS", part_steps)
        ppo = make_ppo(config=config)
        whole = ppo.collector.collect()
        shares = [share for _, share in ppo._parts(whole)]
        assert len(shares) == number and sum(shares) == pytest.approx(1)
        rows = ppo._step(ppo._with_targets(whole)[0])[0]
        gradients = [p.grad.clone() for p in ppo.policy.parameters()]
        critic = [] if ppo.critic is None else [p.grad.clone() for p in ppo.critic.parameters()]
        ends.append([torch.tensor(rows), *gradients, *critic])
    for other in ends[1:]:
        torch.testing.assert_close(ends[0], other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalize_value", [True, False])
def test_gru_learns_to_recall_the_first_observation(normalize_value: bool) -> None:
    env = SyncVectorEnv([Recall] * 16, autoreset_mode=AutoresetMode.SAME_STEP)
    config = PPOConfig(
        learning_rate=3e-3, segment_steps=16, warmup_updates=2, normalize_value=normalize_value
    )
    updates = 40
    ppo = make_ppo(env, config, total_steps=updates * 16 * 16)
    measured = [ppo.update() for _ in range(updates)]
    assert measured[0]["return_mean"] < 0.7
    assert measured[-1]["return_mean"] > 0.95


def test_every_update_measures_the_same_things() -> None:
    ppo = make_ppo(config=replace(SMALL, segment_steps=2))
    first = ppo.update()
    assert math.isnan(first["return_mean"]) and first["episodes"] == 0
    for _ in range(40):
        later = ppo.update()
    assert later.keys() == first.keys()
    assert later["steps"] == ppo.steps == 41 * 16 and later["update"] == 41
    assert later["return_mean"] == later["length_mean"] > 0 or later["episodes"] > 0
    assert all(math.isfinite(value) for value in later.values())


def test_schedules_warm_up_and_fall_to_zero() -> None:
    assert [schedule(u, 10, warmup=4) for u in (0, 1, 4, 9)] == [
        0.25,
        0.45,
        0.6,
        pytest.approx(0.1),
    ]
    assert [schedule(u, 10, warmup=2, anneal=False) for u in (0, 5, 20)] == [0.5, 1.0, 1.0]
    assert schedule(12, 10) == 0.0
    config = replace(SMALL, learning_rate=1e-3, warmup_updates=0)
    ppo = make_ppo(config=config, total_steps=4 * 8 * 16)
    rates = [ppo.update()["learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert ppo._entropy_coefficient == pytest.approx(0.01 / 4)


def test_a_memory_may_scale_the_learning_rate_of_its_parameters() -> None:
    policy = make_ppo().policy
    policy.memory.learning_rate_multipliers = {"rnn.bias*": 2.0}
    optimizer = FlatAdam(policy)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    for parameter in policy.parameters():
        parameter.grad.fill_(1.0)
    optimizer.step(1e-3, torch.ones(()), 1.0)
    # Adam's first step moves every parameter by the learning rate.
    for name, parameter in policy.named_parameters():
        moved = (before[name] - parameter).detach()
        expected = 2e-3 if "rnn.bias" in name else 1e-3
        torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=1e-3, atol=1e-6)


def test_flat_adam_steps_like_adam_over_separate_parameters() -> None:
    torch.manual_seed(0)
    one, other = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)) for _ in "ab")
    other.load_state_dict(one.state_dict())
    flat = FlatAdam(one)
    reference = torch.optim.Adam(other.parameters(), lr=1e-2, eps=1e-5)
    for step in range(5):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        flat.zero_grad()
        reference.zero_grad()
        one(x).square().sum().backward()
        other(x).square().sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        torch.testing.assert_close(flat.gradient_norm(), norm)
        flat.step(1e-2, flat.gradient_norm(), 0.5)
        reference.step()
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_small_target_divergence_stops_the_update_early() -> None:
    free = make_ppo(config=replace(SMALL, learning_rate=1e-2, warmup_updates=0))
    bound = make_ppo(config=replace(free.config, target_kl=1e-4))
    assert free.update()["minibatches"] == 4
    # Nothing diverges before the first step.
    assert 1 < bound.update()["minibatches"] < 4


def test_a_target_divergence_that_is_not_reached_lets_the_update_finish() -> None:
    measured = make_ppo(config=replace(SMALL, target_kl=0.1)).update()
    assert measured["approx_kl"] < 0.1 < measured["entropy"]
    assert measured["minibatches"] == 4


def test_values_stay_in_units_of_reward_when_their_scale_changes() -> None:
    ppo = make_ppo(config=replace(SMALL, learning_rate=1e-12))
    features = torch.randn(5, 16)
    before = ppo.policy.values(features)
    ppo.update()
    assert ppo.policy.value_scale != 1
    torch.testing.assert_close(ppo.policy.values(features), before, rtol=1e-4, atol=1e-5)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_take_it() -> None:
    ppo = make_ppo()
    ppo.update()
    before = weights(ppo)
    ppo.policy.action_head.linear.weight.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(TrainingDiverged, match=r"Update 2: grad_norm .*action_head.linear.weight"):
        ppo.update()
    learned = dict(ppo.policy.named_parameters())
    learned.pop("value_head.weight"), learned.pop("value_head.bias")
    assert all(torch.equal(parameter, before[name]) for name, parameter in learned.items())


def test_a_loss_that_is_not_finite_is_named() -> None:
    ppo = make_ppo()
    ppo.policy.value_head.register_forward_hook(lambda module, inputs, output: output * math.nan)
    with pytest.raises(TrainingDiverged, match=r"Update 1: loss_value, .*ppo.learning_rate"):
        ppo.update()


def test_values_that_are_not_finite_leave_the_statistics_alone() -> None:
    ppo = make_ppo()
    with torch.no_grad():
        ppo.policy.value_head.bias.fill_(math.nan)
    with pytest.raises(TrainingDiverged, match="Update 1: the value targets are not finite"):
        ppo.update()
    assert ppo.value_statistics.count == 0


@pytest.mark.parametrize("normalize", [False, True])
def test_a_restored_run_continues_bit_for_bit(normalize: bool) -> None:
    config = replace(SMALL, normalize_observation=normalize)
    ppo = make_ppo(config=config)
    for _ in range(3):
        ppo.update()
    tensors, data = ppo.checkpoint()
    tensors, data = load(save(tensors)), json.loads(json.dumps(data))
    expected = [ppo.update() for _ in range(2)]
    other = make_ppo(config=config, seed=7)
    other.update()
    other.restore(tensors, data)
    measured = [other.update() for _ in range(2)]
    for one, two in zip(expected, measured, strict=True):
        kept = [key for key in one if not key.startswith("seconds")]
        assert [one[key] for key in kept] == [two[key] for key in kept]
    assert all(torch.equal(value, weights(ppo)[key]) for key, value in weights(other).items())
    final, again = ppo.checkpoint()[0], other.checkpoint()[0]
    assert final.keys() == again.keys()
    assert all(torch.equal(final[key].nan_to_num(), again[key].nan_to_num()) for key in final)


def test_a_run_continued_with_longer_segments_keeps_its_place_in_the_schedules() -> None:
    ppo = make_ppo(total_steps=8 * 128)
    for _ in range(4):
        ppo.update()
    config = replace(SMALL, segment_steps=64, warmup_updates=0)
    other = make_ppo(config=config, total_steps=8 * 128)
    other.restore(*ppo.checkpoint())
    assert other.update()["learning_rate"] == pytest.approx(SMALL.learning_rate / 2)
    assert (other.steps, other.updates) == (8 * 128, 5)


def test_a_checkpoint_is_a_snapshot() -> None:
    ppo = make_ppo()
    ppo.update()
    tensors, _ = ppo.checkpoint()
    kept = {key: value.clone() for key, value in tensors.items()}
    ppo.update()
    assert all(torch.equal(tensors[key].nan_to_num(), kept[key].nan_to_num()) for key in kept)


def test_dict_observations_and_box_actions_train() -> None:
    class Reach(gym.Env):
        observation_space = gym.spaces.Dict(
            {"goal": gym.spaces.Box(-1, 1, (2,)), "phase": gym.spaces.Discrete(3)}
        )
        action_space = gym.spaces.Box(-1, 1, (2,))

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
            super().reset(seed=seed)
            self.time = 0
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            self.time += 1
            reward = -float(np.square(action).sum())
            return self.observation_space.sample(), reward, False, self.time == 5, {}

    env = SyncVectorEnv([Reach] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    ppo = make_ppo(env, replace(SMALL, normalize_observation=True, clip_value=True))
    for _ in range(2):
        measured = ppo.update()
    assert all(math.isfinite(value) for value in measured.values())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("segment_steps", 0),
        ("epochs", 0),
        ("clip", 0.0),
        ("discount", 1.1),
        ("gae_lambda", -0.1),
        ("target_kl", 0.0),
        ("learning_rate", math.nan),
    ],
)
def test_settings_outside_their_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"ppo\.{field}"):
        PPOConfig(**{field: value})


def test_a_run_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="total_steps is 0"):
        make_ppo(total_steps=0)


def test_fewer_environments_than_minibatches_are_refused() -> None:
    with pytest.raises(ValueError, match="8 environments and 9 minibatches"):
        make_ppo(config=replace(SMALL, minibatches=9))
