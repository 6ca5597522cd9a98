"""The tiger problem with ears of unknown quality."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gymnasium
from array_api_compat import device

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, columns, namespace
from doxastic.envs.checks import whole
from doxastic.envs.noise import noise_levels

LISTEN, OPEN_LEFT, OPEN_RIGHT = 0, 1, 2
SILENCE, SOUND_LEFT, SOUND_RIGHT = 0, 1, 2


class Tiger(BatchedPOMDP):
    """Listen for the tiger behind one of two doors, and open the other, again and again.

    ## Description
    A tiger is behind one of two doors, a treasure behind the other. Listening gives a sound from
    the tiger's side, or, with the probability `noise` of the episode, from the wrong one. Opening
    a door ends the round: the tiger is placed anew and the episode goes on, with the same ears.
    How often to listen depends on how good one's ears are, which is never shown: it has to be
    inferred from how well the sounds of a round agree, and is worth remembering for the rounds to
    come. What lay behind the door is not seen. The problem of Kaelbling, Littman and Cassandra
    (Planning and acting in partially observable stochastic domains, 1998) with a hidden accuracy
    and a finite horizon. The optimum is in `doxastic.envs.references.tiger`, the best that ignores
    the accuracy in `doxastic.envs.references.tiger_blind`.

    ## Action Space
    `Discrete(3)`: 0 listens, 1 opens the left door, 2 opens the right door.

    ## Observation Space
    `Discrete(3)`: 0 is silence, at the start of a round, 1 a sound from the left, 2 one from the
    right. A sound is heard after listening only.

    ## Rewards
    `-listen_cost` for listening, `+treasure` for the door without the tiger, `-tiger_cost` for the
    one with it. The defaults are the classic -1, +10 and -100, divided by 100.

    ## Starting State
    The tiger is left or right with equal probability; the noise level is uniform over `noise`.

    ## Episode End
    Terminates after `horizon` steps. The horizon is part of the task.

    ## Arguments
    listen_cost: Cost of listening once.
    treasure: Reward of the right door.
    tiger_cost: Cost of the door with the tiger.
    horizon: Steps of an episode.
    noise: Probability of hearing the wrong side, at most 0.5, or several, one drawn for each
        episode. At 0.5 the sounds say nothing.

    Raises:
        ValueError: If an argument is outside its range.
    """

    max_episode_steps = None
    hidden_names = ("tiger", "noise")

    def __init__(
        self,
        *,
        listen_cost: float = 0.01,
        treasure: float = 0.1,
        tiger_cost: float = 1.0,
        horizon: int = 30,
        noise: float | Sequence[float] = (0.05, 0.2, 0.4),
    ) -> None:
        self.listen_cost = float(listen_cost)
        self.treasure = float(treasure)
        self.tiger_cost = float(tiger_cost)
        self.horizon = whole("horizon", horizon, 1, "step")
        self.noise = noise_levels(noise)
        for name in ("listen_cost", "treasure", "tiger_cost"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; expected a finite number >= 0.")
        if max(self.noise) > 0.5:
            raise ValueError(
                f"noise is {noise!r}; every level is the probability of hearing the wrong side and "
                "must be at most 0.5."
            )
        self.reward_range = (-max(self.listen_cost, self.tiger_cost), self.treasure)
        self.observation_space = gymnasium.spaces.Discrete(3)
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, n: int, random: Random) -> State:
        """Return where the `"tiger"` is (-1 left, 1 right), noise, `"listened"` and `"steps"`."""
        tiger = _placed(n, random)
        xp = namespace(tiger)
        return {
            "tiger": tiger,
            "noise": self.draw_noise(n, random),
            "listened": xp.zeros((n,), dtype=xp.bool, device=device(tiger)),
            "steps": xp.zeros((n,), dtype=xp.int64, device=device(tiger)),
        }

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the next state, the rewards and the terminations; draws one number each."""
        tiger, steps = state["tiger"], state["steps"] + 1
        xp = namespace(tiger)
        listened = action == LISTEN
        # Listening opens "door -3", where the tiger never is.
        eaten = 2 * xp.astype(action, tiger.dtype) - 3 == tiger
        reward = self.treasure - (self.treasure + self.tiger_cost) * xp.astype(eaten, tiger.dtype)
        reward = xp.where(listened, xp.full_like(tiger, -self.listen_cost), reward)
        following = {
            "tiger": xp.where(listened, tiger, _placed(tiger.shape[0], random)),
            "noise": state["noise"],
            "listened": listened,
            "steps": steps,
        }
        return following, reward, steps >= self.horizon

    def observe(self, state: State, random: Random) -> Array:
        """Return the sound that is heard, or silence, `[N]`."""
        tiger = state["tiger"]
        xp = namespace(tiger)
        wrong = random.uniform(tiger.shape) < state["noise"]
        from_right = (tiger > 0) ^ wrong
        sound = xp.astype(from_right, xp.int64) + SOUND_LEFT
        return sound * xp.astype(state["listened"], xp.int64)

    def hidden(self, state: State) -> Array:
        """Return (side of the tiger, noise level), `[N, 2]`."""
        return columns(state["tiger"], state["noise"])


def _placed(n: int, random: Random) -> Array:
    """Return the sides of `n` tigers: -1 is left, 1 is right."""
    u = random.uniform((n,))
    xp = namespace(u)
    return xp.where(u < 0.5, -xp.ones_like(u), xp.ones_like(u))
