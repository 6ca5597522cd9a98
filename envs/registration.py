"""Gymnasium ids of the tasks: `gymnasium.make(id)` and `gymnasium.make_vec(id, num_envs=N)`."""

from __future__ import annotations

from typing import Any

import gymnasium

from doxastic.envs.batched import BatchedPOMDP
from doxastic.envs.gymnasium import POMDPEnv, POMDPVectorEnv
from doxastic.envs.noise import NoiseKind, noise_levels
from doxastic.envs.noisy_task import NoisyTask
from doxastic.envs.rendering import RENDER_MODES
from doxastic.envs.tasks.acrobot import Acrobot
from doxastic.envs.tasks.autoencode import Autoencode
from doxastic.envs.tasks.battleship import Battleship
from doxastic.envs.tasks.cartpole import CartPole
from doxastic.envs.tasks.concentration import Concentration
from doxastic.envs.tasks.copying import Copy
from doxastic.envs.tasks.count_recall import CountRecall
from doxastic.envs.tasks.higher_lower import HigherLower
from doxastic.envs.tasks.light_dark import LightDark
from doxastic.envs.tasks.linear_gaussian import LinearGaussian
from doxastic.envs.tasks.mine_sweeper import MineSweeper
from doxastic.envs.tasks.noisy_bandit import NoisyBandit
from doxastic.envs.tasks.pendulum import Pendulum
from doxastic.envs.tasks.repeat_first import RepeatFirst
from doxastic.envs.tasks.repeat_previous import RepeatPrevious
from doxastic.envs.tasks.sequential_test import SequentialTest
from doxastic.envs.tasks.t_maze import TMaze
from doxastic.envs.tasks.tiger import Tiger

TASKS: dict[str, type[BatchedPOMDP]] = {
    "doxastic/Acrobot-v0": Acrobot,
    "doxastic/Autoencode-v0": Autoencode,
    "doxastic/Battleship-v0": Battleship,
    "doxastic/CartPole-v0": CartPole,
    "doxastic/Concentration-v0": Concentration,
    "doxastic/Copy-v0": Copy,
    "doxastic/CountRecall-v0": CountRecall,
    "doxastic/HigherLower-v0": HigherLower,
    "doxastic/LightDark-v0": LightDark,
    "doxastic/LinearGaussian-v0": LinearGaussian,
    "doxastic/MineSweeper-v0": MineSweeper,
    "doxastic/NoisyBandit-v0": NoisyBandit,
    "doxastic/Pendulum-v0": Pendulum,
    "doxastic/RepeatFirst-v0": RepeatFirst,
    "doxastic/RepeatPrevious-v0": RepeatPrevious,
    "doxastic/SequentialTest-v0": SequentialTest,
    "doxastic/TMaze-v0": TMaze,
    "doxastic/Tiger-v0": Tiger,
}


def make_task(task: str, *, noise_kind: NoiseKind = "gaussian", **arguments: Any) -> BatchedPOMDP:
    """Return the task of a registered id.

    Args:
        task: A key of `TASKS`.
        noise_kind: Kind of the observation noise. "gaussian" is the task's own: Gaussian where it
            observes numbers, replaced symbols where it observes symbols. Another kind stands in
            for it and needs `noise`; see `ObservationNoise` for the kinds and their levels.
        arguments: Arguments of the task's class, `noise` among them.

    Raises:
        TypeError: If the task does not take one of the arguments.
        ValueError: If the task cannot have noise of this kind, or an argument is outside its range.
    """
    if noise_kind == "gaussian":
        return TASKS[task](**arguments)
    noise = arguments.pop("noise", None)
    if noise is None:
        raise ValueError(
            f"noise_kind is {noise_kind!r} but there are no levels; give noise=, a level or a list "
            "of levels of which one is drawn for each episode."
        )
    levels = noise_levels(noise, noise_kind)
    quiet: dict[str, Any] = {**arguments, "noise": 0.0}
    try:
        return NoisyTask(TASKS[task](**quiet), levels, noise_kind)
    except ValueError as error:
        raise ValueError(
            f"{task} cannot have noise_kind={noise_kind!r} in place of its own noise: {error}"
        ) from error


def make_single(
    task: str,
    *,
    previous_action: bool = True,
    render_mode: str | None = None,
    **arguments: Any,
) -> POMDPEnv:
    """Return the environment of a registered id.

    Args:
        task: A key of `TASKS`.
        previous_action: Whether observations carry the previous action and the start flag.
        render_mode: "rgb_array" if `render()` is to return pictures of the true state.
        arguments: Arguments of `make_task`: those of the task's class, and `noise_kind`.

    Raises:
        TypeError: If the task does not take one of the arguments.
        ValueError: If the task cannot have noise of this kind, or an argument is outside its range.
    """
    pomdp = make_task(task, **arguments)
    return POMDPEnv(pomdp, previous_action=previous_action, render_mode=render_mode)


def make_vector(
    task: str,
    num_envs: int = 1,
    *,
    previous_action: bool = True,
    render_mode: str | None = None,
    **arguments: Any,
) -> POMDPVectorEnv:
    """Return `num_envs` environments of a registered id; see `make_single`."""
    pomdp = make_task(task, **arguments)
    return POMDPVectorEnv(pomdp, num_envs, previous_action=previous_action, render_mode=render_mode)


# Where `gymnasium.make` looks for the modes that it can derive others from, such as "human".
vars(make_single)["metadata"] = {"render_modes": list(RENDER_MODES)}


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
