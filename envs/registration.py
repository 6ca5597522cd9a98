"""Gymnasium ids of the tasks: `gymnasium.make(id)` and `gymnasium.make_vec(id, num_envs=N)`."""

from __future__ import annotations

from typing import Any

import gymnasium

from doxastic.envs.batched import BatchedPOMDP
from doxastic.envs.cartpole import CartPole
from doxastic.envs.gymnasium import POMDPEnv, POMDPVectorEnv
from doxastic.envs.sequential_test import SequentialTest

TASKS: dict[str, type[BatchedPOMDP]] = {
    "doxastic/CartPole-v0": CartPole,
    "doxastic/SequentialTest-v0": SequentialTest,
}


def make_single(
    task: str, *, previous_action: bool = True, render_mode: None = None, **arguments: Any
) -> POMDPEnv:
    """Return the environment of a registered id.

    Args:
        task: A key of `TASKS`.
        previous_action: Whether observations carry the previous action and the start flag.
        render_mode: None: the tasks draw no pictures.
        arguments: Arguments of the task's class.

    Raises:
        TypeError: If the task does not take one of the arguments, or is to be rendered.
    """
    _check_render_mode(task, render_mode)
    return POMDPEnv(TASKS[task](**arguments), previous_action=previous_action)


def make_vector(
    task: str,
    num_envs: int = 1,
    *,
    previous_action: bool = True,
    render_mode: None = None,
    **arguments: Any,
) -> POMDPVectorEnv:
    """Return `num_envs` environments of a registered id; see `make_single`."""
    _check_render_mode(task, render_mode)
    pomdp = TASKS[task](**arguments)
    return POMDPVectorEnv(pomdp, num_envs, previous_action=previous_action)


def _check_render_mode(task: str, render_mode: str | None) -> None:
    if render_mode is not None:
        raise TypeError(f"{task} has no render modes; got render_mode={render_mode!r}.")


def register_tasks() -> None:
    """Register every task with Gymnasium; a second call changes nothing."""
    for task in TASKS:
        if task not in gymnasium.registry:
            gymnasium.register(
                task,
                entry_point="doxastic.envs.registration:make_single",
                vector_entry_point="doxastic.envs.registration:make_vector",
                kwargs={"task": task},
            )
