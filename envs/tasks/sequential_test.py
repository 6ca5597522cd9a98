"""A sequential test of two hypotheses with an unknown noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import gymnasium
import numpy as np
from array_api_compat import device

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, namespace
from doxastic.envs.checks import whole
from doxastic.envs.noise import noise_levels

WAIT, LEFT, RIGHT = 0, 1, 2


class _Variant(NamedTuple):
    wait_cost: float
    wrong_cost: float
    late_cost: float | None
    horizon: int
    noise: tuple[float, ...]


VARIANTS: dict[str, _Variant] = {
    "easy": _Variant(0.02, 1.0, None, 40, (0.5, 1.0, 2.0)),
    "hard": _Variant(0.01, 3.0, None, 40, (0.25, 0.5, 1.0, 2.0, 4.0)),
    "harder": _Variant(0.01, 10.0, 0.0, 15, (0.25, 0.5, 1.0, 2.0, 4.0)),
}


class SequentialTest(BatchedPOMDP):
    """Decide from noisy observations whether a hidden sign is negative or positive.

    ## Description
    A sign s in {-1, +1} and a noise level sigma are drawn at the start of the episode; every
    observation is o = s + sigma * epsilon with a standard normal epsilon. The agent may wait for
    another observation or commit to an answer. When to stop depends on the posterior of s, hence
    on sigma, which is never shown: an agent that tracks only the mean of what it saw stops too
    late under little noise and too early under much. The optimum, from dynamic programming
    on (n, sum o, sum o^2), is .897 on "easy", .853 on "hard" and .734 on "harder"
    (`doxastic.envs.references.sequential_test.solve_sequential_test`). The best policy found on
    (n, sum o) alone gets .882, .792 and .617
    (`doxastic.envs.references.sequential_test_blind.solve_noise_blind`): .014, .061 and .117 are
    what knowing one's confidence is worth. A sequential probability ratio test (Wald, 1945) with
    unknown variance.

    ## Action Space
    `Discrete(3)`: 0 waits, 1 answers "left" (s = -1), 2 answers "right" (s = +1).

    ## Observation Space
    `Box(-inf, inf, (1,), float32)`: the observation o, without unit.

    ## Rewards
    `-wait_cost` for waiting, `+1` for the right answer, `-wrong_cost` for the wrong one. Waiting
    at step `horizon`, when an answer is due, costs `late_cost`: as much as a wrong answer, except
    on "harder", where it is better to give none than a doubtful one.

    ## Starting State
    s is -1 or +1 with equal probability, sigma uniform over `noise`. The first observation comes
    with the reset, free of charge, so that an answer may use 1 to `horizon` observations.

    ## Episode End
    Terminates with an answer or with step `horizon`. The horizon is part of the task, so its end
    is a termination, never a truncation: there is nothing left to bootstrap from.

    ## Arguments
    variant: "easy" (wait_cost 0.02, wrong_cost 1, horizon 40, noise 0.5, 1, 2), "hard" (0.01, 3,
        40, noise 0.25, 0.5, 1, 2, 4) or "harder" (0.01, 10, 15, the same noise, late_cost 0):
        defaults of the arguments below.
    wait_cost: Cost of waiting one step.
    wrong_cost: Cost of a wrong answer.
    late_cost: Cost of no answer by the horizon; `wrong_cost` on "easy" and "hard".
    horizon: Step by which an answer is due.
    noise: Standard deviation sigma of an observation, or several, one drawn for each episode.

    Raises:
        ValueError: If an argument is outside its range.
    """

    max_episode_steps = None
    hidden_names = ("sign", "noise")

    def __init__(
        self,
        *,
        variant: Literal["easy", "hard", "harder"] = "easy",
        wait_cost: float | None = None,
        wrong_cost: float | None = None,
        late_cost: float | None = None,
        horizon: int | None = None,
        noise: float | Sequence[float] | None = None,
    ) -> None:
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r}; expected one of {list(VARIANTS)}.")
        default = VARIANTS[variant]
        self.wait_cost = default.wait_cost if wait_cost is None else float(wait_cost)
        self.wrong_cost = default.wrong_cost if wrong_cost is None else float(wrong_cost)
        late_cost = default.late_cost if late_cost is None else float(late_cost)
        self.late_cost = self.wrong_cost if late_cost is None else late_cost
        horizon = default.horizon if horizon is None else horizon
        self.horizon = whole("horizon", horizon, 1, "step")
        self.noise = noise_levels(default.noise if noise is None else noise)
        for name in ("wait_cost", "wrong_cost", "late_cost"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; expected a finite number >= 0.")
        self.reward_range = (-max(self.wrong_cost, self.wait_cost, self.late_cost), 1.0)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, n: int, random: Random) -> State:
        """Return `"sign"`, `"noise"` and the number of `"steps"` taken, each `[n]`."""
        u = random.uniform((n,))
        xp = namespace(u)
        return {
            "sign": xp.where(u < 0.5, -xp.ones_like(u), xp.ones_like(u)),
            "noise": self.draw_noise(n, random),
            "steps": xp.zeros((n,), dtype=xp.int64, device=device(u)),
        }

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations; draws nothing."""
        sign = state["sign"]
        xp = namespace(sign)
        steps = state["steps"] + 1
        waits, late = action == WAIT, steps >= self.horizon
        right = 2 * xp.astype(action, sign.dtype) - 3 == sign
        answer = xp.astype(right, sign.dtype) * (1 + self.wrong_cost) - self.wrong_cost
        costs = xp.full_like(sign, -self.wait_cost), xp.full_like(sign, -self.late_cost)
        reward = xp.where(waits, xp.where(late, costs[1], costs[0]), answer)
        return {"sign": sign, "noise": state["noise"], "steps": steps}, reward, ~waits | late

    def observe(self, state: State, random: Random) -> Array:
        """Return s + sigma * epsilon, `[N, 1]`."""
        sign = state["sign"]
        return (sign + state["noise"] * random.normal(sign.shape))[:, None]

    def hidden(self, state: State) -> Array:
        """Return (s, sigma), `[N, 2]`."""
        xp = namespace(state["sign"])
        return xp.stack([state["sign"], state["noise"]], axis=1)
