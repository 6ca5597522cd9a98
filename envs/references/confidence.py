"""The value of confidence: what it is worth to a policy to know how noisy its observations are.

Printed for the tasks of the confidence group by `python -m doxastic.envs.references.confidence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import NamedTuple, Protocol

from doxastic.envs.batched import BatchedPOMDP
from doxastic.envs.references.bandit_policy import solve_bandit, solve_bandit_blind
from doxastic.envs.references.light_dark_policy import (
    LightDarkPolicy,
    accuracy,
    solve_light_dark_blind,
)
from doxastic.envs.references.sequential_test import Returns, solve_sequential_test
from doxastic.envs.references.sequential_test_blind import solve_noise_blind
from doxastic.envs.references.tiger import solve_tiger
from doxastic.envs.references.tiger_blind import TigerBlindPolicy
from doxastic.envs.tasks.light_dark import LightDark
from doxastic.envs.tasks.noisy_bandit import NoisyBandit
from doxastic.envs.tasks.sequential_test import SequentialTest
from doxastic.envs.tasks.tiger import Tiger

_EPISODES_PER_LEVEL = 20_000
_SEED = 7

_TASKS: dict[str, BatchedPOMDP] = {
    "SequentialTest, easy": SequentialTest(variant="easy"),
    "SequentialTest, hard": SequentialTest(variant="hard"),
    "SequentialTest, harder": SequentialTest(variant="harder"),
    "Tiger": Tiger(),
    "LightDark": LightDark(),
    "NoisyBandit": NoisyBandit(),
}


class Policy(Protocol):
    """A reference policy and what it is worth."""

    @property
    def value(self) -> float:
        """Expected return under the task's own distribution of noise levels."""

    def returns(self, noise: Sequence[float], episodes: int, seed: int) -> Returns:
        """Return the mean return in the real environment at each noise level."""


class Confidence(NamedTuple):
    """Reference returns of a task."""

    best: Policy
    """The best policy known on the exact posterior."""

    blind: Policy
    """The best policy known on the statistics that suffice where the noise level is known."""

    unseeing: float
    """The best return without any observation."""

    @property
    def value(self) -> float:
        """The value of confidence: the return of `best` minus that of `blind`."""
        return self.best.value - self.blind.value

    @property
    def share(self) -> float:
        """The value of confidence as a share of the return range, `best` minus `unseeing`."""
        return self.value / (self.best.value - self.unseeing)


@singledispatch
def confidence(task: BatchedPOMDP) -> Confidence:
    """Return the reference policies of a task of the confidence group.

    Raises:
        TypeError: If the task is of another group.
        ValueError: If a noise level is 0.
    """
    raise TypeError(
        f"There are no reference policies for {type(task).__name__}; expected SequentialTest, "
        "Tiger, LightDark or NoisyBandit."
    )


@confidence.register
def _(task: SequentialTest) -> Confidence:
    answers = (1 - task.wrong_cost) / 2
    waits = -(task.horizon - 1) * task.wait_cost - task.late_cost
    return Confidence(solve_sequential_test(task), solve_noise_blind(task), max(answers, waits))


@confidence.register
def _(task: Tiger) -> Confidence:
    opens = (task.treasure - task.tiger_cost) / 2
    unseeing = task.horizon * max(opens, -task.listen_cost)
    return Confidence(solve_tiger(task), TigerBlindPolicy(task), unseeing)


@confidence.register
def _(task: LightDark) -> Confidence:
    unseeing = float(accuracy(task.spread**2, task.radius))
    return Confidence(LightDarkPolicy(task), solve_light_dark_blind(task), unseeing)


@confidence.register
def _(task: NoisyBandit) -> Confidence:
    return Confidence(solve_bandit(task), solve_bandit_blind(task), 0.0)


def _rows(name: str, task: BatchedPOMDP) -> tuple[str, list[str]]:
    """Return the row of a task in the table of values, and its rows in that of the levels."""
    result = confidence(task)
    values = (result.best.value, result.blind.value, result.unseeing, result.value)
    row = " | ".join([name, *(f"{value:.3f}" for value in values), f"{result.share:.1%}"])
    best, blind = (
        policy.returns(task.noise, _EPISODES_PER_LEVEL, _SEED)
        for policy in (result.best, result.blind)
    )
    levels = [
        f"| {name} | {level:g} | {best.mean[k]:.3f} | {blind.mean[k]:.3f} "
        f"| {max(best.standard_error[k], blind.standard_error[k]):.3f} |"
        for k, level in enumerate(task.noise)
    ]
    return f"| {row} |", levels


def main() -> None:
    """Print both tables of docs/envs/confidence.md."""
    print("| task | posterior | noise-blind | unseeing | value of confidence | of the range |")
    print("|---|---|---|---|---|---|")
    levels = []
    for name, task in _TASKS.items():
        row, more = _rows(name, task)
        print(row, flush=True)
        levels += more
    print("\n| task | noise | posterior | noise-blind | standard error |")
    print("|---|---|---|---|---|")
    print("\n".join(levels))


if __name__ == "__main__":
    main()
