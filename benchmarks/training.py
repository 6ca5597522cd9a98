"""Speed of training: doxastic against sb3-contrib's RecurrentPPO and a loop written by hand.

One process, one thread, all in turn; environment steps per second of the process's CPU time, with
everything a step costs: acting, environments, advantages and 4 epochs of 4 minibatches. All train
on CartPole-v1 without its velocities and with rewards divided by 500, in segments of 128 steps,
with layers of width 64, learning rate 1e-3 and entropy weight .01. The second part gives doxastic
its own batched cart-pole, 256 at once, and sb3-contrib the number of environments that suits it
best. The third measures the memory of a large rollout.

    python benchmarks/training.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch
import tyro
from doxastic_trainer import build_trainer
from harness import Arm, Options, Report, Timing, measure, ratio
from peers.contrib_ppo import build_contrib
from peers.environments import HORIZON, vector_positions_only
from peers.lstm_ppo import RecurrentPPO, RNNName, Settings
from rollout_memory import rollout_memory

from doxastic.envs.make import EnvConfig, make_vector_env
from doxastic.memory.belief import ReadoutName
from doxastic.memory.build import MemoryConfig

WIDTH = 64
CONTRIB = "sb3-contrib"
HAND_WRITTEN = "hand-written LSTM"

# The default readout, and the plain summary of the core.
OURS: tuple[ReadoutName, ...] = ("moments", "none")

Update = Callable[[], object]


class TrainingOptions(Options):
    """Steps per CPU second of whole training loops."""


def main(options: TrainingOptions) -> None:
    """Measure, print and write `training.json`."""
    torch.set_num_threads(1)
    report = Report("training", options)
    report_memory(report)
    compare_same_environments(report)
    compare_many_environments(report)
    report.save()


def compare_same_environments(report: Report) -> None:
    """Measure all arms on the same environments, stepped one after the other."""
    num_envs, steps = (4, 8) if report.options.quick else (16, 128)
    arms = {
        f"doxastic {readout}": doxastic_arm(
            MemoryConfig(width=WIDTH, readout=readout), num_envs, steps
        )
        for readout in OURS
    }
    arms["doxastic LSTM"] = doxastic_arm(MemoryConfig(kind="lstm", width=WIDTH), num_envs, steps)
    arms[CONTRIB] = contrib_arm(num_envs, steps)
    for rnn in get_args(RNNName):
        arms[f"hand-written {rnn.upper()}"] = hand_written_arm(rnn, num_envs, steps)
    timings = measure(
        {name: Arm(update) for name, update in arms.items()}, report.options.rounds_or(5)
    )
    work = dict.fromkeys(arms, num_envs * steps)
    _show(report, "same_environments", f"{num_envs} CartPole-v1 x {steps} steps", timings, work)
    for peer, least in ((CONTRIB, 4.0), (HAND_WRITTEN, 1.0)):
        for readout in OURS:
            speed = ratio(timings[peer], timings[f"doxastic {readout}"])
            report.target(f"doxastic {readout} / {peer}, speed", speed, least=least)


def compare_many_environments(report: Report) -> None:
    """Measure doxastic on its own batched environments against sb3-contrib at its best."""
    quick = report.options.quick
    num_envs, steps, sizes = (8, 8, (4, 8)) if quick else (256, 128, (16, 64, 256))
    env = make_vector_env(
        EnvConfig(
            id="doxastic/CartPole-v0", num_envs=num_envs, noise=(0.0,), previous_action=False,
            kwargs={"horizon": HORIZON},
        )
    )  # fmt: skip
    ours = f"doxastic {OURS[0]}, {num_envs}"
    memory = MemoryConfig(width=WIDTH, readout=OURS[0])
    arms: dict[str, Update] = {ours: build_trainer(env, memory, steps).update}
    work = {ours: num_envs * steps}
    for size in sizes:
        name = f"{CONTRIB}, {size}"
        arms[name], work[name] = contrib_arm(size, steps), size * steps
    timings = measure(
        {name: Arm(update) for name, update in arms.items()}, report.options.rounds_or(3)
    )
    _show(report, "many_environments", f"many environments x {steps} steps", timings, work)
    speeds = {
        name: ratio(timings[name], timings[ours]) * work[ours] / work[name]
        for name in arms
        if name != ours
    }
    best = min(speeds, key=lambda name: speeds[name])
    report.target(f"{ours} / {best}, speed", speeds[best], least=8.0)


def report_memory(report: Report) -> None:
    """Measure the memory of a rollout of 256 environments and a core of 4 heads of width 32."""
    sizes = rollout_memory(*((8, 8, 4, 32) if report.options.quick else (256, 128, 4, 32)))
    report.add("rollout_memory", sizes)
    rows = [
        (name, "unknown" if sizes[name] is None else f"{sizes[name]:.1f}")
        for name in ("tensors", "memory_state", "growth_rollout", "growth_update")
    ]
    title = f"memory of {sizes['num_envs']} environments x {sizes['segment_steps']} steps"
    report.table(title, ("", "MB"), rows)
    largest = max(sizes["tensors"], sizes["growth_rollout"] or 0.0)
    report.target("MB of the rollout: tensors or growth, the larger", largest, most=300.0)


def doxastic_arm(memory: MemoryConfig, num_envs: int, steps: int) -> Update:
    """Return one update of doxastic's trainer."""
    return build_trainer(vector_positions_only(num_envs), memory, steps).update


def hand_written_arm(rnn: RNNName, num_envs: int, steps: int) -> Update:
    """Return one update of the loop written by hand."""
    settings = Settings(rnn=rnn, width=WIDTH, segment_steps=steps)
    return RecurrentPPO(vector_positions_only(num_envs), settings).update


def contrib_arm(num_envs: int, steps: int) -> Update:
    """Return one update of sb3-contrib's trainer, going on from its last."""
    model = build_contrib(num_envs, steps, WIDTH)
    # Its log would be printed after every iteration.
    silent = 10**9

    def update() -> object:
        return model.learn(num_envs * steps, log_interval=silent, reset_num_timesteps=False)

    return update


def _show(
    report: Report, section: str, title: str, timings: dict[str, Timing], work: dict[str, int]
) -> None:
    """Print and keep steps per CPU second, and how many times sb3-contrib's first they are."""
    reference = next(name for name in timings if name.startswith(CONTRIB))
    speeds = {
        name: ratio(timings[reference], timing) * work[name] / work[reference]
        for name, timing in timings.items()
    }
    for name, timing in timings.items():
        report.add(
            section,
            {
                "arm": name,
                "steps_per_update": work[name],
                "width": WIDTH,
                **timing.to_json(work[name]),
                "speed_over": {reference: speeds[name]},
            },
        )
    report.table(
        title,
        ("", "steps / CPU s", "fastest", f"over {reference}"),
        [
            (
                name,
                f"{work[name] / timing.median():.0f}",
                f"{work[name] / min(timing.cpu):.0f}",
                f"{speeds[name]:.2f}",
            )
            for name, timing in timings.items()
        ],
    )


if __name__ == "__main__":
    main(tyro.cli(TrainingOptions))
