"""Rollouts: what is stored, how ends are valued, and what happens when environments fail."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from doxastic.agents.collector import Collector, EnvironmentFailure
from doxastic.agents.encoders import EncoderConfig
from doxastic.agents.normalization import ObservationNormalizer
from doxastic.agents.policy import ActorCritic, PolicyConfig
from doxastic.envs.gymnasium import POMDPVectorEnv
from doxastic.envs.tasks.cartpole import CartPole
from doxastic.envs.wrappers import VectorObservationNoise
from doxastic.memory.baselines import GRUMemory
from doxastic.memory.build import MemoryConfig, build_memory


class Counting(gym.Env):
    """Shows its step, 1, 2, ..., then 50 as the final observation; the reward is the step."""

    observation_space = gym.spaces.Box(-100, 100, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int = 3, terminates: bool = False, noise: float | None = None):
        self.length, self.terminates, self.noise = length, terminates, noise

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.time = 1
        return self.observe(), self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        reward = float(self.time)
        self.time += 1
        ends = self.time > self.length
        return (
            self.observe(50.0 if ends else self.time),
            reward,
            ends and self.terminates,
            ends and not self.terminates,
            self.info(),
        )

    def observe(self, value: float = 1.0) -> Any:
        return np.array([value], np.float32)

    def info(self) -> dict[str, Any]:
        return {} if self.noise is None else {"noise": self.noise}


class CountingDict(Counting):
    observation_space = gym.spaces.Dict(
        {"count": gym.spaces.Box(-100, 100, (1,)), "parity": gym.spaces.Discrete(2)}
    )

    def observe(self, value: float = 1.0) -> Any:
        return {"count": super().observe(value), "parity": np.int64(int(value) % 2)}


class Both(Counting):
    """Terminates in the step of its time limit."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, terminated, info


class Seeded(Counting):
    """Shows what its own generator draws, and keeps the seeds of its resets."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds: list[int] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        self.seeds += [] if seed is None else [seed]
        return super().reset(seed=seed, options=options)

    def observe(self, value: float = 1.0) -> Any:
        return self.np_random.uniform(-1, 1, 1).astype(np.float32)


class SumMemory:
    """State `[B, S]`, each column the sum of the episode's observations so far."""

    def __init__(self, state_size: int) -> None:
        self.state_size = state_size

    def initial_state(self, batch_size: int, device: Any = None) -> Tensor:
        return torch.zeros(batch_size, self.state_size)


class SumPolicy:
    """Values an observation at 1000 times itself plus the sum of those before it."""

    def __init__(self, state_size: int = 1) -> None:
        self.memory = SumMemory(state_size)

    @property
    def action_head(self) -> SumPolicy:
        return self

    def to_env(self, action: Tensor) -> np.ndarray:
        return action.numpy()

    def act(self, observation: Any, state: Tensor, reset: Tensor, **_: Any) -> tuple[Tensor, ...]:
        state = state.masked_fill(reset.unsqueeze(-1), 0.0)
        value = self.value(observation, state, torch.zeros_like(reset))
        action = torch.zeros(len(state), dtype=torch.int64)
        return action, torch.zeros(len(state)), value, state + count(observation)

    def value(self, observation: Any, state: Tensor, reset: Tensor) -> Tensor:
        assert not reset.any()
        return (1000 * count(observation) + state[:, :1]).squeeze(-1)


def count(observation: Any) -> Tensor:
    return observation["count"] if isinstance(observation, dict) else observation


def vector(*makers: Callable[[], gym.Env]) -> SyncVectorEnv:
    return SyncVectorEnv(list(makers), autoreset_mode=AutoresetMode.SAME_STEP)


def gru_policy(env: gym.vector.VectorEnv) -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(
        env.single_observation_space,
        env.single_action_space,
        EncoderConfig(width=16),
        GRUMemory(16, 16),
        PolicyConfig(hidden_size=16),
    )


