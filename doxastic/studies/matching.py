"""Memories at equal parameters: the size of each is chosen to match a number of them."""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Sequence
from typing import Any

from doxastic.configuration import ConfigError
from doxastic.envs.make import make_vector_env
from doxastic.experiment import Experiment, build_agent, override, to_dict

MAX_WIDTH = 4096
"""Widest memory that is tried."""

_FAST_UNIT = 16


class ParameterCounter:
    """Counts the trained parameters of the agents of experiments, each network once."""

    def __init__(self) -> None:
        self._spaces: dict[str, Any] = {}
        self._counts: dict[str, int] = {}

    def __call__(self, experiment: Experiment) -> int:
        """Return the number of parameters of the whole agent, encoder and heads included.

        Raises:
            ValueError: If the environment or the network cannot be made.
        """
        data = to_dict(experiment)
        env_key = json.dumps(data["env"], sort_keys=True)
        parts = [data[name] for name in data if name not in ("seed", "ppo", "evaluation", "name")]
        key = json.dumps(parts, sort_keys=True)
        if key not in self._counts:
            if env_key not in self._spaces:
                self._spaces[env_key] = _spaces(experiment)
            agent = build_agent(experiment, *self._spaces[env_key])
            trained = [x.numel() for x in agent.parameters() if x.requires_grad]
            self._counts[key] = sum(trained)
        return self._counts[key]


def match(
    experiment: Experiment,
    target: int,
    tolerance: float,
    count: Callable[[Experiment], int],
) -> Experiment:
    """Return the experiment with its memory sized to the `target` number of parameters.

    A baseline's width is what is chosen. An RWKV-7 core, whose width goes in steps of its head
    size, stays as it is within the tolerance, and otherwise gets another width of its channel
    mix: the state, which is what it remembers with, is then that of the reference. Multiples of 16
    are preferred there, which the compiled acting step takes five times as fast as others.

    Args:
        experiment: The experiment of a memory, of any size.
        target: Number of parameters of the whole agent.
        tolerance: Most relative difference.
        count: Returns the number of parameters of an experiment.

    Raises:
        ConfigError: If no size comes as near as the tolerance.
    """
    is_core = experiment.memory.kind == "belief"
    if is_core and abs(count(experiment) - target) <= tolerance * target:
        return experiment

    def sized(size: int) -> Experiment:
        if is_core:
            ratio = size / experiment.memory.width
            return override(experiment, {"memory": {"channel_ratio": ratio}})
        return override(experiment, {"memory": {"width": size}})

    found = 0
    for unit in (_FAST_UNIT, 1) if is_core else (1,):
        sizes = range(unit, MAX_WIDTH + 1, unit)
        best = sized(nearest_size(sizes, target, lambda size: count(sized(size))))
        found = count(best)
        if abs(found - target) <= tolerance * target:
            return best
    raise ConfigError(
        f"the number of parameters cannot be matched: {found:,} is the nearest to the reference's "
        f"{target:,}, a difference of {abs(found - target) / target:.0%}, and {tolerance:.0%} is "
        "allowed; make encoder, body or reference smaller, or set matched: false"
    )


def nearest_size(sizes: Sequence[int], target: int, count: Callable[[int], int]) -> int:
    """Return the size whose count is nearest to the target.

    Args:
        sizes: Ascending sizes to choose from.
        target: What the count should be.
        count: A function of the size that never falls.
    """
    # From below in doublings first: the largest sizes take long to build.
    end = 1
    while end < len(sizes) and count(sizes[end - 1]) < target:
        end = min(2 * end, len(sizes))
    above = bisect.bisect_left(sizes[:end], target, key=count)
    return min(sizes[max(above - 1, 0) : above + 1], key=lambda size: abs(count(size) - target))


def _spaces(experiment: Experiment) -> tuple[Any, Any]:
    env = make_vector_env(experiment.env, num_envs=1)
    try:
        return env.single_observation_space, env.single_action_space
    finally:
        env.close()
