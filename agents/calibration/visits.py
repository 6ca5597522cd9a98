"""The steps an agent visits: what it saw of them, what it made of it, and what was true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from doxastic.agents.agent import Agent
from doxastic.agents.calibration.play import Step, make_task_env, play, split_features
from doxastic.envs.batched import BatchedPOMDP
from doxastic.envs.make import EnvConfig
from doxastic.envs.references.batched_filters import EpisodeFilter, episode_filter

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

# Steps that are kept.
STEP_LIMIT = 150_000
# Episodes played at once: a compromise between speed and the memory of unused, padded steps.
_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Visits:
    """Visited steps, one in each of S rows. Arrays of a memory without a belief are None."""

    h: Array
    """What the memory summarises, `[S, C]`."""

    mean: Array | None
    """The belief's mean, `[S, M]`."""

    variance: Array | None
    """Its variance, `[S, M]`."""

    evidence: Array | None
    """Its evidence, `[S, M]`."""

    hidden: FloatArray
    """The true hidden state, `[S, K]`."""

    action: FloatArray
    """What was done, `[S, A]`: one-hot where actions are symbols."""

    episode: Array
    """Number of the episode, `[S]`; episodes of one number share their randomness."""

    time: Array
    """Steps before this one in its episode, `[S]`."""

    level: FloatArray
    """Noise level, `[S]`."""

    posterior_mean: FloatArray | None = None
    """Mean of the hidden variables that a filter knows, `[S, P]`; None without a filter."""

    posterior_variance: FloatArray | None = None
    """Their variance, `[S, P]`."""

    posterior_noise: FloatArray | None = None
    """The filter's probability of every noise level of training, `[S, L]`."""

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.hidden)

    def rows(self, chosen: Array) -> Visits:
        """Return some of the steps: indices, or a mask `[S]`."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: x[chosen] for k, x in arrays.items() if x is not None})

    def drawn(self, share: float, random: np.random.Generator) -> Visits:
        """Return about this share of the steps, drawn at random, in their order."""
        return self if share >= 1 else self.rows(random.random(len(self)) < share)

    def thinned(self, limit: int, random: np.random.Generator) -> Visits:
        """Return about `limit` of the steps, drawn at random, or all if there are fewer."""
        return self.drawn(limit / max(len(self), 1), random)


def joined(parts: list[Visits]) -> Visits:
    """Return the steps of several, one after the other."""
    arrays = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Visits)}
    whole: dict[str, Any] = {
        name: None if xs[0] is None else np.concatenate(xs) for name, xs in arrays.items()
    }
    return Visits(**whole)


def collect_visits(
    agent: Agent,
    config: EnvConfig,
    levels: Sequence[float],
    *,
    episodes: int,
    seed: int,
    deterministic: bool = True,
    limit: int = STEP_LIMIT,
) -> Visits:
    """Return steps that the agent visits at noise levels, with the posterior where one exists.

    The posterior is that of an observer who knows the levels of training and no others: what the
    agent could have learned at best, also at a level outside them.

    Args:
        agent: What acts.
        config: The environment with its noise levels of training.
        levels: The noise levels.
        episodes: Number of episodes at each level.
        seed: Seed of the first episode of each.
        deterministic: Take the most probable action instead of a random one.
        limit: If there are many more steps, about so many are drawn at random, all with the same
            probability: were the levels of long episodes thinned more than others, their share
            would not be that of training, over which a posterior is calibrated.

    Raises:
        ValueError: If the environment does not know its hidden state.
    """
    task = make_task_env(config, 1)[1].pomdp
    random, share = np.random.default_rng(seed), 1.0
    parts: list[Visits] = []
    for first in range(0, episodes, _CHUNK):
        count = min(_CHUNK, episodes - first)
        for level in levels:
            played = play(agent, config, count, seed + first, (level,), deterministic=deterministic)
            part = _flattened(agent, config, task, list(played), first, level)
            parts.append(part.drawn(share, random))
        kept = sum(map(len, parts))
        if kept > limit:
            share *= limit / kept
            parts = [joined(parts).drawn(limit / kept, random)]
    return joined(parts)


def task_filter(config: EnvConfig, task: BatchedPOMDP) -> EpisodeFilter | None:
    """Return the filter of what the agent is shown; None without one.

    An agent that is shown the posterior itself is not compared with it.
    """
    return None if config.posterior else episode_filter(task)


def _flattened(
    agent: Agent,
    config: EnvConfig,
    task: BatchedPOMDP,
    steps: list[Step],
    first: int,
    level: float,
) -> Visits:
    """Return what was visited in the episodes `first`, `first + 1`, ... as rows."""
    running, observations, actions, hidden = (
        np.stack([getattr(step, name) for step in steps], axis=1)
        for name in ("running", "observation", "action", "hidden")
    )
    h, beliefs = zip(*(split_features(agent, step.features) for step in steps), strict=True)
    mean, variance, evidence = (
        [_stacked(part)[running] for part in zip(*beliefs, strict=True)]
        if beliefs[0] is not None
        else [None] * 3
    )
    known = task_filter(config, task)
    posterior: list[Array | None] = [None] * 3
    if known is not None:
        # What follows an episode's end is part of another one, and is not kept.
        seen = _task_observations(task, observations, config.previous_action)
        posterior = [part[running] for part in known.posterior(seen, actions)]
    episode, time = running.nonzero()
    return Visits(
        h=_stacked(h)[running],
        mean=mean,
        variance=variance,
        evidence=evidence,
        hidden=hidden[running],
        action=action_columns(task.action_space, actions[running]),
        episode=episode + first,
        time=time,
        level=np.full(len(episode), level),
        posterior_mean=posterior[0],
        posterior_variance=posterior[1],
        posterior_noise=posterior[2],
    )


def _task_observations(task: BatchedPOMDP, observations: Array, previous_action: bool) -> Array:
    """Return the task's own observations `[N, T, D]`, or symbols `[N, T]`, of what an agent saw."""
    space: Any = task.observation_space
    if not previous_action:
        return observations
    if isinstance(space, spaces.Discrete):
        return observations[..., : space.n].argmax(-1)
    return observations[..., : space.shape[0]]


def action_columns(space: Any, actions: Array) -> FloatArray:
    """Return actions as columns `[S, A]`: one-hot for Discrete, else their entries."""
    if isinstance(space, spaces.Discrete):
        return np.asarray(actions[:, None] == np.arange(space.n), dtype=np.float64)
    return np.asarray(actions, dtype=np.float64).reshape(len(actions), -1)


def _stacked(tensors: Any) -> Array:
    """Return tensors `[N, D]` of T steps as an array `[N, T, D]`."""
    return np.stack([tensor.cpu().numpy() for tensor in tensors], axis=1)
