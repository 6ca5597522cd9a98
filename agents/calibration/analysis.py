"""The calibration of an agent: its visited steps probed, measured and intervened on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from doxastic.agents.agent import Agent
from doxastic.agents.calibration.control import Control, control, interventions
from doxastic.agents.calibration.play import keeps_belief, make_task_env
from doxastic.agents.calibration.report import HELD_OUT, TRAINED, Calibration, Example
from doxastic.agents.calibration.study import VariableStudy
from doxastic.agents.calibration.variables import variables_of
from doxastic.agents.calibration.visits import Visits, collect_visits, task_filter
from doxastic.envs.batched import BatchedPOMDP
from doxastic.envs.labels import labels
from doxastic.envs.make import EnvConfig
from doxastic.memory.belief import BeliefMemory

# Half of them fit the probes, and the others give the intervals.
MIN_EPISODES = 20
# Steps that fit the probes.
_FIT_STEPS = 20_000
# Episodes at a level; of every other one the longest is shown.
_EXAMPLES = 16


def calibrate(
    agent: Agent,
    config: EnvConfig,
    noise_levels: Sequence[float] | None = None,
    episodes: int = 1024,
    seed: int = 1_000_000,
    *,
    deterministic: bool = True,
    variables: Sequence[str] | None = None,
) -> Calibration:
    """Return how well an agent's belief is calibrated, and whether its policy uses it.

    Probes are fitted to the episodes of even numbers at the noise levels of training, and tested
    on those of odd numbers at every level: an episode of one number has the same initial state at
    every level, so the numbers are what must be kept apart.

    Args:
        agent: What acts; its observation statistics stay frozen.
        config: The environment with its noise levels of training.
        noise_levels: Levels to test at, beside those of training.
        episodes: Episodes per level.
        seed: Seed of the first episode.
        deterministic: Take the most probable action instead of a random one.
        variables: Names of hidden variables; by default the first few that vary and the noise.

    Raises:
        ValueError: If the environment does not know its hidden state, there is no such variable,
            or there are too few episodes for an interval.
    """
    if episodes < MIN_EPISODES:
        raise ValueError(
            f"episodes is {episodes}; expected at least {MIN_EPISODES}: half of them fit the "
            "probes, and intervals are taken over the others."
        )
    env, inner = make_task_env(config, 1)
    env.close()
    task = inner.pomdp
    levels = tuple(sorted({*task.noise, *(float(level) for level in noise_levels or ())}))
    subject = _Subject(agent, config, task, seed, deterministic)
    visits = subject.visits(levels, episodes)
    is_fitting = np.isin(visits.level, task.noise) & (visits.episode % 2 == 0)
    fitting = visits.rows(is_fitting).thinned(_FIT_STEPS, np.random.default_rng(seed))
    testing = visits.rows(visits.episode % 2 == 1)
    known = task_filter(config, task)
    studies = [
        VariableStudy(variable, fitting, known.names if known else ())
        for variable in variables_of(task.hidden_names, visits, task.noise, variables)
    ]
    kinds = {True: "exact posterior", False: "Kalman posterior"}
    return Calibration(
        env_id=config.id,
        memory=_memory_name(agent),
        posterior=kinds[known.is_exact] if known else None,
        trained=tuple(task.noise),
        levels=levels,
        episodes=episodes,
        seed=seed,
        deterministic=deterministic,
        action_names=_action_names(task),
        variables=[study.report(testing, task.noise) for study in studies],
        examples=subject.examples(levels, studies),
        control=subject.control(levels, fitting, episodes) if keeps_belief(agent) else {},
    )


@dataclass(frozen=True)
class _Subject:
    """An agent in its environment."""

    agent: Agent
    config: EnvConfig
    task: BatchedPOMDP
    seed: int
    deterministic: bool

    def visits(self, levels: Sequence[float], episodes: int) -> Visits:
        return collect_visits(
            self.agent,
            self.config,
            levels,
            episodes=episodes,
            seed=self.seed,
            deterministic=self.deterministic,
        )

    def control(
        self, levels: Sequence[float], fitting: Visits, episodes: int
    ) -> dict[str, Control]:
        """Return what interventions do to the return, at the levels of training and at others."""
        held_out = tuple(level for level in levels if level not in self.task.noise)
        groups = {TRAINED: self.task.noise, HELD_OUT: held_out}
        return {
            name: control(
                self.agent,
                self.config,
                noise,
                interventions(fitting),
                episodes=episodes * len(noise),
                seed=self.seed,
                deterministic=self.deterministic,
            )
            for name, noise in groups.items()
            if noise
        }

    def examples(self, levels: Sequence[float], studies: Sequence[VariableStudy]) -> list[Example]:
        """Return an episode at the middle and at the hardest level of training, and beyond."""
        trained = sorted(self.task.noise)
        chosen = [trained[len(trained) // 2], trained[-1], levels[-1]]
        return [self._example(level, studies) for level in dict.fromkeys(chosen)]

    def _example(self, level: float, studies: Sequence[VariableStudy]) -> Example:
        # The probes were not fitted to episodes of odd numbers.
        some = self.visits([level], _EXAMPLES)
        odd = some.rows(some.episode % 2 == 1)
        longest = np.bincount(odd.episode).argmax()
        visits = odd.rows(odd.episode == longest)
        return Example(
            level=level,
            group=TRAINED if level in self.task.noise else HELD_OUT,
            action=visits.action,
            variables={s.variable.name: _course(s, visits) for s in studies},
        )


def _course(study: VariableStudy, visits: Visits) -> dict[str, np.ndarray]:
    """Return the true value and the moments of belief and posterior at the steps of an episode.

    Of an unordered variable, the probability of its true value.
    """
    variable, found = study.variable, {"": study.believed(visits)}
    posterior = study.posterior(visits)
    if posterior is not None:
        found["posterior "] = posterior
    if not variable.is_ordered:
        rows, truth = np.arange(len(visits)), variable.labels(visits)
        shares = {f"{k}mean": x.mean[rows, truth] for k, x in found.items()}
        return {"truth": np.ones(len(visits)), **shares}
    course = {"truth": variable.values(visits)}
    for prefix, prediction in found.items():
        course[f"{prefix}mean"] = prediction.mean[:, 0]
        course[f"{prefix}deviation"] = np.sqrt(prediction.variance)
    return course


def _memory_name(agent: Agent) -> str:
    memory = agent.policy.memory
    name = type(memory).__name__
    if not isinstance(memory, BeliefMemory):
        return name
    readout = "no readout" if memory.readout is None else type(memory.readout).__name__
    return f"{name} with {readout}"


def _action_names(task: BatchedPOMDP) -> tuple[str, ...]:
    """Return the names of the columns of `action_columns`."""
    space = task.action_space
    if isinstance(space, spaces.Discrete):
        names = labels(task).actions
        return names if len(names) == space.n else tuple(f"action {i}" for i in range(space.n))
    return tuple(f"action {i}" for i in range(int(np.prod(space.shape or (1,)))))