def cartpole(num_envs: int = 4) -> POMDPVectorEnv:
    return POMDPVectorEnv(CartPole(), num_envs)


@pytest.mark.parametrize("kind", [Counting, CountingDict])
def test_truncation_is_valued_by_its_final_observation_and_the_memory_that_led_to_it(
    kind: type[Counting],
) -> None:
    env = vector(lambda: kind(3), lambda: kind(4))
    rollout = Collector(SumPolicy(), env, 5).collect()
    assert rollout["truncated"].int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]
    # Final observation 50 after 1 + 2 + 3, and after 1 + 2 + 3 + 4.
    assert rollout["next_value"][0].tolist() == [2001, 3003, 50_006, 2001, 3003]
    assert rollout["next_value"][1].tolist() == [2001, 3003, 4006, 50_010, 2001]
    assert rollout["reset"].int().tolist() == [[1, 0, 0, 1, 0], [1, 0, 0, 0, 1]]


def test_truncation_at_the_last_step_is_valued_by_its_final_observation() -> None:
    rollout = Collector(SumPolicy(), vector(lambda: Counting(3), lambda: Counting(4)), 3).collect()
    assert rollout["next_value"][:, -1].tolist() == [50_006, 4006]


@pytest.mark.parametrize("kind", [Counting, Both])
def test_nothing_follows_termination(kind: type[Counting]) -> None:
    rollout = Collector(SumPolicy(), vector(lambda: kind(3, terminates=True)), 5).collect()
    assert rollout["next_value"][0].tolist() == [2001, 3003, 0, 2001, 3003]
    assert rollout["terminated"][0].int().tolist() == [0, 0, 1, 0, 0]
    assert not rollout["truncated"].any()
    assert torch.equal(rollout["done"], rollout["terminated"])


def test_more_truncations_than_environments_are_all_valued() -> None:
    rollout = Collector(SumPolicy(), vector(lambda: Counting(2), lambda: Counting(3)), 40).collect()
    truncated = rollout["truncated"]
    assert set(rollout["next_value"][0][truncated[0]].tolist()) == {50_003}
    assert set(rollout["next_value"][1][truncated[1]].tolist()) == {50_006}


def test_valuing_the_end_of_a_segment_does_not_advance_the_memory() -> None:
    env = cartpole()
    whole = Collector(gru_policy(env), env, 60, seed=3).collect()
    collector = Collector(gru_policy(env), cartpole(), 30, seed=3)
    parts = [collector.collect() for _ in range(2)]
    for key in ("observation", "action", "value", "reward", "reset", "next_value"):
        joined = torch.cat([part[key] for part in parts], 1)
        torch.testing.assert_close(joined, whole[key], rtol=1e-5, atol=1e-6)


