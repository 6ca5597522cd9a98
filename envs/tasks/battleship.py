"""Ships lie hidden on a board and are to be hit, shot by shot."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import gymnasium
from array_api_compat import device

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, namespace, picked, replaced
from doxastic.envs.checks import whole
from doxastic.envs.tasks.symbols import noisy_symbols, symbol_noise_levels

MISS, HIT = 0, 1


class Battleship(BatchedPOMDP):
    """Hit all ships on a hidden board with as few shots as possible.

    ## Description
    Ships lie on a square board that is never shown; the agent names a square and is told whether
    it hit. That asks for what was shot at and hit where, and for a plan from what it says about
    the ships: the observation alone does not even say which square it belongs to, so keep the
    previous action in it. Observation, reward, termination and truncation are those of POPGym's
    Battleship (`popgym/envs/battleship.py`, version 1.0) for the same board, except that an
    episode that ends with its last step counts as terminated alone, and not as truncated too.

    ## Action Space
    `MultiDiscrete([size, size])`: row and column of the square to shoot at.

    ## Observation Space
    `Discrete(2)`: 1 after a hit of a square not shot at before, else 0; with probability `noise` a
    uniformly drawn one of the two instead.

    ## Rewards
    `1 / ship squares` for a hit, `-1 / other squares` for a miss or a square shot at before. Going
    through all squares in any order returns at least 0; 1, from hits alone, is a bound that no
    agent reaches. The best return is not known.

    ## Starting State
    The ships are placed one after the other in the order given, each uniformly among the places
    where it covers no other ship; they may touch. The noise level is uniform over `noise`.

    ## Episode End
    Terminates when all squares of ships are hit; is truncated after `size * size` steps.

    ## Arguments
    size: Squares along each side of the board; 8, 10 and 12 are POPGym's Easy, Medium and Hard.
    ships: Squares covered by each ship, all in a row.
    noise: Probability that the observation is replaced by a uniformly drawn one, or several, one
        drawn for each episode.

    Raises:
        ValueError: If an argument is outside its range, or if counting places cannot show that
            every ship finds one wherever those before it lie, as on crowded boards.
    """

    def __init__(
        self,
        *,
        size: int = 8,
        ships: Sequence[int] = (2, 3, 3, 4),
        noise: float | Sequence[float] = 0.0,
    ) -> None:
        self.size = whole("size", size, 2, "squares")
        self.ships = tuple(whole(f"ships[{i}]", ship) for i, ship in enumerate(ships))
        if not self.ships or min(self.ships) < 1 or max(self.ships) > self.size:
            raise ValueError(
                f"ships is {self.ships}; expected one ship or more, of 1 to {self.size} squares."
            )
        self.squares, self.targets = self.size**2, sum(self.ships)
        _check_places(self.size, self.ships)
        if self.targets >= self.squares:
            raise ValueError(f"The ships {self.ships} cover the whole board of size {self.size}.")
        self.noise = symbol_noise_levels(noise)
        self.max_episode_steps = self.squares
        self._hit, self._miss = 1 / self.targets, -1 / (self.squares - self.targets)
        self.reward_range = (self._miss, self._hit)
        self.observation_space = gymnasium.spaces.Discrete(2)
        self.action_space = gymnasium.spaces.MultiDiscrete([self.size, self.size])
        squares = [f"{i}_{j}" for i in range(self.size) for j in range(self.size)]
        ship, shot = ([f"{name}_{square}" for square in squares] for name in ("ship", "shot"))
        self.hidden_names = (*ship, *shot, "hit", "noise")

    def reset(self, n: int, random: Random) -> State:
        """Return `n` boards.

        Which squares hold a `"ship"` and which were `"shot"` at, each `[n, size * size]`; how many
        `"hits"` there were and whether the last shot was a `"hit"`, each `[n]`; and the noise.
        """
        u = random.uniform((n, len(self.ships)))
        xp = namespace(u)
        ship = xp.zeros((n, self.squares), dtype=u.dtype, device=device(u))
        for i, length in enumerate(self.ships):
            ship = ship + self._place(ship, length, u[:, i])
        return {
            "ship": ship > 0,
            "shot": xp.zeros((n, self.squares), dtype=xp.bool, device=device(u)),
            "hits": xp.zeros((n,), dtype=xp.int64, device=device(u)),
            "hit": xp.zeros((n,), dtype=xp.bool, device=device(u)),
            "noise": self.draw_noise(n, random),
        }

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations; draws nothing."""
        ship, shot, noise = state["ship"], state["shot"], state["noise"]
        xp = namespace(noise)
        square = action[:, 0] * self.size + action[:, 1]
        hit = picked(ship, square) & ~picked(shot, square)
        hits = state["hits"] + hit
        shot = replaced(shot, square, True)
        was_hit = xp.astype(hit, noise.dtype)
        reward = self._hit * was_hit + self._miss * (1 - was_hit)
        after = {"ship": ship, "shot": shot, "hits": hits, "hit": hit, "noise": noise}
        return after, reward, hits == self.targets

    def observe(self, state: State, random: Random) -> Array:
        """Return whether the last shot was a hit, `[N]`."""
        hit = state["hit"]
        hit = namespace(hit).astype(hit, namespace(hit).int8)
        return noisy_symbols(hit, 2, state["noise"], random)

    def hidden(self, state: State) -> Array:
        """Return where ships are, where was shot at, whether the last shot hit, and the noise."""
        noise = state["noise"]
        xp = namespace(noise)
        entries = [state["ship"], state["shot"], state["hit"][:, None], noise[:, None]]
        return xp.concat([xp.astype(x, noise.dtype) for x in entries], axis=1)

    def _place(self, taken: Array, length: int, u: Array) -> Array:
        """Return the squares of one ship, uniform among the free places, as 0 and 1 `[n, squares]`.

        Args:
            taken: Squares of other ships, 1 where there is one.
            length: Squares of this ship.
            u: One uniform number per board.
        """
        xp = namespace(u)
        places = _places(self.size, length, xp, u.dtype, device(u))
        free = xp.astype(taken @ places.T == 0, u.dtype)
        # The place at which the number of free ones up to it first exceeds u times their number.
        count = xp.cumulative_sum(free, axis=1)
        chosen = xp.astype(count <= (u * count[:, -1])[:, None], xp.int64)
        return places[xp.sum(chosen, axis=1), :]


