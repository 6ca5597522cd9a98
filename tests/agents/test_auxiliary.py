"""Auxiliary likelihoods: their numbers, what they count, what they leave alone, and calibration."""

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
from scipy.stats import spearmanr
from tensordict import TensorDict
from torch import Tensor

from doxastic.agents.auxiliary import (
    MINIMUM_VARIANCE,
    NextObservationLikelihood,
    PrivilegedLikelihood,
    build_auxiliary,
)
from doxastic.agents.collector import Collector
from doxastic.agents.config import AuxiliaryConfig, EncoderConfig, PolicyConfig, PPOConfig
from doxastic.agents.optimization import TrainingDiverged
from doxastic.agents.policy import ActorCritic
from doxastic.agents.ppo import PPO
from doxastic.envs import EnvConfig, make_vector_env
from doxastic.envs.gymnasium import POMDPVectorEnv
from doxastic.envs.references.linear_gaussian_filter import LinearGaussianFilter
from doxastic.envs.tasks.cartpole import CartPole
from doxastic.envs.tasks.linear_gaussian import LinearGaussian
from doxastic.envs.tasks.sequential_test import SequentialTest
from doxastic.envs.tasks.tiger import Tiger
from doxastic.memory.build import MemoryConfig, build_memory

SMALL = PPOConfig(segment_steps=16, epochs=2, minibatches=2)
MEMORY = MemoryConfig(width=16, head_size=8, belief_size=4)
PRIVILEGED = AuxiliaryConfig(kind="privileged")
NEXT = AuxiliaryConfig(kind="next_observation")
KINDS = pytest.mark.parametrize("auxiliary", [PRIVILEGED, NEXT], ids=lambda config: config.kind)
EVERY_MEMORY = pytest.mark.parametrize(
    "memory",
    [MEMORY, replace(MEMORY, readout="precision"), replace(MEMORY, readout="learned"),
     replace(MEMORY, readout="none"), replace(MEMORY, kind="gru")],
    ids=lambda config: f"{config.kind}, {config.readout}",
)  # fmt: skip


def short_test() -> POMDPVectorEnv:
    return POMDPVectorEnv(SequentialTest(variant="hard", horizon=6), 8)


def make_policy(env: gym.vector.VectorEnv, memory: MemoryConfig = MEMORY) -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(
        env.single_observation_space,
        env.single_action_space,
        EncoderConfig(width=16),
        build_memory(memory, 16),
        PolicyConfig(hidden_size=16),
    )


def make_ppo(
    auxiliary: AuxiliaryConfig | None,
    env: gym.vector.VectorEnv | None = None,
    memory: MemoryConfig = MEMORY,
    seed: int = 0,
    config: PPOConfig = SMALL,
    total_steps: int = 10_000,
) -> PPO:
    env = short_test() if env is None else env
    return PPO(make_policy(env, memory), env, config, total_steps, seed, auxiliary=auxiliary)


def weights(ppo: PPO) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in ppo.policy.state_dict().items()}


def test_the_hidden_state_is_a_linear_map_of_mean_and_uncertainty() -> None:
    memory = build_memory(replace(MEMORY, belief_size=2, readout="learned"), 16)
    likelihood = PrivilegedLikelihood(memory, ("x",), 0.1)
    with torch.no_grad():
        likelihood.mean.weight.copy_(torch.tensor([[2.0, -1.0]]))
        likelihood.mean.bias.fill_(0.5)
        likelihood.rest.fill_(math.log(math.e - 1.0))
    # h, then means 1 and 3, half log variances of .25 and 4, half log1p evidence, ratios.
    features = torch.zeros(1, 1, 24)
    features[..., 16:20] = torch.tensor([1.0, 3.0, math.log(0.5), math.log(2.0)])
    mean, variance = likelihood.predict(features)
    expected = 4 * 0.25 + 1 * 4.0 + 1.0 + MINIMUM_VARIANCE
    assert mean.item() == pytest.approx(2 * 1 - 3 + 0.5)
    assert variance.item() == pytest.approx(expected)
    loss = likelihood.loss(features, {"auxiliary_target": torch.tensor([[[1.0]]])})
    assert loss.item() == pytest.approx(0.5 * (math.log(expected) + 1.5**2 / expected))


