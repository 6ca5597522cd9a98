"""Returns of an agent at fixed noise levels, over episodes that share their randomness."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from scipy import stats
from torch import Tensor

from doxastic.agents.agent import Agent
from doxastic.agents.collector import (
    EnvironmentFailure,
    check_autoreset,
    environment_name,
    not_finite,
    raised,
)
from doxastic.agents.config import EvaluationConfig as EvaluationConfig
from doxastic.agents.encoders import Observation, to_tensors
from doxastic.agents.policy import ActorCritic
from doxastic.agents.trees import first_non_finite, tree_map
from doxastic.envs.make import EnvConfig, make_vector_env

# Own environments are batched arrays; others run one by one, each in its own object.
MAX_BATCHED_ENVS = 1024
MAX_SINGLE_ENVS = 64
CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Returns and lengths of episodes at several noise levels.

    Column `i` of every level is the same episode: the same initial state and the same standard
    noise, scaled. Differences between levels, and between agents evaluated with the same seed,
    are therefore best taken episode by episode.
    """

    env_id: str
    """Gymnasium id of the environment."""

    levels: tuple[float | None, ...]
    """Noise level of each row; None for the noise the environment has by itself."""

    returns: np.ndarray
    """Undiscounted returns `[levels, episodes]`, float64."""

    lengths: np.ndarray
    """Steps `[levels, episodes]`, int64."""

    seed: int
    """Seed of the first episode."""

    deterministic: bool
    """Whether the most probable actions were taken."""

    versions: dict[str, str] = field(default_factory=lambda: _versions())
    """Versions of the packages that produced it."""

    command: str = field(default_factory=lambda: _command())
    """Command line that produced it."""

    @property
    def mean(self) -> np.ndarray:
        """Mean return of each level."""
        return self.returns.mean(1)

    @property
    def standard_error(self) -> np.ndarray:
        """Standard error of each mean; NaN for a single episode."""
        episodes = self.returns.shape[1]
        if episodes < 2:
            return np.full(len(self.levels), np.nan)
        return self.returns.std(1, ddof=1) / np.sqrt(episodes)

    @property
    def interquartile_mean(self) -> np.ndarray:
        """Mean of the middle half of the returns of each level."""
        return np.asarray(stats.trim_mean(self.returns, 0.25, axis=1))

    def interval(self, confidence: float = CONFIDENCE) -> np.ndarray:
        """Return bootstrap percentile intervals of the means, `[levels, 2]`."""
        random = np.random.default_rng(0)
        return np.stack([_bootstrap(row, confidence, random) for row in self.returns])

    def table(self) -> str:
        """Return one line per level: mean, interval, interquartile mean, length."""
        head = f"{'noise':>8} {'mean':>10} {'95 % interval':>23} {'IQM':>10} {'length':>8}"
        rows = zip(
            self.levels,
            self.mean,
            self.interval(),
            self.interquartile_mean,
            self.lengths.mean(1),
            strict=True,
        )
        lines = [
            f"{'own' if level is None else format(level, 'g'):>8} {mean:10.3f} "
            f"{f'[{low:.3f}, {high:.3f}]':>23} {iqm:10.3f} {length:8.1f}"
            for level, mean, (low, high), iqm, length in rows
        ]
        title = f"{self.env_id}: {self.returns.shape[1]} episodes per level, seed {self.seed}"
        return "\n".join([title, head, *lines])

    def to_json(self) -> str:
        """Return everything, and the summary, as JSON."""
        data = asdict(self) | {"returns": self.returns.tolist(), "lengths": self.lengths.tolist()}
        summary = {"mean": self.mean.tolist(), "interval": self.interval().tolist()}
        return json.dumps(data | {"summary": summary})

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Return the evaluation that `to_json` wrote."""
        data = json.loads(text)
        data.pop("summary")
        data["levels"] = tuple(data["levels"])
        data["returns"] = np.array(data["returns"], np.float64)
        data["lengths"] = np.array(data["lengths"], np.int64)
        return cls(**data)


def evaluate(
    agent: Agent | ActorCritic,
    env_config: EnvConfig,
    noise_levels: Sequence[float] | None = None,
    episodes: int = 256,
    seed: int = 1_000_000,
    *,
    deterministic: bool = True,
) -> Evaluation:
    """Return the agent's returns on the same `episodes` episodes at every noise level.

    Args:
        agent: What acts; its observation statistics, where it has any, stay frozen.
        env_config: The environment; its own `noise` and `num_envs` are replaced.
        noise_levels: Levels to evaluate at; None for the configuration's own noise.
        episodes: Episodes per level.
        seed: Seed of the first episode.
        deterministic: Take the most probable action instead of a random one.

    Raises:
        ValueError: If `episodes` is below 1, `seed` below 0, `noise_levels` empty, or the
            environment or its noise cannot be had.
        EnvironmentFailure: The environment raised, gave a NaN or an infinity, or does not end an
            episode.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}; expected at least 1.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected at least 0.")
    if noise_levels is not None and len(noise_levels) == 0:
        raise ValueError(
            "the noise levels are empty; expected at least one. Give levels, or leave --noise "
            "(noise_levels) out."
        )
    limit = MAX_BATCHED_ENVS if env_config.id.startswith("doxastic/") else MAX_SINGLE_ENVS
    levels: tuple[float | None, ...] = (None,) if noise_levels is None else tuple(noise_levels)
    rows = []
    for level in levels:
        noise = env_config.noise if level is None else (level,)
        env = make_vector_env(env_config, num_envs=min(episodes, limit), noise=noise)
        try:
            rows.append(run_episodes(agent, env, episodes, seed, deterministic=deterministic))
        finally:
            env.close()
    returns, lengths = (np.stack(part) for part in zip(*rows, strict=True))
    return Evaluation(
        env_id=env_config.id,
        levels=levels,
        returns=returns,
        lengths=lengths,
        seed=seed,
        deterministic=deterministic,
    )