@lru_cache(maxsize=64)
def _places(size: int, length: int, xp: Any, dtype: Any, where: Any) -> Array:
    """Return the squares of every place of a ship, 0 or 1, `[places, size * size]`."""
    rows = [
        [i * size + j + k for k in range(length)]
        for i in range(size)
        for j in range(size - length + 1)
    ]
    columns = [[square % size * size + square // size for square in row] for row in rows]
    # A ship of one square lies the same way in a row and in a column.
    places = rows + columns if length > 1 else rows
    values = [[float(square in place) for square in range(size**2)] for place in places]
    return xp.asarray(values, dtype=dtype, device=where)


def _check_places(size: int, ships: tuple[int, ...]) -> None:
    """Raise `ValueError` unless counting shows that every ship finds a free place.

    A ship of b squares has `k = size - b + 1` places in each line. One of a squares touches at
    most `min(a + b - 1, k)` of them in its own line, and `min(b, k)` in each of the a lines across.
    What it counts may be taken twice over: some boards are refused on which all ships always fit.
    """
    for i, b in enumerate(ships):
        k = size - b + 1
        places = 2 * size * k if b > 1 else size**2
        blocked = sum(min(a + b - 1, k) + a * min(b, k) if b > 1 else a for a in ships[:i])
        if blocked >= places:
            raise ValueError(
                f"It cannot be shown that ship {i} of {ships} always finds a place on a board of "
                f"size {size}: up to {blocked} of its {places} places may be taken. Take a larger "
                "board, or fewer or shorter ships."
            )
