"""Vector environments for training and evaluation, from a typed configuration."""

from __future__ import annotations

import difflib
import importlib
import logging
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import FlattenObservation

from doxastic.envs.gymnasium import POMDPEnv, POMDPVectorEnv
from doxastic.envs.noise import NoiseKind, noise_levels
from doxastic.envs.posterior import VectorPosterior
from doxastic.envs.registration import TASKS, make_task, make_vector
from doxastic.envs.wrappers import (
    CopyData,
    NumericEntries,
    VectorObservationNoise,
    VectorPreviousAction,
)
from doxastic.envs.wrappers.trees import leaf_spaces

_logger = logging.getLogger(__name__)

# Prefix of an id -> the package that registers it, which is also the name of pip's extra.
_EXTRAS = {"popgym-": "popgym", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Which environment, how many of it, and what is added to its observations."""

    id: str = "doxastic/CartPole-v0"
    """Gymnasium id: a task of doxastic, or any other registered environment."""

    num_envs: int = 64
    """Environments stepped at once."""

    noise: tuple[float, ...] | None = None
    """Levels of observation noise, one drawn for each episode; None keeps the environment's own."""

    noise_kind: NoiseKind = "gaussian"
    """What the noise does: gaussian and student (heavy tails) add to every number, bias adds the
    same for a whole episode, flicker blanks observations, delay shows earlier ones. Levels are
    standard deviations, a probability for flicker, steps for delay. gaussian is a task's own."""

    previous_action: bool = True
    """Whether observations carry the previous action and a flag for the start of an episode."""

    posterior: bool = False
    """Whether observations are replaced by the exact posterior of what is hidden, under the levels
    of `noise`, for tasks that have a filter. With memory none it is the ceiling for any belief."""

    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the environment."""

    def __post_init__(self) -> None:
        """Take the module off an id of ours; raise `ValueError` on a value outside its range."""
        # No module has to be imported for our own tasks, and all know them by their bare ids.
        name = self.id.rpartition(":")[2]
        if name in TASKS:
            object.__setattr__(self, "id", name)
        if self.num_envs < 1:
            raise ValueError(f"num_envs is {self.num_envs}; expected at least 1 environment.")
        noise_levels(0.0 if self.noise is None else self.noise, self.noise_kind)
        if self.noise is None and self.noise_kind != "gaussian":
            raise ValueError(
                f"noise_kind is {self.noise_kind!r} but noise is None; give the levels, e.g. "
                "noise: [0.0, 0.5]."
            )
        for name in ("noise", "noise_kind", "previous_action", "posterior"):
            if name in self.kwargs:
                raise ValueError(f"kwargs holds {name!r}; give it as the field {name} instead.")


def make_vector_env(
    config: EnvConfig, *, num_envs: int | None = None, noise: tuple[float, ...] | None = None
) -> VectorEnv[Any, Any, Any]:
    """Return a vector environment with same-step autoreset.

    The tasks of doxastic are stepped all at once; other environments one after the other by
    Gymnasium's SyncVectorEnv, with their observations and info copied, Tuples of vectors and
    symbols flattened, other Tuples turned into Dicts, entries that are no numbers dropped, and
    noise and previous action added by wrappers.

    Args:
        config: The environment.
        num_envs: Number of environments in place of `config.num_envs`.
        noise: Noise levels in place of `config.noise`. A posterior goes on holding the levels of
            `config.noise` possible: it is not told that they are others now.

    Raises:
        ValueError: If the id is unknown, a package it needs is not installed, the environment
            rejects the arguments, its observations cannot have the noise that is asked for, it has
            no exact posterior to be replaced by, or it is a `POMDPEnv` under an id of a user's own
            that has by itself what is to be added.
    """
    prior = config
    if num_envs is not None:
        config = replace(config, num_envs=num_envs)
    if noise is not None:
        config = replace(config, noise=noise)
    if config.id in TASKS:
        return _make_posterior(config, prior) if config.posterior else _make_task(config)
    _require_id(config.id)
    if config.posterior:
        raise ValueError(
            f"posterior is true, but {config.id} is no task of doxastic and has no exact "
            "posterior; set it to false."
        )
    return _make_outside(config)


def env_state(
    env: VectorEnv[Any, Any, Any],
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]] | None:
    """Return what the environment's `set_state` continues from; None for outside environments."""
    inner = env if isinstance(env, VectorPosterior) else env.unwrapped
    return inner.get_state() if isinstance(inner, POMDPVectorEnv | VectorPosterior) else None


def _make_task(config: EnvConfig) -> POMDPVectorEnv:
    try:
        return make_vector(
            config.id,
            config.num_envs,
            previous_action=config.previous_action,
            **_task_arguments(config),
        )
    except TypeError as error:
        raise _rejected(config, error) from error


def _make_posterior(config: EnvConfig, prior: EnvConfig) -> VectorPosterior:
    """Return environments that show the posterior under the levels of `prior`."""
    # The references need SciPy, which help and refusals should not wait for.
    from doxastic.envs.references.posterior_features import posterior_features

    env = _make_task(replace(config, previous_action=False))
    task = make_task(prior.id, **_task_arguments(prior))
    return VectorPosterior(env, posterior_features(task))


def _task_arguments(config: EnvConfig) -> dict[str, Any]:
    arguments = {"noise_kind": config.noise_kind, **config.kwargs}
    if config.noise is not None:
        arguments["noise"] = config.noise
    return arguments


def _make_outside(config: EnvConfig) -> VectorEnv[Any, Any, Any]:
    inner = SyncVectorEnv(
        [lambda: _make_single(config)] * config.num_envs, autoreset_mode=AutoresetMode.SAME_STEP
    )
    first = inner.envs[0]
    _check_not_doubled(config, first.unwrapped)
    if isinstance(first, NumericEntries) and first.dropped:
        dropped = ", ".join(first.dropped)
        _logger.info("Observations of %s that are no numbers are left out: %s.", config.id, dropped)
    env: VectorEnv[Any, Any, Any] = inner
    if config.noise is not None:
        env = VectorObservationNoise(env, config.noise, config.noise_kind)
    return VectorPreviousAction(env) if config.previous_action else env


def _make_single(config: EnvConfig) -> gymnasium.Env[Any, Any]:
    try:
        env = gymnasium.make(config.id, **{"disable_env_checker": True, **config.kwargs})
    except TypeError as error:
        raise _rejected(config, error) from error
    except gymnasium.error.Error as error:
        raise ValueError(f"{config.id} cannot be made: {error}") from error
    env = CopyData(env)
    leaves = leaf_spaces(env.observation_space)
    if isinstance(env.observation_space, spaces.Tuple) and all(map(_is_flat, leaves)):
        return FlattenObservation(env)
    if isinstance(env.observation_space, spaces.Dict | spaces.Tuple):
        return NumericEntries(env)
    return env


def _check_not_doubled(config: EnvConfig, env: gymnasium.Env[Any, Any]) -> None:
    """Raise `ValueError` if a task under a user's own id has what wrappers are to add to it."""
    if not isinstance(env, POMDPEnv):
        return
    if config.previous_action and env.previous_action:
        raise ValueError(
            f"The observations of {config.id} carry the previous action already; set "
            "previous_action to false."
        )
    if config.noise is not None and env.pomdp.noise != (0.0,):
        raise ValueError(
            f"{config.id} has noise of its own, of the levels {env.pomdp.noise}; leave noise out, "
            "or register the task with noise=0."
        )


def _is_flat(space: gymnasium.Space[Any]) -> bool:
    """Return whether elements of the space are vectors or symbols: no images, no text."""
    arrays = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    return isinstance(space, arrays) and len(space.shape or ()) <= 1


def _rejected(config: EnvConfig, error: TypeError) -> ValueError:
    return ValueError(f"{config.id} rejects the arguments {config.kwargs}: {error}")


def _require_id(env_id: str) -> None:
    """Import the package that registers the id; raise `ValueError` if there is no such id."""
    name = env_id
    if ":" in env_id:
        module, name = env_id.split(":", 1)
        _import(module, f"Install the package that provides {module!r}.", env_id)
    for prefix, package in _EXTRAS.items():
        if name.startswith(prefix):
            _import(package, f"Run: pip install 'doxastic[{package}]'.", env_id)
    if name not in gymnasium.registry:
        nearest = difflib.get_close_matches(name, gymnasium.registry, n=3, cutoff=0.4)
        hint = f"The nearest ids are {', '.join(nearest)}." if nearest else "No id is near it."
        raise ValueError(
            f"There is no environment with the id {env_id!r}. {hint} An id of another package "
            "needs that package imported: write 'module:id'."
        )


def _import(module: str, remedy: str, env_id: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{env_id} needs the package {error.name!r}, which is not installed. {remedy}"
        ) from error
