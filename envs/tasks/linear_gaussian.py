"""A linear system to be held at the origin, seen through sensors of unknown noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gymnasium
import numpy as np
import numpy.typing as npt

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, constant, namespace
from doxastic.envs.checks import whole
from doxastic.envs.noise import noise_levels

Matrix = Sequence[Sequence[float]]
FloatArray = npt.NDArray[np.float64]

# A mass of 1 kg on a damped spring, in steps of 0.1 s: position (m), speed (m/s), force (N).
TIME_STEP = 0.1
STIFFNESS = 1.0
DAMPING = 0.2
_DYNAMICS = ((1.0, TIME_STEP), (-STIFFNESS * TIME_STEP, 1.0 - DAMPING * TIME_STEP))
_CONTROL = ((0.0,), (TIME_STEP,))
_DISTURBANCE = ((0.0,), (0.2,))
_OBSERVATION = ((1.0, 0.0),)
_STATE_COST = ((1.0, 0.0), (0.0, 0.0))
_ACTION_COST = ((0.1,),)
_START = ((0.5, 0.0), (0.0, 0.5))


class LinearGaussian(BatchedPOMDP):
    """A noisy linear system with a quadratic cost, whose optimal return is known.

    ## Description
    x' = A x + B u + G w with standard normal w; the agent sees o = C x + sigma v with standard
    normal v and a scale sigma that is drawn at the start of the episode and never shown. How far
    an action should follow the last observation depends on sigma, which shows only in how
    observations scatter. By default a mass on a damped spring (1 kg, 1 N/m, 0.2 N s/m, Euler
    steps of 0.1 s), shaken by random forces, is to be held at the origin, and its position is
    seen. The linear-quadratic-Gaussian problem with an unknown noise level, whose exact posterior
    is in `doxastic.envs.references.kalman`. The optimum returns -.513, the best policy that is
    linear in what it saw, and so cannot tell how noisy that is, -.818, doing nothing -1.238
    (`doxastic.envs.references.lqr.LinearGaussianSolution`).

    ## Action Space
    `Box(-action_limit, action_limit, (A,), float32)`: u; by default a force in N.

    ## Observation Space
    `Box(-inf, inf, (O,), float32)`: o; by default a position in m.

    ## Rewards
    `-(x^T Q x + u^T R u) / horizon` with the state before the step, so that the return is minus
    the mean cost.

    ## Starting State
    x = F z with standard normal z; sigma is uniform over `noise`.

    ## Episode End
    Never terminates; is truncated after `horizon` steps.

    ## Arguments
    noise: Standard deviation sigma of every entry of the observation, or several levels of which
        one is drawn for each episode.
    dynamics: A, `[D, D]`.
    control: B, `[D, A]`.
    disturbance: G, `[D, W]`.
    observation: C, `[O, D]`.
    state_cost: Q, `[D, D]`, symmetric and positive semi-definite.
    action_cost: R, `[A, A]`, symmetric and positive definite.
    start: F, `[D, Z]`.
    action_limit: Largest absolute value of an entry of u. The optimum knows no limit: choose one
        that it hardly ever needs.
    horizon: Steps after which the episode is truncated.

    Raises:
        ValueError: If an argument is outside its range, or the matrices do not fit together.
    """

    max_episode_steps: int
    action_space: gymnasium.spaces.Box

    def __init__(
        self,
        *,
        noise: float | Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0),
        dynamics: Matrix = _DYNAMICS,
        control: Matrix = _CONTROL,
        disturbance: Matrix = _DISTURBANCE,
        observation: Matrix = _OBSERVATION,
        state_cost: Matrix = _STATE_COST,
        action_cost: Matrix = _ACTION_COST,
        start: Matrix = _START,
        action_limit: float = 5.0,
        horizon: int = 200,
    ) -> None:
        if not (math.isfinite(action_limit) and action_limit > 0):
            raise ValueError(f"action_limit is {action_limit}; expected a finite number > 0.")
        horizon = whole("horizon", horizon, 1, "step")
        self.noise = noise_levels(noise)
        size, actions = len(dynamics), len(action_cost)
        self.dynamics = _matrix("dynamics", dynamics, (size, size))
        self.control = _matrix("control", control, (size, actions))
        self.disturbance = _matrix("disturbance", disturbance, (size, None))
        self.observation = _matrix("observation", observation, (None, size))
        self.state_cost = _matrix("state_cost", state_cost, (size, size))
        self.action_cost = _matrix("action_cost", action_cost, (actions, actions))
        self.start = _matrix("start", start, (size, None))
        _require_definite("state_cost", self.state_cost, strictly=False)
        _require_definite("action_cost", self.action_cost, strictly=True)
        self.max_episode_steps = horizon
        self.reward_range = (-math.inf, 0.0)
        self.hidden_names = (*(f"x{i + 1}" for i in range(size)), "noise")
        seen = self.observation.shape[0]
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (seen,), np.float32)
        limit = np.full(actions, action_limit, dtype=np.float32)
        self.action_space = gymnasium.spaces.Box(-limit, limit, dtype=np.float32)
        # One product of (x, u) for both (A x + B u) and (Q x, R u).
        self._product = _tuples(
            np.block(
                [
                    [self.dynamics.T, self.state_cost, np.zeros((size, actions))],
                    [self.control.T, np.zeros((actions, size)), self.action_cost],
                ]
            )
        )
        self._disturbance, self._observation, self._start = (
            _tuples(matrix.T) for matrix in (self.disturbance, self.observation, self.start)
        )

    def reset(self, n: int, random: Random) -> State:
        """Return the states `"x"` `[n, D]` of `n` systems and their noise `[n]`."""
        z = random.normal((n, len(self._start)))
        return {"x": z @ constant(self._start, z), "noise": self.draw_noise(n, random)}

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and terminations that are all false."""
        x = state["x"]
        xp, (n, size) = namespace(x), x.shape
        both = xp.concat([x, xp.astype(action, x.dtype)], axis=1)
        product = both @ constant(self._product, x)
        cost = xp.sum(both * product[:, size:], axis=1)
        disturbance = random.normal((n, len(self._disturbance)))
        moved = product[:, :size] + disturbance @ constant(self._disturbance, x)
        reward = cost * (-1 / self.max_episode_steps)
        terminated = xp.zeros_like(cost, dtype=xp.bool)
        return {"x": moved, "noise": state["noise"]}, reward, terminated

    def observe(self, state: State, random: Random) -> Array:
        """Return C x + sigma v, `[N, O]`."""
        seen = state["x"] @ constant(self._observation, state["x"])
        return seen + state["noise"][:, None] * random.normal(seen.shape)

    def hidden(self, state: State) -> Array:
        """Return (x, sigma), `[N, D + 1]`."""
        xp = namespace(state["x"])
        return xp.concat([state["x"], state["noise"][:, None]], axis=1)


