"""What the policy does with the belief: its actions against it, and its returns without it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from doxastic.agents.agent import Agent
from doxastic.agents.calibration.measures import (
    Array,
    Estimate,
    FloatArray,
    episode_sums,
    mean_estimate,
    percentile_bands,
    resampled,
)
from doxastic.agents.calibration.play import Intervention, play
from doxastic.agents.calibration.visits import Visits
from doxastic.envs.make import EnvConfig
from doxastic.memory.readouts import Belief

_CHUNK = 1024
_ACTION_BINS = 12


class ActionCurve(NamedTuple):
    """Mean of each action column at steps of like belief: for symbols, how often it is taken."""

    x: FloatArray
    """Mean of what is believed, in each of B bins of equal mass."""

    mean: FloatArray
    """`[A, B]`."""

    low: FloatArray
    """Lower end of its 95 % interval over episodes, `[A, B]`."""

    high: FloatArray
    """Upper end, `[A, B]`."""


class Control(NamedTuple):
    """Returns on the same episodes, with the belief as it is and changed."""

    baseline: Estimate
    """Mean return as it is."""

    effects: dict[str, Estimate]
    """Mean change of the return by each intervention, paired by episode."""


def action_curve(x: Array, action: Array, episodes: Array) -> ActionCurve:
    """Return the actions `[S, A]` in bins of `x` `[S]`; equal values share a bin."""
    inner = np.unique(np.quantile(x, np.linspace(0, 1, _ACTION_BINS + 1)[1:-1]))
    bins = np.unique(np.searchsorted(inner, x, side="right"), return_inverse=True)[1]
    size, count = bins.max() + 1, action.shape[1]
    member = np.eye(size)[bins]
    taken = [member * column[:, None] for column in action.T]
    columns = np.concatenate([member, member * x[:, None], *taken], axis=1)
    sums = episode_sums(columns, episodes)

    def means(s: Array) -> Array:
        return (s[:, 2 * size :].reshape(-1, count, size) / s[:, None, :size]).reshape(len(s), -1)

    total = sums.sum(0, keepdims=True)
    low, high = percentile_bands(resampled(sums, means))
    center = total[0, size : 2 * size] / total[0, :size]
    return ActionCurve(center, *(part.reshape(count, size) for part in (means(total), low, high)))


def interventions(visits: Visits, seed: int = 0) -> dict[str, Intervention]:
    """Return what may be done to a belief before the policy reads it.

    Clamped, a part is what it is on average over the visited steps: the mean of its logarithm,
    which is what the policy reads. Shuffled, it is that of another episode at the same step: all
    values that occur then still occur, with the wrong episodes. The mean-to-deviation ratio follows
    from the mean and the variance shown. The summary h beside the belief is left alone, so what it
    knows as well is not missed.

    Args:
        visits: Steps visited under the noise of training, of an agent with a belief.
        seed: Seed of the shuffling.
    """
    assert visits.variance is not None and visits.evidence is not None
    variance = torch.from_numpy(np.exp(np.log(visits.variance).mean(0)))
    evidence = torch.from_numpy(np.expm1(np.log1p(visits.evidence).mean(0)))
    return {
        "variance clamped": clamped(variance=variance),
        "variance shuffled": shuffled(("variance",), seed),
        "variance and evidence clamped": clamped(variance=variance, evidence=evidence),
        "variance and evidence shuffled": shuffled(("variance", "evidence"), seed),
        "mean shuffled": shuffled(("mean",), seed),
        "whole belief shuffled": shuffled(("mean", "variance", "evidence"), seed),
    }


def clamped(**values: Tensor) -> Intervention:
    """Return an intervention that shows these values `[M]` of parts of the belief, always."""

    def change(belief: Belief, running: Array) -> Belief:
        parts = {name: getattr(belief, name) for name in values}
        return belief._replace(**{k: values[k].to(x).expand_as(x) for k, x in parts.items()})

    return change


def shuffled(parts: Sequence[str], seed: int) -> Intervention:
    """Return an intervention that shows parts of the belief of another running episode.

    One that runs alone keeps its own.
    """
    random = np.random.default_rng(seed)

    def change(belief: Belief, running: Array) -> Belief:
        source, order = np.arange(len(running)), random.permutation(running.nonzero()[0])
        # Around a circle of random order nobody is next to itself.
        source[order] = np.roll(order, 1)
        rows = torch.from_numpy(source).to(belief.mean.device)
        return belief._replace(**{part: getattr(belief, part)[rows] for part in parts})

    return change


def control(
    agent: Agent,
    config: EnvConfig,
    noise: tuple[float, ...],
    changes: dict[str, Intervention],
    *,
    episodes: int,
    seed: int,
    deterministic: bool = True,
) -> Control:
    """Return what interventions do to the return, over episodes at the levels `noise`.

    Every episode is played once as it is and once with each intervention, with the same initial
    state and the same standard noise.
    """
    arguments = (agent, config, noise, episodes, seed, deterministic)
    plain = _returns(*arguments, None)
    numbers = np.arange(episodes)
    effects = {
        name: mean_estimate(_returns(*arguments, change) - plain, numbers)
        for name, change in changes.items()
    }
    return Control(mean_estimate(plain, numbers), effects)


def _returns(
    agent: Agent,
    config: EnvConfig,
    noise: tuple[float, ...],
    episodes: int,
    seed: int,
    deterministic: bool,
    intervention: Intervention | None,
) -> FloatArray:
    """Return the returns `[episodes]`."""
    chunks = []
    for first in range(0, episodes, _CHUNK):
        count = min(_CHUNK, episodes - first)
        returns = np.zeros(count)
        for step in play(
            agent, config, count, seed + first, noise,
            deterministic=deterministic, intervention=intervention,
        ):  # fmt: skip
            returns += np.where(step.running, step.reward, 0.0)
        chunks.append(returns)
    return np.concatenate(chunks)
