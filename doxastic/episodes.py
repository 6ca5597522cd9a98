"""One episode on record: the true state, what was seen of it, and what could be known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding

from doxastic.envs.batched import BatchedPOMDP, NumpyRandom, State
from doxastic.envs.observations import ObservationLayout
from doxastic.envs.references.episode import EpisodeReference, Marginal

if TYPE_CHECKING:
    from doxastic.agents.agent import Agent
    from doxastic.memory.readouts import Belief


class Actor(ABC):
    """Who plays the episode."""

    name: str

    @abstractmethod
    def act(self, observation: npt.NDArray[Any]) -> Any:
        """Return the action after an observation."""

    def belief(self, observation: npt.NDArray[Any]) -> Belief | None:
        """Return what is believed after an observation, before it is acted on; None for nothing."""
        return None


class RandomActor(Actor):
    """Draws actions uniformly."""

    name = "random actions"

    def __init__(self, task: BatchedPOMDP, seed: int) -> None:
        self._space = task.action_space
        self._space.seed(seed)

    def act(self, observation: npt.NDArray[Any]) -> Any:
        """Return an action of the space."""
        return self._space.sample()


class ReferenceActor(Actor):
    """Acts on the exact posterior, as the best policy known does."""

    name = "the best policy known"

    def __init__(self, reference: EpisodeReference) -> None:
        self._reference = reference

    def act(self, observation: npt.NDArray[Any]) -> Any:
        """Return the action on the posterior, which has taken in the observation already."""
        return self._reference.act()


class AgentActor(Actor):
    """A trained agent.

    Args:
        agent: The agent.
        name: What it is called.
        has_belief: Whether its memory holds an explicit belief.
    """

    def __init__(self, agent: Agent, name: str, *, has_belief: bool) -> None:
        self.name = name
        self._agent, self._has_belief = agent, has_belief
        self._memory: Any = (None, [True])

    def act(self, observation: npt.NDArray[Any]) -> Any:
        """Return the most probable action."""
        action, state = self._agent.predict(observation, *self._memory)
        self._memory = (state, [False])
        return action

    def belief(self, observation: npt.NDArray[Any]) -> Belief | None:
        """Return what the agent believes after an observation."""
        return self._agent.belief(observation, *self._memory) if self._has_belief else None


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What there was at one step."""

    state: State
    """True state of the one environment."""

    observation: npt.NDArray[np.float64]
    """The task's own observation as numbers, `[D]`."""

    marginals: tuple[Marginal, ...]
    """Exact posterior after the observation; empty without a reference."""

    belief: Belief | None
    """The agent's belief after the observation."""

    action: Any
    """What was done then; None after the last observation."""

    total: float
    """Sum of the rewards before."""


@dataclass(kw_only=True)
class Episode:
    """An episode, or the beginning of one."""

    task: BatchedPOMDP
    """What was played."""

    actor: str
    """Who played."""

    noise: float
    """The noise level."""

    posterior: str
    """What kind of posterior the moments hold."""

    moments: list[Moment] = field(default_factory=list)
    """One for each observation, that of the reset included."""

    is_over: bool = False
    """Whether the episode ended within the steps on record."""


def record(
    task: BatchedPOMDP,
    actor: Actor,
    reference: EpisodeReference | None,
    *,
    seed: int,
    steps: int,
    previous_action: bool = True,
) -> Episode:
    """Return an episode, the same as `gymnasium.make` of the task goes through from this seed.

    Args:
        task: The task.
        actor: Who plays.
        reference: Its posterior; None if there is none.
        seed: Seed of the episode.
        steps: Most steps to play.
        previous_action: Whether the actor's observations carry the previous action.
    """
    generator, _ = seeding.np_random(seed)
    starts, steps_random = NumpyRandom(generator), NumpyRandom(generator.spawn(1)[0])
    layout = ObservationLayout(task, previous_action)
    state = task.reset(1, starts)
    o = task.observe(state, starts)
    if reference is not None:
        reference.first(o[0])
    seen, total = layout.first(o)[0], 0.0
    kind = "exact posterior" if reference is None or reference.is_exact else "Kalman posterior"
    noise = float(state["noise"][0])
    episode = Episode(task=task, actor=actor.name, noise=noise, posterior=kind)
    while True:
        episode.is_over |= len(episode.moments) == task.max_episode_steps
        is_last = episode.is_over or len(episode.moments) == steps
        belief = actor.belief(seen)
        action = None if is_last else actor.act(seen)
        episode.moments.append(_moment(state, o, reference, belief, action, total))
        if is_last:
            return episode
        actions = np.asarray(action)[None]
        state, reward, ended = task.step(state, actions, steps_random)
        o = task.observe(state, steps_random)
        if reference is not None:
            reference.following(action, o[0])
        seen, total = layout.following(o, actions)[0], total + float(reward[0])
        episode.is_over = bool(ended[0])


def _moment(
    state: State,
    o: Any,
    reference: EpisodeReference | None,
    belief: Belief | None,
    action: Any,
    total: float,
) -> Moment:
    return Moment(
        state=state,
        observation=np.asarray(o[0], dtype=np.float64).reshape(-1),
        marginals=() if reference is None else reference.marginals(state),
        belief=belief,
        action=action,
        total=total,
    )
