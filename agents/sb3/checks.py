"""What the policies refuse, with the remedy."""

from __future__ import annotations

from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from doxastic.agents.agent import Agent
from doxastic.agents.encoders import is_image
from doxastic.agents.sb3.encoder import turned_space


def check_observations(policy: str, kind: str, space: gym.Space[Any]) -> None:
    """Raise `ValueError` unless the observations are of the kind that a policy takes.

    Args:
        policy: Name of the policy.
        kind: The one of doxastic's policies that it is or extends.
        space: Observations of one environment.
    """
    if isinstance(space, spaces.Dict):
        suited = "MultiInputBeliefPolicy"
    else:
        suited = "CnnBeliefPolicy" if is_image(space) else "BeliefPolicy"
    if suited != kind:
        raise ValueError(f"{policy} cannot take the observation space {space}. Use {suited}.")


def check_actions(space: gym.Space[Any]) -> None:
    """Raise `ValueError` for discrete actions that SB3 would read wrongly."""
    if np.any(getattr(space, "start", 0)):
        raise ValueError(
            f"action space {space} does not count from 0 as Stable-Baselines3 does. Wrap the "
            "environment in gymnasium.wrappers.TransformAction."
        )


def check_run(agent: Agent, observations: gym.Space[Any], actions: gym.Space[Any]) -> None:
    """Raise `ValueError` unless an environment has the spaces that a run was trained with.

    Images may come as SB3 turns them, with the channels first.
    """
    if observations != turned_space(agent.observation_space):
        check_same_observations(observations, agent)
    _check_same("action", actions, agent.action_space)


def check_same_observations(space: gym.Space[Any], agent: Agent) -> None:
    """Raise `ValueError` unless an environment's observations are those of an agent."""
    _check_same("observation", space, agent.observation_space)


def _check_same(what: str, given: gym.Space[Any], expected: gym.Space[Any]) -> None:
    if given != expected:
        raise ValueError(
            f"the environment's {what} space is {given}; the run was trained with "
            f"{expected}. Use the environment and options in the run's config.yaml."
        )


_REMEDY = (
    "Train it with sb3_contrib.RecurrentPPO or doxastic's BeliefRecurrentPPO; PPO, A2C, SAC, TD3 "
    "and DQN remember with BeliefExtractor or VecBelief."
)


def refuse_without_states(policy: str) -> NoReturn:
    """Raise `TypeError`: an algorithm that is not recurrent called the policy."""
    raise TypeError(
        f"{policy} was called without the memory's states, which only a recurrent algorithm "
        f"carries. {_REMEDY}"
    )


def refuse_off_policy(policy: str, name: str) -> NoReturn:
    """Raise `AttributeError`: an off-policy algorithm looked for one of its networks."""
    raise AttributeError(
        f"{policy} has no {name}, which off-policy algorithms look for: it is a policy for "
        f"recurrent PPO. {_REMEDY}"
    )