def _matrix(name: str, rows: Matrix, shape: tuple[int | None, int | None]) -> FloatArray:
    """Return a matrix of finite numbers; `None` stands for any positive size.

    Raises:
        ValueError: If it is none, or of another shape.
    """
    try:
        matrix = np.array(rows, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{name} is {rows!r}; expected rows of equal length.") from error
    wanted = tuple("any" if size is None else size for size in shape)
    if matrix.ndim != 2 or any(
        size not in (None, found) for size, found in zip(shape, matrix.shape, strict=True)
    ):
        raise ValueError(f"{name} has shape {matrix.shape}; expected {wanted}.")
    if matrix.size == 0 or not np.isfinite(matrix).all():
        raise ValueError(f"{name} is {rows!r}; expected finite numbers.")
    return matrix


def _require_definite(name: str, matrix: FloatArray, *, strictly: bool) -> None:
    """Raise `ValueError` if a cost is not symmetric or takes something off."""
    eigenvalues = np.linalg.eigvalsh(matrix)
    least, rounding = eigenvalues[0], 1e-12 * np.abs(eigenvalues).max()
    low = least <= rounding if strictly else least < -rounding
    if low or not np.array_equal(matrix, matrix.T):
        kind = "positive definite" if strictly else "positive semi-definite"
        raise ValueError(f"{name} is {matrix.tolist()}; expected a symmetric {kind} matrix.")


def _tuples(matrix: FloatArray) -> tuple[tuple[float, ...], ...]:
    """Return the rows of a matrix, as `constant` takes them."""
    return tuple(tuple(row) for row in matrix.tolist())