def run_episodes(
    agent: Agent | ActorCritic,
    env: VectorEnv,
    episodes: int,
    seed: int,
    *,
    deterministic: bool = True,
    max_steps: int = 100_000,
) -> tuple[np.ndarray, np.ndarray]:
    """Return returns and lengths `[episodes]` of the first episode after each reset.

    Only first episodes count: the later ones of an environment that ends early would favour
    short episodes. The environments are reset with `seed`, `seed + N`, ... until there are
    enough, so the episodes depend on the number of environments `N`. Gymnasium's SyncVectorEnv
    seeds environment `i` with `seed + i`: of other environments than the tasks of doxastic,
    evaluations whose seeds are less than `episodes` apart share episodes.

    Raises:
        EnvironmentFailure: The environment raised, gave a NaN or an infinity, or does not end an
            episode in `max_steps`.
    """
    name = check_autoreset(env)
    chunks = [
        _first_episodes(agent, env, seed + first, deterministic, max_steps)
        for first in range(0, episodes, env.num_envs)
    ]
    returns, lengths = (np.concatenate(part)[:episodes] for part in zip(*chunks, strict=True))
    if not np.isfinite(returns).all():
        raise EnvironmentFailure(f"{name} gave rewards that are not finite in an evaluation.")
    return returns, lengths


@torch.no_grad()
def _first_episodes(
    agent: Agent | ActorCritic, env: VectorEnv, seed: int, deterministic: bool, max_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return returns and lengths `[N]` of one episode in each environment.

    A deterministic policy acts for a shrinking part of them: whenever half of its rows have
    finished, they are left out. The environments all go on, for their draws to be the same whoever
    acts; so does a policy that draws.
    """
    policy = agent.policy if isinstance(agent, Agent) else agent
    normalizer = agent.normalizer if isinstance(agent, Agent) else None
    device = next(policy.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    observation = _reset(env, seed)
    state = policy.memory.initial_state(env.num_envs, device)
    reset = running = np.ones(env.num_envs, bool)
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
    rows = torch.arange(env.num_envs)
    taken: Tensor | None = None
    for step in range(max_steps):
        if deterministic and 2 * running.sum() <= len(rows):
            kept = torch.from_numpy(running)[rows]
            rows, state = rows[kept], state[kept.to(device)]
        tensors = to_tensors(observation, env.single_observation_space, device)
        some = _rows_of(tensors if normalizer is None else normalizer(tensors), rows.to(device))
        action, _, _, state = policy.act(
            some,
            state,
            torch.from_numpy(reset)[rows].to(device),
            deterministic=deterministic,
            generator=generator,
        )
        if taken is None:
            taken = action.clone()
        taken[rows.to(device)] = action
        observation, reward, reset = _step(env, policy.action_head.to_env(taken), step)
        returns += np.where(running, reward, 0.0)
        lengths += running
        running = running & ~reset
        if not running.any():
            return returns, lengths
    raise EnvironmentFailure(
        f"{check_autoreset(env)} did not end {running.sum()} of {env.num_envs} episodes within "
        f"{max_steps} steps. Give it a time limit, e.g. max_episode_steps at registration."
    )


def _reset(env: VectorEnv, seed: int) -> Any:
    """Return the first observations, checked."""
    moment = "the reset of an evaluation"
    try:
        observation, _ = env.reset(seed=seed)
    except Exception as error:
        raise raised(environment_name(env), error, moment) from error
    _check(env, observation, moment)
    return observation


def _step(env: VectorEnv, action: np.ndarray, step: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return observations, checked, with rewards `[N]` and which episodes ended `[N]`."""
    moment = f"step {step} of an evaluation"
    try:
        observation, reward, terminated, truncated, _ = env.step(action)
    except Exception as error:
        raise raised(environment_name(env), error, moment) from error
    _check(env, observation, moment)
    return observation, reward, terminated | truncated


def _check(env: VectorEnv, observation: Any, moment: str) -> None:
    bad = first_non_finite(observation)
    if bad is not None:
        row = tree_map(lambda leaf: leaf[bad], observation)
        raise not_finite(environment_name(env), "an observation", row, bad, moment)


def _rows_of(observation: Observation, rows: Tensor) -> Observation:
    """Return some rows of observations `[B, ...]`, or of a dict of them."""
    if isinstance(observation, Tensor):
        return observation[rows]
    return {name: part[rows] for name, part in observation.items()}


def _bootstrap(sample: np.ndarray, confidence: float, random: np.random.Generator) -> np.ndarray:
    """Return the percentile interval of the mean, which is the mean where nothing varies."""
    if np.ptp(sample) == 0:
        return np.full(2, sample[0])
    result = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, 2**22 // len(sample)),
        confidence_level=confidence,
        method="percentile",
        rng=random,
    )
    return np.array(result.confidence_interval)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("doxastic", "torch", "gymnasium", "numpy")}


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
