"""Environment steps per second: the tasks against Gymnasium's classes and POPGym's.

One process, one thread, all in turn, random actions, episodes that end start anew. One environment
is stepped as `gymnasium.make` gives it, several by `gymnasium.make_vec` and, for the peers, by
Gymnasium's SyncVectorEnv. That the tasks do what their peers do is tested in tests/envs.

    python benchmarks/envs.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import gymnasium
import numpy as np
import popgym  # noqa: F401  (registers its environments)
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from harness import Arm, Options, Report, Timing, measure, ratio

from doxastic.envs import CartPole, TorchRandom

SIZES = (1, 16, 256, 4096)
SAMPLE_SECONDS = 0.05
# Steps whose actions are drawn beforehand; then they are used again.
ACTIONS = 64
# Targets against Gymnasium's own classes, ratios of times: how many times as long one environment
# may take, and how many times as long 256 of theirs must.
MOST_SLOWER, LEAST_FASTER = 5.0, 20.0
GPU_SIZE, GPU_STEPS_PER_SECOND = 65_536, 100e6


class EnvsOptions(Options):
    """Environment steps per second against Gymnasium's classes and POPGym's."""


@dataclass(frozen=True)
class Pair:
    """A task and the environment it is compared with."""

    task: str
    peer: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def is_gymnasiums(self) -> bool:
        """Whether the peer is one of Gymnasium's own classes."""
        return not self.peer.startswith("popgym-")


_CLEAN = {"observed": "full", "noise": 0.0}
PAIRS = (
    Pair("CartPole", "CartPole-v1", {**_CLEAN, "horizon": 500}),
    Pair("Pendulum", "Pendulum-v1", _CLEAN),
    Pair("Acrobot", "Acrobot-v1", _CLEAN),
    Pair("CartPole", "popgym-NoisyPositionOnlyCartPoleEasy-v0", {"noise": 0.1}),
    Pair("Pendulum", "popgym-NoisyPositionOnlyPendulumEasy-v0", {"noise": 0.1}),
    Pair("Autoencode", "popgym-AutoencodeEasy-v0"),
    Pair("Battleship", "popgym-BattleshipEasy-v0"),
    Pair("Concentration", "popgym-ConcentrationEasy-v0"),
    Pair("CountRecall", "popgym-CountRecallEasy-v0"),
    Pair("HigherLower", "popgym-HigherLowerEasy-v0"),
    Pair("MineSweeper", "popgym-MineSweeperEasy-v0"),
    Pair("RepeatFirst", "popgym-RepeatFirstEasy-v0"),
    Pair("RepeatPrevious", "popgym-RepeatPreviousEasy-v0"),
)


def main(options: EnvsOptions) -> None:
    """Measure, print and write `envs.json`."""
    torch.set_num_threads(1)
    report = Report("envs", options)
    report.data["versions"]["popgym"] = version("popgym")
    for pair in PAIRS[::4] if options.quick else PAIRS:
        compare(report, pair)
    compare_devices(report)
    report.save()


def compare(report: Report, pair: Pair) -> None:
    """Measure a task and its peer at every size."""
    quick = report.options.quick
    rows = []
    for n in SIZES[:2] if quick else SIZES:
        timings = measure(
            {"doxastic": Arm(ours(pair, n)), "peer": Arm(theirs(pair, n))},
            report.options.rounds_or(9),
            sample_seconds=0.0 if quick else SAMPLE_SECONDS,
        )
        faster = ratio(timings["peer"], timings["doxastic"])
        arms = {name: timing.to_json(n) for name, timing in timings.items()}
        report.add("steps", {**vars(pair), "num_envs": n, "arms": arms, "times_as_fast": faster})
        rows.append((str(n), *(rate(n, timings[name]) for name in timings), f"{faster:.2f}"))
        if pair.is_gymnasiums and n == 1:
            slower = ratio(timings["doxastic"], timings["peer"])
            report.target(f"{pair.task} / {pair.peer}, 1 environment", slower, most=MOST_SLOWER)
        if pair.is_gymnasiums and n == 256:
            what = f"{pair.peer} / {pair.task}, 256 environments"
            report.target(what, faster, least=LEAST_FASTER)
    title = f"steps per CPU second: {pair.task} and {pair.peer}"
    report.table(title, ("environments", "doxastic", "peer", "times as fast"), rows)


def rate(n: int, timing: Timing) -> str:
    """Return environment steps per second of CPU time, for a table."""
    return f"{n / timing.median():,.0f}"


def ours(pair: Pair, n: int) -> Callable[[], None]:
    """Return one step of `n` environments of the task, without the previous action."""
    arguments = {**pair.arguments, "previous_action": False}
    task = f"doxastic/{pair.task}-v0"
    if n == 1:
        return single_step(gymnasium.make(task, disable_env_checker=True, **arguments))
    return vector_step(gymnasium.make_vec(task, num_envs=n, **arguments))


def theirs(pair: Pair, n: int) -> Callable[[], None]:
    """Return one step of `n` environments of the peer."""

    def make() -> gymnasium.Env[Any, Any]:
        return gymnasium.make(pair.peer, disable_env_checker=True)

    if n == 1:
        return single_step(make())
    return vector_step(SyncVectorEnv([make] * n, autoreset_mode=AutoresetMode.SAME_STEP))


def single_step(env: gymnasium.Env[Any, Any]) -> Callable[[], None]:
    """Return a step of one environment, which resets it where the episode ends."""
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(ACTIONS)]
    i = 0

    def step() -> None:
        nonlocal i
        i += 1
        _, _, terminated, truncated, _ = env.step(actions[i % ACTIONS])
        if terminated or truncated:
            env.reset()

    return step


def vector_step(env: gymnasium.vector.VectorEnv[Any, Any, Any]) -> Callable[[], None]:
    """Return a step of a vector environment."""
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(ACTIONS)]
    i = 0

    def step() -> None:
        nonlocal i
        i += 1
        env.step(actions[i % ACTIONS])

    return step


def compare_devices(report: Report) -> None:
    """Measure CartPole's dynamics on the GPU, if there is one."""
    if not torch.cuda.is_available():
        report.console.print("No CUDA device: the dynamics on a GPU are not measured.")
        return
    step = gpu_step(GPU_SIZE)
    timing = measure({"gpu": Arm(step)}, report.options.rounds_or(9))["gpu"]
    steps = GPU_SIZE * ACTIONS
    name = torch.cuda.get_device_name()
    report.add("gpu", {"device": name, "num_envs": GPU_SIZE, **timing.to_json(steps)})
    per_second = steps / timing.median("wall")
    report.console.print(f"CartPole on {name}: {per_second:,.0f} steps per second of wall time.")
    what = f"CartPole on a GPU, {GPU_SIZE} environments, million steps per second"
    report.target(what, per_second / 1e6, least=GPU_STEPS_PER_SECOND / 1e6)


def gpu_step(n: int) -> Callable[[], None]:
    """Return `ACTIONS` steps of `n` environments on the GPU, observations and resets included."""
    random = TorchRandom(torch.Generator("cuda").manual_seed(0), torch.float32)
    pomdp = CartPole()
    state = pomdp.reset(n, random)
    actions = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (ACTIONS, n))).cuda()

    def step() -> None:
        nonlocal state
        for action in actions:
            state, _, ended = pomdp.step(state, action, random)
            pomdp.observe(state, random)
            fresh = pomdp.reset(n, random)
            state = {
                name: torch.where(ended.reshape(-1, *[1] * (old.ndim - 1)), fresh[name], old)
                for name, old in state.items()
            }
        torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    main(tyro.cli(EnvsOptions))