def test_hidden_states_are_scaled_and_noise_counts_by_factors() -> None:
    likelihood = build_auxiliary(PRIVILEGED, make_policy(short_test()), short_test(), 0)
    hidden = torch.tensor([[[1.0, 0.25], [1.0, 4.0]], [[-1.0, 0.25], [-1.0, 4.0]]])
    target = likelihood.targets(TensorDict({"hidden": hidden}, [2, 2]))["auxiliary_target"]
    torch.testing.assert_close(target, hidden.clone().sub_(torch.tensor([0.0, 2.125])).sign())
    assert likelihood.scale.statistics.mean[1] == pytest.approx(math.log(0.35 * 4.1) / 2, abs=1e-6)


def test_the_collector_records_the_hidden_state_of_every_observation() -> None:
    env, other = short_test(), short_test()
    collector = Collector(make_policy(env), env, 30, seed=4, with_hidden=True)
    rollout = collector.collect()
    other.reset(seed=4)
    assert rollout["reset"].sum() > 8
    for step in range(30):
        expected = torch.from_numpy(other.hidden()).float()
        assert torch.equal(rollout["hidden"][:, step], expected)
        other.step(rollout["action"][:, step].numpy())


class Counting(gym.Env):
    """Shows 1, 2, 3, and 50 as the final observation."""

    observation_space = gym.spaces.Box(-100, 100, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, terminates: bool = False) -> None:
        self.terminates = terminates

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.time = 1
        return np.array([1.0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.time += 1
        ends = self.time == 4
        seen = np.array([50.0 if ends else self.time], np.float32)
        return seen, 0.0, ends and self.terminates, ends and not self.terminates, {}


def counting(terminates: bool) -> SyncVectorEnv:
    makers = [lambda: Counting(terminates)] * 2
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.mark.parametrize("terminates", [False, True])
def test_what_follows_is_counted_within_episodes_and_at_their_true_truncation(
    terminates: bool,
) -> None:
    env = counting(terminates)
    policy = make_policy(env)
    rollout = Collector(policy, env, 5, with_next_observation=True).collect()
    likelihood = build_auxiliary(NEXT, policy, env, 0)
    targets = likelihood.targets(rollout)
    assert rollout["observation"][0].flatten().tolist() == [1, 2, 3, 1, 2]
    within = [True, True, not terminates, True, True]
    weight = targets["auxiliary_weight"][0]
    assert (weight > 0).tolist() == within and weight.mean().item() == pytest.approx(1)
    seen = [x for x, counted in zip([2, 3, 50, 2, 3], within, strict=True) if counted]
    assert likelihood.statistics.mean.item() == pytest.approx(np.mean(seen))
    scaled = (np.array(seen) - np.mean(seen)) / np.std(seen)
    counted = targets["auxiliary_target"][0, torch.tensor(within), 0]
    np.testing.assert_allclose(counted, scaled, rtol=1e-5)


def next_case(within: Tensor) -> tuple[NextObservationLikelihood, TensorDict, Tensor]:
    env = short_test()
    policy = make_policy(env)
    likelihood = build_auxiliary(NEXT, policy, env, 0)
    with torch.no_grad():
        likelihood.output.weight.normal_()
    entries = {
        "action": torch.randint(3, within.shape),
        "auxiliary_target": torch.randn(*within.shape, 1),
        "auxiliary_weight": within / within.float().mean(),
    }
    features = torch.randn(*within.shape, policy.memory.feature_size, requires_grad=True)
    return likelihood, TensorDict(entries, within.shape), features


def test_a_step_that_is_not_counted_has_no_gradient_and_no_weight() -> None:
    within = torch.tensor([[True, False, True], [False, True, True]])
    likelihood, minibatch, features = next_case(within)
    loss = likelihood.loss(features, minibatch)
    (gradient,) = torch.autograd.grad(loss, [features])
    assert torch.equal(gradient.abs().sum(-1) > 0, within)
    singles = [
        likelihood.loss(features[row : row + 1, [t]], minibatch[row : row + 1, t : t + 1])
        for row, t in within.nonzero().tolist()
    ]
    torch.testing.assert_close(loss, torch.stack(singles).sum() / within.numel())


def test_nothing_within_an_episode_weighs_nothing() -> None:
    env = counting(terminates=True)
    policy = make_policy(env)
    likelihood = build_auxiliary(NEXT, policy, env, 0)
    rollout = Collector(policy, env, 5, with_next_observation=True).collect()
    rollout["terminated"].fill_(True)
    assert not likelihood.targets(rollout)["auxiliary_weight"].any()


def test_auto_is_privileged_where_the_hidden_state_is_told() -> None:
    env = short_test()
    policy = make_policy(env)
    chosen, named = (
        build_auxiliary(AuxiliaryConfig(kind=kind, coefficient=0.7), policy, env, 3)
        for kind in ("auto", "privileged")
    )
    assert type(chosen) is type(named) and chosen.coefficient == named.coefficient
    torch.testing.assert_close(chosen.state_dict(), named.state_dict())


def test_the_next_observation_depends_on_the_action() -> None:
    likelihood, minibatch, features = next_case(torch.ones(2, 3, dtype=torch.bool))
    other = minibatch.clone()
    other["action"] = (minibatch["action"] + 1) % 3
    assert likelihood.loss(features, minibatch) != likelihood.loss(features, other)


def test_symbols_are_the_same_in_a_vector_and_by_themselves() -> None:
    found = []
    for previous_action in (True, False):
        env = POMDPVectorEnv(Tiger(horizon=7), 4, previous_action=previous_action)
        policy = make_policy(env)
        collector = Collector(policy, env, 12, with_next_observation=True)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.zero_()
        likelihood = build_auxiliary(NEXT, policy, env, 0)
        targets = likelihood.targets(collector.collect())
        assert targets["auxiliary_target"].shape == (4, 12, 1)
        found.append(targets["auxiliary_target"])
    assert torch.equal(*found) and found[0].unique().tolist() == [0, 1, 2]


def test_the_loss_of_symbols_is_their_cross_entropy() -> None:
    env = POMDPVectorEnv(Tiger(), 4)
    policy = make_policy(env)
    likelihood = build_auxiliary(NEXT, policy, env, 0)
    with torch.no_grad():
        likelihood.output.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    entries = {
        "action": torch.zeros(1, 2, dtype=torch.int64),
        "auxiliary_target": torch.tensor([[[0], [2]]]),
        "auxiliary_weight": torch.ones(1, 2),
    }
    loss = likelihood.loss(torch.randn(1, 2, policy.memory.feature_size), entries)
    assert loss.item() == pytest.approx(-(math.log(0.5) + math.log(0.2)) / 2)


@KINDS
@EVERY_MEMORY
def test_every_memory_learns_beside_every_kind(
    auxiliary: AuxiliaryConfig, memory: MemoryConfig
) -> None:
    ppo = make_ppo(auxiliary, memory=memory)
    before = {key: value.clone() for key, value in ppo.auxiliary.named_parameters()}
    measured = [ppo.update() for _ in range(2)]
    assert all(math.isfinite(row["loss_auxiliary"]) for row in measured)
    moved = {key: not torch.equal(value, before[key])
             for key, value in ppo.auxiliary.named_parameters()}  # fmt: skip
    assert all(moved.values()), moved
    assert not {id(p) for p in ppo.auxiliary.parameters()} & {
        id(p) for p in ppo.policy.parameters()
    }


@KINDS
def test_the_gradient_goes_into_the_memory(auxiliary: AuxiliaryConfig) -> None:
    ppo = make_ppo(auxiliary)
    with torch.no_grad():
        for parameter in (*ppo.policy.parameters(), *ppo.auxiliary.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    rollout = ppo.collector.collect()
    minibatch = rollout.update(ppo.auxiliary.targets(rollout))
    sequence = (minibatch[key] for key in ("observation", "state", "reset"))
    features, _ = ppo.policy.memory_features(*sequence)
    ppo.optimizer.zero_grad()
    ppo.auxiliary.loss(features, minibatch).backward()
    reached = {name for name, p in ppo.policy.named_parameters() if p.grad.abs().sum() > 0}
    assert "encoder.hidden.weight" in reached
    assert {f"memory.readout.{name}" for name in ("projection.weight", "prior")} <= reached
    assert "memory.core.blocks.0.att.value.weight" in reached
    assert not any(name.startswith(("policy_body", "value_head")) for name in reached)


@KINDS
def test_a_weight_of_zero_changes_nothing(auxiliary: AuxiliaryConfig) -> None:
    plain, weightless = make_ppo(None), make_ppo(replace(auxiliary, coefficient=0.0))
    rows = [[ppo.update() for _ in range(2)] for ppo in (plain, weightless)]
    assert rows[0][0].keys() == rows[1][0].keys() - {"loss_auxiliary"}
    after = weights(weightless)
    assert all(torch.equal(value, after[key]) for key, value in weights(plain).items())


@KINDS
def test_a_restored_run_continues_bit_for_bit(auxiliary: AuxiliaryConfig) -> None:
    ppo = make_ppo(auxiliary)
    for _ in range(2):
        ppo.update()
    tensors, data = ppo.checkpoint()
    tensors, data = load(save(tensors)), json.loads(json.dumps(data))
    expected = [ppo.update() for _ in range(2)]
    other = make_ppo(auxiliary, seed=7)
    other.update()
    other.restore(tensors, data)
    for one in expected:
        two = other.update()
        kept = [key for key in one if not key.startswith("seconds")]
        np.testing.assert_array_equal([one[k] for k in kept], [two[k] for k in kept])
    final, again = ppo.checkpoint()[0], other.checkpoint()[0]
    assert final.keys() == again.keys()
    assert any(key.startswith("auxiliary_optimizer/") for key in final)
    assert all(torch.equal(final[key].nan_to_num(), again[key].nan_to_num()) for key in final)


@KINDS
def test_a_likelihood_that_is_not_finite_is_named(auxiliary: AuxiliaryConfig) -> None:
    ppo = make_ppo(auxiliary)
    with torch.no_grad():
        next(ppo.auxiliary.parameters()).fill_(math.nan)
    with pytest.raises(TrainingDiverged, match=r"loss_auxiliary \(gradients of"):
        ppo.update()


def test_an_environment_that_hides_its_state_is_refused() -> None:
    env = counting(False)
    assert build_auxiliary(AuxiliaryConfig(kind="auto"), make_policy(env), env, 0) is None
    with pytest.raises(ValueError, match="does not tell its hidden state; expected a task of dox"):
        make_ppo(PRIVILEGED, env)


def test_observations_that_cannot_be_predicted_are_refused() -> None:
    class Picture(Counting):
        observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)

        def reset(self, **_: Any) -> tuple[Any, dict]:
            return self.observation_space.sample(), {}

    env = SyncVectorEnv([Picture] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(ValueError, match="next_observation predicts vectors and symbols"):
        make_ppo(NEXT, env)


@pytest.mark.parametrize("env_id", ["Acrobot-v1", "popgym-RepeatPreviousEasy-v0"])
def test_outside_environments_are_predicted_without_the_previous_action(env_id: str) -> None:
    if env_id.startswith("popgym"):
        pytest.importorskip("popgym")
    env = make_vector_env(EnvConfig(id=env_id, num_envs=4))
    ppo = make_ppo(NEXT, env)
    size = 2 * 6 if env_id == "Acrobot-v1" else 4
    assert ppo.auxiliary.output.out_features == size
    assert math.isfinite(ppo.update()["loss_auxiliary"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("kind", "supervised"), ("coefficient", -0.1), ("coefficient", math.inf)],
)
def test_settings_outside_their_range_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"auxiliary\.{field} is {value!r}"):
        AuxiliaryConfig(**{field: value})


def test_a_normalised_run_predicts_what_the_environment_showed() -> None:
    config = replace(SMALL, normalize_observation=True)
    ppo = make_ppo(NEXT, POMDPVectorEnv(CartPole(), 8), config=config)
    assert all(math.isfinite(ppo.update()["loss_auxiliary"]) for _ in range(2))


@pytest.mark.slow
def test_privileged_targets_make_the_variance_that_of_the_exact_posterior() -> None:
    one = ((1.0,),)
    # A constant number behind noise of unknown level; what is done has no effect.
    task = LinearGaussian(
        noise=(0.3, 1.0, 3.0), dynamics=one, control=((0.0,),), disturbance=((0.0,),),
        observation=one, state_cost=one, action_cost=one, start=one, horizon=16,
    )  # fmt: skip
    config = PPOConfig(segment_steps=32, learning_rate=5e-3)
    correlations = []
    for coefficient in (0.0, 1.0):
        auxiliary = AuxiliaryConfig(kind="privileged", coefficient=coefficient)
        env = POMDPVectorEnv(task, 32)
        ppo = make_ppo(auxiliary, env, config=config, total_steps=60 * 32 * 32)
        for _ in range(60):
            ppo.update()
        rollout = ppo.collector.collect()
        observation, reset = (rollout[key][:, :16] for key in ("observation", "reset"))
        assert reset[:, 0].all()
        with torch.no_grad():
            features, _ = ppo.policy.memory_features(observation, rollout["state"], reset)
            _, variance = ppo.auxiliary.predict(features)
            own = ppo.policy.memory.belief_in(features).variance.log().mean(-1)
        seen = observation[..., :1].double().numpy()
        exact = LinearGaussianFilter(task).posterior(seen, np.zeros((32, 15, 1))).variance
        found = variance[..., 0] if coefficient else own
        correlations.append(spearmanr(found.flatten(), exact.flatten()).statistic)
    without, trained = correlations
    assert trained > 0.85
    assert trained > without + 0.1
