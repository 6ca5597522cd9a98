"""Speed inside Stable-Baselines3: doxastic's policies in RecurrentPPO against its LSTM.

One process, one thread, all in turn; environment steps per second of the process's CPU time, with
everything a step costs, over whole trainings: they begin with short episodes and, as all arms
learn, end with long ones. All train on CartPole-v1 without its velocities, 16 environments, in
segments of 128 steps, 4 epochs of 4 minibatches, width 64, heads without hidden layers. The
peers are sb3-contrib's LSTM policy as it comes and with its loop over time replaced by one exact
call. The second part adds up the bytes of the rollout buffers.

    python benchmarks/sb3.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import tyro
from harness import Arm, Options, Report, Timing, measure, ratio
from peers.contrib_one_call import OneCallLstmPolicy
from peers.environments import positions_only
from sb3_contrib import RecurrentPPO
from sb3_contrib.ppo_recurrent import MlpLstmPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from doxastic.agents.sb3 import BeliefPolicy, BeliefRecurrentPPO

WIDTH = 64
STOCK, FIXED = "sb3-contrib's LSTM", "its LSTM in one call"
BELIEF, LEAN = "RecurrentPPO(BeliefPolicy)", "BeliefRecurrentPPO"
LEAN_LSTM = "BeliefRecurrentPPO, LSTM"

Update = Callable[[], object]


class StableBaselinesOptions(Options):
    """Steps per CPU second inside Stable-Baselines3."""


def main(options: StableBaselinesOptions) -> None:
    """Measure, print and write `sb3.json`."""
    torch.set_num_threads(1)
    report = Report("sb3", options)
    num_envs, steps = (4, 8) if options.quick else (16, 128)
    models = {name: build(name, num_envs, steps) for name in ARMS}
    compare_speed(report, models, num_envs * steps)
    compare_buffers(report, models)
    report.save()


def compare_speed(report: Report, models: dict[str, RecurrentPPO], work: int) -> None:
    """Measure whole updates, each model going on from its last."""
    arms = {name: Arm(update_of(model, work)) for name, model in models.items()}
    timings = measure(arms, report.options.rounds_or(20))
    stock = timings[STOCK]
    early, late = (
        {
            name: ratio(quarter(stock, last=last), quarter(timing, last=last))
            for name, timing in timings.items()
        }
        for last in (False, True)
    )
    for name, timing in timings.items():
        entry = {"arm": name, "steps_per_update": work, "width": WIDTH, **timing.to_json(work)}
        entry["speed_over"] = {peer: ratio(timings[peer], timing) for peer in (STOCK, FIXED)}
        entry["speed_over_first_quarter"] = {STOCK: early[name]}
        entry["speed_over_last_quarter"] = {STOCK: late[name]}
        report.add("speed", entry)
    report.table(
        "steps per CPU second",
        ("", "median", "over stock", "at first", "at last", "over one call"),
        [
            (
                name,
                f"{work / statistics.median(timing.cpu):.0f}",
                f"{ratio(timings[STOCK], timing):.2f}",
                f"{early[name]:.2f}",
                f"{late[name]:.2f}",
                f"{ratio(timings[FIXED], timing):.2f}",
            )
            for name, timing in timings.items()
        ],
    )
    for name in (BELIEF, LEAN):
        report.target(f"{name} / {STOCK}, speed", ratio(timings[STOCK], timings[name]), least=3.0)
        report.target(f"{name} / {FIXED}, speed", ratio(timings[FIXED], timings[name]), least=1.0)


def quarter(timings: Timing, *, last: bool) -> Timing:
    """Return the first or the last quarter of the rounds."""
    count = max(1, len(timings.cpu) // 4)
    rounds = slice(-count, None) if last else slice(count)
    return Timing(timings.cpu[rounds], timings.wall[rounds])


def compare_buffers(report: Report, models: dict[str, RecurrentPPO]) -> None:
    """Add up what every buffer holds, states included."""
    sizes = {name: buffer_bytes(model) for name, model in models.items()}
    for name, size in sizes.items():
        report.add("buffer", {"arm": name, "bytes": size})
    rows = [(name, f"{size / 1e6:.2f}") for name, size in sizes.items()]
    report.table("rollout buffer", ("", "MB"), rows)


def buffer_bytes(model: RecurrentPPO) -> int:
    """Return the bytes of a rollout buffer's arrays and of the states beside them."""
    arrays = [part for part in vars(model.rollout_buffer).values() if isinstance(part, np.ndarray)]
    policy: Any = model.policy
    beside = (
        getattr(model.rollout_buffer, "store", None),
        *(getattr(memory, "kept", None) for memory in (policy.lstm_actor, policy.lstm_critic)),
    )
    return sum(part.nbytes for part in (*arrays, *filter(None, beside)))


ARMS: dict[str, tuple[type[RecurrentPPO], Any, dict[str, Any]]] = {
    STOCK: (RecurrentPPO, MlpLstmPolicy, {"lstm_hidden_size": WIDTH}),
    FIXED: (RecurrentPPO, OneCallLstmPolicy, {"lstm_hidden_size": WIDTH}),
    BELIEF: (RecurrentPPO, BeliefPolicy, {"width": WIDTH}),
    LEAN: (BeliefRecurrentPPO, BeliefPolicy, {"width": WIDTH}),
    LEAN_LSTM: (BeliefRecurrentPPO, BeliefPolicy, {"width": WIDTH, "memory": "lstm"}),
}


def build(name: str, num_envs: int, segment_steps: int) -> RecurrentPPO:
    """Return the model of an arm."""
    algorithm, policy, kwargs = ARMS[name]
    return algorithm(
        policy,
        DummyVecEnv([positions_only] * num_envs),
        learning_rate=1e-3,
        n_steps=segment_steps,
        batch_size=num_envs * segment_steps // 4,
        n_epochs=4,
        ent_coef=0.01,
        policy_kwargs={"net_arch": [], **kwargs},
        seed=0,
        device="cpu",
    )


def update_of(model: RecurrentPPO, work: int) -> Update:
    """Return one update of a model, without its log."""
    return lambda: model.learn(work, log_interval=10**9, reset_num_timesteps=False)


if __name__ == "__main__":
    main(tyro.cli(StableBaselinesOptions))
