"""Evaluation: the same episodes at every noise level, and what is said about their returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from doxastic.agents.agent import Agent
from doxastic.agents.collector import EnvironmentFailure
from doxastic.agents.encoders import EncoderConfig
from doxastic.agents.evaluation import Evaluation, EvaluationConfig, evaluate, run_episodes
from doxastic.agents.normalization import ObservationNormalizer
from doxastic.agents.policy import ActorCritic, PolicyConfig
from doxastic.envs.make import EnvConfig, make_vector_env
from doxastic.memory.baselines import GRUMemory

OWN = EnvConfig(id="doxastic/CartPole-v0")
OUTSIDE = EnvConfig(id="CartPole-v1")


def gru_policy(config: EnvConfig) -> ActorCritic:
    torch.manual_seed(0)
    env = make_vector_env(config, num_envs=1)
    policy = ActorCritic(
        env.single_observation_space,
        env.single_action_space,
        EncoderConfig(width=16),
        GRUMemory(16, 16),
        PolicyConfig(hidden_size=16),
    )
    # Fresh heads are nearly uniform: larger weights make the actions depend on what is seen.
    with torch.no_grad():
        policy.action_head.linear.weight.mul_(300)
    return policy


def example(returns: Any) -> Evaluation:
    returns = np.asarray(returns, np.float64)
    return Evaluation(
        env_id="doxastic/CartPole-v0",
        levels=tuple(0.1 * level for level in range(len(returns))),
        returns=returns,
        lengths=np.ones(returns.shape, np.int64),
        seed=0,
        deterministic=True,
    )


@pytest.mark.parametrize("config", [OWN, OUTSIDE])
def test_every_level_is_evaluated_on_the_same_episodes(config: EnvConfig) -> None:
    policy = gru_policy(config)
    result = evaluate(policy, config, (0.1, 0.5, 0.1), episodes=40, seed=3, deterministic=False)
    assert result.returns.shape == result.lengths.shape == (3, 40)
    assert np.array_equal(result.returns[0], result.returns[2])
    assert not np.array_equal(result.returns[0], result.returns[1])
    again = evaluate(policy, config, (0.5,), episodes=40, seed=3, deterministic=False)
    assert np.array_equal(again.returns[0], result.returns[1])


def test_noise_that_a_policy_ignores_changes_nothing() -> None:
    policy = gru_policy(OWN)
    with torch.no_grad():
        policy.action_head.linear.weight.zero_()
    result = evaluate(policy, OWN, (0.0, 5.0), episodes=20, deterministic=False)
    assert np.array_equal(result.returns[0], result.returns[1])
    assert result.returns.std() > 0


def test_other_seeds_are_other_episodes() -> None:
    policy = gru_policy(OWN)
    one, two = (evaluate(policy, OWN, (0.1,), episodes=30, seed=seed) for seed in (1, 2))
    assert not np.array_equal(one.returns, two.returns)


class Fixed(gym.Env):
    """Ends after the steps it is given in its first episode, then after 1, with rewards of 1."""

    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int) -> None:
        self.length, self.seeds = length, []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.limit = 1 if seed is None else self.length
        self.seeds += [] if seed is None else [seed]
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.time += 1
        return np.zeros(1, np.float32), 1.0, self.time >= self.limit, False, {}


class Still(Agent):
    """Always acts 0, without networks."""

    normalizer = None

    def __init__(self) -> None:
        self.policy = self
        self.memory = self

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def initial_state(self, batch_size: int = 1, device: Any = None) -> Any:
        return torch.zeros(batch_size, 1)

    def act(self, observation: Any, state: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        action = torch.zeros(len(state), dtype=torch.int64)
        return action, state, state, state

    @property
    def action_head(self) -> Any:
        return self

    def to_env(self, action: Tensor) -> np.ndarray:
        return action.numpy()


def fixed(*lengths: int) -> SyncVectorEnv:
    makers: list[Callable[[], gym.Env]] = [
        lambda length=length: Fixed(length) for length in lengths
    ]
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


def test_only_the_first_episode_of_each_environment_counts() -> None:
    returns, lengths = run_episodes(Still(), fixed(2, 7, 4), 3, seed=0)
    assert returns.tolist() == [2, 7, 4] and lengths.tolist() == [2, 7, 4]


def test_more_episodes_than_environments_come_in_chunks_of_fresh_seeds() -> None:
    env = fixed(2, 3)
    returns, _ = run_episodes(Still(), env, 5, seed=10)
    assert returns.tolist() == [2, 3, 2, 3, 2]
    assert [one.seeds for one in env.envs] == [[10, 12, 14], [11, 13, 15]]


def test_an_episode_without_end_is_an_error() -> None:
    with pytest.raises(EnvironmentFailure, match="1 of 2 episodes within 20 steps"):
        run_episodes(Still(), fixed(3, 10_000), 2, seed=0, max_steps=20)


class Faulty(Fixed):
    """Fails in its third step, or at its reset."""

    def __init__(self, fault: str) -> None:
        super().__init__(9)
        self.fault = fault

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        if self.fault == "reset":
            raise ZeroDivisionError("the wheel came off")
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        observation, *rest = super().step(action)
        if self.time == 3 and self.fault == "step":
            raise ZeroDivisionError("the wheel came off")
        if self.time == 3 and self.fault == "observation":
            observation[0] = np.nan
        return observation, *rest


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("reset", "SyncVectorEnv raised ZeroDivisionError at the reset of an evaluation: the wh"),
        ("step", "SyncVectorEnv raised ZeroDivisionError at step 2 of an evaluation: the wheel"),
        ("observation", "an observation that is not finite, in environment 1 at step 2 of an eval"),
    ],
)
def test_what_an_environment_does_wrong_is_named(fault: str, message: str) -> None:
    makers: list[Callable[[], gym.Env]] = [lambda: Fixed(9), lambda: Faulty(fault)]
    env = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(EnvironmentFailure, match=message):
        run_episodes(Still(), env, 2, seed=0)


def test_evaluation_uses_and_keeps_the_observation_statistics() -> None:
    policy = gru_policy(OWN)
    normalizer = ObservationNormalizer(policy.observation_space)
    size = policy.observation_space.shape[0]
    normalizer.update(5 + 0.1 * torch.randn(100, size))
    before = {key: value.clone() for key, value in normalizer.state_dict().items()}
    scaled = evaluate(Agent(policy, normalizer), OWN, (0.1,), episodes=40, deterministic=False)
    plain = evaluate(Agent(policy), OWN, (0.1,), episodes=40, deterministic=False)
    assert not np.array_equal(scaled.returns, plain.returns)
    assert all(torch.equal(value, before[key]) for key, value in normalizer.state_dict().items())


def test_without_levels_the_environment_keeps_its_own_noise() -> None:
    result = evaluate(gru_policy(OWN), OWN, episodes=10)
    assert result.levels == (None,) and result.returns.shape == (1, 10)
    assert " own " in result.table()


def test_summaries_equal_hand_computed_ones() -> None:
    result = example([[0, 2, 4, 100], [1, 1, 1, 1]])
    assert result.mean.tolist() == [26.5, 1]
    assert result.standard_error == pytest.approx([np.std([0, 2, 4, 100], ddof=1) / 2, 0])
    assert result.interquartile_mean.tolist() == [3, 1]
    low, high = result.interval()[0]
    assert 0 <= low < 26.5 < high <= 100
    assert result.interval()[1].tolist() == [1, 1]


def test_intervals_of_normal_returns_match_their_standard_error() -> None:
    result = example(np.random.default_rng(0).normal(size=(1, 2000)))
    low, high = result.interval()[0]
    assert high - low == pytest.approx(2 * 1.96 * result.standard_error[0], rel=0.1)


def test_json_keeps_everything() -> None:
    result = evaluate(gru_policy(OWN), OWN, (0.0, 0.1), episodes=5)
    copy = Evaluation.from_json(result.to_json())
    assert copy.levels == result.levels and copy.versions == result.versions
    assert copy.command == result.command and copy.env_id == result.env_id
    assert np.array_equal(copy.returns, result.returns)
    assert np.array_equal(copy.lengths, result.lengths)


def test_the_table_has_a_line_for_each_level() -> None:
    lines = example([[1, 2, 3], [4, 5, 6]]).table().splitlines()
    assert len(lines) == 4 and "doxastic/CartPole-v0: 3 episodes" in lines[0]
    assert len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"episodes": 0},
        {"seed": -1},
        {"noise": ()},
        {"noise": (-0.1,)},
        {"noise": (0.1, float("nan"))},
        {"noise": (float("inf"),)},
    ],
)
def test_settings_outside_their_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"evaluation.{next(iter(wrong))}"):
        EvaluationConfig(**wrong)