def test_the_memory_reproduces_values_and_log_probs_from_the_stored_state() -> None:
    env = cartpole(8)
    policy = gru_policy(env)
    collector = Collector(policy, env, 50)
    collector.collect()
    rollout = collector.collect()
    assert rollout["reset"].any() and rollout["state"].abs().sum() > 0
    features, _ = policy.features(rollout["observation"], rollout["state"], rollout["reset"])
    head = policy.action_head
    log_prob = head.distribution(head(features)).log_prob(rollout["action"])
    torch.testing.assert_close(policy.values(features), rollout["value"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(log_prob, rollout["action_log_prob"], rtol=1e-4, atol=1e-5)


def test_a_rollout_survives_the_next_one() -> None:
    collector = Collector(gru_policy(cartpole()), cartpole(), 10)
    first = collector.collect()
    kept = first.clone()
    collector.collect()
    assert (first == kept).all()


def test_the_same_seed_gives_the_same_rollout() -> None:
    env = cartpole()
    policy = gru_policy(env)
    rollouts = [Collector(policy, cartpole(), 30, seed=seed).collect() for seed in (5, 5, 6)]
    assert (rollouts[0] == rollouts[1]).all()
    assert not torch.equal(rollouts[0]["observation"], rollouts[2]["observation"])


@pytest.mark.parametrize("noise", [None, 0.1])
def test_environments_of_consecutive_seeds_share_no_random_stream(noise: float | None) -> None:
    def start(seed: int) -> set[float]:
        env = vector(*[Seeded] * 8)
        wrapped = env if noise is None else VectorObservationNoise(env, noise)
        rollout = Collector(SumPolicy(), wrapped, 2, seed=seed).collect()
        seeds = [one.seeds[0] for one in env.envs]
        return set(seeds) | set(rollout["observation"].flatten().tolist())

    first, second, again = (start(seed) for seed in (0, 1, 0))
    # A seed and two observations of each of the eight.
    assert len(first) == len(second) == 24
    assert not first & second
    assert first == again


@pytest.mark.parametrize("make", [cartpole, CartPoleVectorEnv])
def test_environments_stepped_at_once_get_the_seed_itself(make: Callable[..., Any]) -> None:
    env, other = make(num_envs=4), make(num_envs=4)
    # Gymnasium's batched cart-pole resets itself a step later; no episode ends here.
    env.metadata = {**env.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}
    rollout = Collector(gru_policy(env), env, 2, seed=3).collect()
    expected, _ = other.reset(seed=3)
    assert np.array_equal(rollout["observation"][:, 0], expected)


def test_finished_episodes_are_logged_with_their_own_noise_level() -> None:
    env = vector(lambda: Counting(2, noise=0.1), lambda: Counting(3, noise=0.2), lambda: Counting())
    collector = Collector(SumPolicy(), env, 4)
    collector.collect()
    log = collector.episodes
    assert log.finished == 4
    assert sorted(zip(log.returns, log.lengths, log.noise, strict=True))[:2] == [(3, 2, 0.1)] * 2
    assert 0.2 in log.noise and np.isnan(list(log.noise)).sum() == 1


def test_the_normalizer_scales_a_segment_by_what_came_before_it() -> None:
    env = vector(lambda: Counting(3))
    normalizer = ObservationNormalizer(env.single_observation_space)
    collector = Collector(SumPolicy(), env, 3, normalizer=normalizer)
    assert collector.collect()["observation"].flatten().tolist() == [1, 2, 3]
    assert normalizer.statistics is not None and normalizer.statistics.mean == 2
    expected = torch.tensor([-1.0, 0.0, 1.0]) / (2 / 3) ** 0.5
    torch.testing.assert_close(collector.collect()["observation"].flatten(), expected)
    # The second segment is merged as it was, not as it was scaled.
    assert normalizer.statistics.mean == 2 and normalizer.statistics.count == 6
    torch.testing.assert_close(normalizer.statistics.variance.item(), 2 / 3)


class Faulty(Counting):
    """Fails in one way at its third step."""

    def __init__(self, fault: str) -> None:
        super().__init__(length=10)
        self.fault = fault

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.time == 4:
            if self.fault == "raise":
                raise ZeroDivisionError("the pole broke")
            if self.fault == "reward":
                reward = float("inf")
            if self.fault in ("observation", "final"):
                observation = observation * np.nan
            truncated = self.fault == "final"
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize("fault", ["reward", "observation", "final"])
def test_a_number_that_is_not_finite_names_environment_index_and_step(fault: str) -> None:
    collector = Collector(SumPolicy(), vector(lambda: Counting(10), lambda: Faulty(fault)), 2)
    collector.collect()
    with pytest.raises(EnvironmentFailure, match=r"environment 1 at step 2 .*(nan|inf)") as error:
        collector.collect()
    assert fault in str(error.value) and "SyncVectorEnv" in str(error.value)


def test_an_environment_that_raises_is_named_and_kept_as_the_cause() -> None:
    collector = Collector(SumPolicy(), vector(lambda: Faulty("raise")), 5)
    with pytest.raises(EnvironmentFailure, match="SyncVectorEnv raised ZeroDivisionError") as error:
        collector.collect()
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_other_autoreset_modes_are_refused() -> None:
    env = SyncVectorEnv([Counting], autoreset_mode=AutoresetMode.NEXT_STEP)
    with pytest.raises(ValueError, match="SAME_STEP"):
        Collector(SumPolicy(), env, 5)


def test_registered_environments_are_named_by_their_id() -> None:
    env = vector(lambda: gym.make("CartPole-v1"))
    assert Collector(gru_policy(env), env, 2).name == "CartPole-v1"


def test_a_restored_collector_continues_bit_for_bit() -> None:
    policy = gru_policy(cartpole())
    collector = Collector(policy, cartpole(), 30, seed=1)
    collector.collect()
    tensors, data = collector.checkpoint()
    expected = collector.collect()
    other = Collector(policy, cartpole(), 30, seed=99)
    other.restore(tensors, data)
    assert (other.collect() == expected).all()
    assert list(other.episodes.returns) == list(collector.episodes.returns)
    assert other.steps == collector.steps


def test_an_environment_without_a_state_starts_anew_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    env = vector(lambda: gym.make("CartPole-v1"), lambda: gym.make("CartPole-v1"))
    collector = Collector(gru_policy(env), env, 20)
    collector.collect()
    tensors, data = collector.checkpoint()
    with caplog.at_level(logging.WARNING):
        collector.restore(tensors, data)
    assert "CartPole-v1 cannot restore its state" in caplog.text
    rollout = collector.collect()
    assert rollout["reset"][:, 0].all() and rollout["state"].abs().sum() == 0
    assert collector.steps == 80


def test_an_environment_without_a_state_never_sees_its_first_episodes_again() -> None:
    env = vector(Seeded, Seeded)
    checkpoints = []
    collector = Collector(SumPolicy(), env, 5, seed=1)
    for _ in range(2):
        collector.collect()
        checkpoints.append(collector.checkpoint())
    for checkpoint in (*checkpoints, checkpoints[0]):
        collector.restore(*checkpoint)
    start, early, late, again = zip(*(one.seeds for one in env.envs), strict=True)
    # Other seeds after other numbers of steps, the same after the same.
    assert len({*start, *early, *late}) == 6
    assert early == again


def test_a_checkpoint_of_another_kind_of_device_draws_actions_anew_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = gru_policy(cartpole())
    collector = Collector(policy, cartpole(), 30, seed=1)
    collector.collect()
    tensors, data = collector.checkpoint()
    # A generator of CUDA has a seed and an offset for its state.
    tensors["generator"] = torch.zeros(16, dtype=torch.uint8)
    rollouts = []
    for _ in range(2):
        other = Collector(policy, cartpole(), 30, seed=1)
        with caplog.at_level(logging.WARNING):
            other.restore(tensors, data)
        rollouts.append(other.collect())
    assert "another kind of device than cpu" in caplog.text
    assert (rollouts[0] == rollouts[1]).all()
    assert not torch.equal(rollouts[0]["action"], collector.collect()["action"])


def test_large_rollouts_stay_below_300_megabytes() -> None:
    env = cartpole(256)
    memory = build_memory(MemoryConfig(width=4 * 32, head_size=32), 16)
    policy = ActorCritic(
        env.single_observation_space,
        env.single_action_space,
        EncoderConfig(width=16),
        memory,
        PolicyConfig(hidden_size=16),
    )
    rollout = Collector(policy, env, 128).collect()
    assert rollout["state"].shape == (256, memory.state_size)
    # The segment's rows and the sequences made from them are there at the same time; what the
    # whole process grows by is measured in tests/test_benchmarks.py.
    assert 2 * sum(x.nbytes for x in rollout.values(True, True)) < 300e6
