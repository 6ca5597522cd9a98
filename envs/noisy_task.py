"""A batched task whose own noise is replaced by another kind."""

from __future__ import annotations

from doxastic.envs.batched import Array, BatchedPOMDP, Random, State, namespace
from doxastic.envs.corruption import make_corruption

_PREFIX = "noise/"


class NoisyTask(BatchedPOMDP):
    """A task without noise of its own, seen through noise of one kind.

    The state is the task's, with the level of this noise as `"noise"` and what the noise carries
    through an episode (an error, the last observations) under names that start with `"noise/"`.
    Constant errors are hidden entries `bias_0, bias_1, ...` behind the task's own.

    Args:
        task: The task, made with a noise of 0.
        noise: Levels, one of which is drawn uniformly for every episode.
        kind: What is done to the observations; see `ObservationNoise`.

    Attributes:
        task: The task that is wrapped.
        kind: What is done to the observations.

    Raises:
        ValueError: If the task has noise of its own, its observations cannot have noise of this
            kind, or a level is outside its range.
    """

    def __init__(self, task: BatchedPOMDP, noise: tuple[float, ...], kind: str) -> None:
        if task.noise != (0.0,):
            raise ValueError(
                f"{type(task).__name__} has noise of its own, of the levels {task.noise}; make it "
                "with noise=0."
            )
        self.task, self.kind = task, kind
        self._corruption = make_corruption(kind, (task.observation_space,), noise)
        self.noise = self._corruption.levels
        self.observation_space = task.observation_space
        self.action_space = task.action_space
        self.max_episode_steps = task.max_episode_steps
        self.reward_range = task.reward_range
        self.hidden_names = task.hidden_names
        if kind == "bias":
            (size,) = task.observation_space.shape or (0,)
            self.hidden_names += tuple(f"bias_{i}" for i in range(size))

    def reset(self, n: int, random: Random) -> State:
        """Return the states of `n` tasks, with a level drawn for each."""
        inner = self.task.reset(n, random)
        level = self.draw_noise(n, random)
        observed = self.task.observe(inner, random)
        memory = self._corruption.start((observed,), level, random)
        return {**inner, "noise": level, **_named(memory)}

    def step(self, state: State, action: Array, random: Random) -> tuple[State, Array, Array]:
        """Return the task's next state, rewards and terminations."""
        inner, reward, terminated = self.task.step(task_state(state), action, random)
        memory = _memory(state)
        if self.kind == "delay":
            memory = self._corruption.advance(memory, (self.task.observe(inner, random),))
        return {**inner, "noise": state["noise"], **_named(memory)}, reward, terminated

    def observe(self, state: State, random: Random) -> Array:
        """Return the task's observation with this noise."""
        observed = self.task.observe(task_state(state), random)
        return self._corruption.apply((observed,), state["noise"], _memory(state), random)[0]

    def hidden(self, state: State) -> Array:
        """Return what is hidden in the task, with the level of this noise, and constant errors."""
        hidden = self.task.hidden(task_state(state))
        xp = namespace(hidden)
        names = self.task.hidden_names
        parts = [hidden]
        if "noise" in names:
            k = names.index("noise")
            parts = [hidden[:, :k], state["noise"][:, None], hidden[:, k + 1 :]]
        if self.kind == "bias":
            parts.append(state[f"{_PREFIX}bias0"])
        return xp.concat(parts, axis=1)


def task_state(state: State) -> State:
    """Return the task's own part of the state of a `NoisyTask`: there the noise is 0."""
    own = {name: array for name, array in state.items() if not name.startswith(_PREFIX)}
    own["noise"] = namespace(state["noise"]).zeros_like(state["noise"])
    return own


def _memory(state: State) -> State:
    """Return the noise's part of a state."""
    start = len(_PREFIX)
    return {name[start:]: state[name] for name in state if name.startswith(_PREFIX)}


def _named(memory: State) -> State:
    return {f"{_PREFIX}{name}": array for name, array in memory.items()}
