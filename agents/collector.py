"""Rollouts from vector environments, the memory's state stored once per segment."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from tensordict import TensorDict
from torch import Tensor

from doxastic.agents.encoders import Observation, to_tensors
from doxastic.agents.episodes import EpisodeLog
from doxastic.agents.normalization import ObservationNormalizer
from doxastic.agents.policy import ActorCritic
from doxastic.agents.trees import (
    concatenate_rows,
    final_observations,
    first_non_finite,
    flatten_tree,
    tree_map,
    unflatten_tree,
)
from doxastic.envs.gymnasium import POMDPVectorEnv

_logger = logging.getLogger(__name__)


class EnvironmentFailure(RuntimeError):
    """An environment raised, or returned what no agent can learn from."""


class Collector:
    """Collects segments of `T` steps over `N` environments that reset in the same step.

    A segment stores the memory's state once, before its first step, and every flag needed
    to run the memory over it again. What follows a step is valued as what it is: zero after
    termination, the value of the true final observation after truncation, the value of the
    next observation otherwise.

    Args:
        policy: Acts and values; its memory carries the state.
        env: A vector environment with SAME_STEP autoreset.
        segment_steps: Steps `T` of a segment.
        seed: Seed of the environments and of the sampling of actions.
        device: Where the policy lives.
        normalizer: Scales observations. It merges a segment's observations after the
            segment, so that one scale holds within it.
        with_hidden: Record the hidden states too, which only the tasks of doxastic tell.
        with_next_observation: Record what was observed after every step too.

    Raises:
        ValueError: If the environment resets itself in another step, or is to tell a hidden state
            that it does not.
    """

    def __init__(
        self,
        policy: ActorCritic,
        env: VectorEnv,
        segment_steps: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        normalizer: ObservationNormalizer | None = None,
        with_hidden: bool = False,
        with_next_observation: bool = False,
    ) -> None:
        if segment_steps < 1:
            raise ValueError(f"segment_steps is {segment_steps}; expected at least 1.")
        self.name = check_autoreset(env)
        self.policy, self.env, self.normalizer = policy, env, normalizer
        self._hidden = own_task(env).hidden if with_hidden else None
        self._with_next_observation = with_next_observation
        self.segment_steps = segment_steps
        self.device = torch.device(device)
        self.steps = 0
        self.episodes = EpisodeLog(env.num_envs)
        self._seed = seed
        self._generator = torch.Generator(self.device).manual_seed(seed)
        shape = (segment_steps, env.num_envs)
        self._rewards = np.zeros(shape, np.float32)
        self._terminated, self._truncated, self._resets = (np.zeros(shape, bool) for _ in range(3))
        self._bootstrap = torch.zeros(shape, device=self.device)
        # Rows `[T, N, ...]`, allocated by the first step and reused: small tensors kept from
        # every step would lie between the large states and keep the heap from shrinking.
        self._rows: dict[str, Any] = {}
        self._pending: list[tuple[int, np.ndarray, Any, Tensor]] = []
        self._state: Tensor
        self._start(seed)

    @torch.no_grad()
    def collect(self) -> TensorDict:
        """Return the next segment as a TensorDict of batch size `[N]`.

        Entries `[N, T, ...]`: `observation` (scaled, as the policy saw it), `action`,
        `action_log_prob`, `value`, `next_value`, `reward`, `terminated`, `truncated` (and
        not terminated), `done`, `reset` (an episode starts here); and `state` `[N, S]`, the
        memory's state before the first step. Values are in units of reward. Where asked for,
        `hidden` `[N, T, D]`, the hidden state at the time of the observation, and
        `next_observation`, not scaled: the true final one after truncation, after termination the
        first of the next episode.

        The tensors are copies that belong to the caller.

        Raises:
            EnvironmentFailure: An environment raised, or gave a NaN or an infinity.
        """
        start = self._state.clone()
        for step in range(self.segment_steps):
            self._act(step)
        self._value_end()
        self.steps += self.segment_steps * self.env.num_envs
        return self._rollout(start)

    def _act(self, step: int) -> None:
        """Act once in every environment and keep what row `step` of the segment needs."""
        observation = self._tensors(self._observation)
        action, log_prob, value, self._state = self.policy.act(
            self._scaled(observation),
            self._state,
            torch.from_numpy(self._reset).to(self.device),
            generator=self._generator,
        )
        # Copies: the observation may share the arrays that the environment writes to.
        self._keep(step, "observation", observation)
        self._keep(step, "action", action)
        self._keep(step, "action_log_prob", log_prob)
        self._keep(step, "value", value)
        self._resets[step] = self._reset
        if self._hidden is not None:
            self._keep(step, "hidden", torch.from_numpy(self._hidden()).to(self.device).float())
        self._step(step, self.policy.action_head.to_env(action))

    def _keep(self, step: int, key: str, entry: Any) -> None:
        """Copy an entry `[N, ...]`, or a dict of such, to its row of the segment."""
        if key not in self._rows:
            self._rows[key] = tree_map(
                lambda leaf: leaf.new_empty(self.segment_steps, *leaf.shape), entry
            )
        tree_map(lambda rows, leaf: rows[step].copy_(leaf), self._rows[key], entry)

    def _step(self, step: int, action: np.ndarray) -> None:
        """Step the environments and write what came of it."""
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            raise raised(self.name, error, self._moment(step)) from error
        self._check("a reward", reward, step)
        self._check("an observation", observation, step)
        self._rewards[step] = reward
        self._terminated[step] = terminated
        self._truncated[step] = truncated & ~terminated
        self._observation, self._reset = observation, terminated | truncated
        self.episodes.add(reward, self._reset, info)
        if self._with_next_observation:
            self._keep(step, "next_observation", self._tensors(observation))
        if self._truncated[step].any():
            self._defer(step, info)

    def _defer(self, step: int, info: dict[str, Any]) -> None:
        """Keep the final observations of the episodes truncated at `step`, to value them.

        With the memory's state that led to each they wait for one batched call, made when
        there are more of them than environments or the segment ends.
        """
        if "final_obs" not in info:
            raise EnvironmentFailure(
                f"{self.name} truncated an episode at {self._moment(step)} without "
                "info['final_obs'], which SAME_STEP autoreset promises and whose value is "
                "needed."
            )
        rows = np.flatnonzero(self._truncated[step])
        final = final_observations(info["final_obs"], rows, self.env.single_observation_space)
        self._check("a final observation", final, step, rows)
        self._pending.append((step, rows, final, self._state[torch.from_numpy(rows)]))
        if self._with_next_observation:
            index, seen = torch.from_numpy(rows).to(self.device), self._tensors(final)
            tree_map(
                lambda kept, leaf: kept[step].index_copy_(0, index, leaf),
                self._rows["next_observation"],
                seen,
            )
        if sum(len(entry[1]) for entry in self._pending) > self.env.num_envs:
            self._value_pending()

    def _value_end(self) -> None:
        """Value what follows the last step, along with all that waits."""
        rows = np.flatnonzero(~self._truncated[-1])
        observation = tree_map(lambda leaf: leaf[rows], self._observation)
        state = self._state[torch.from_numpy(rows)]
        self._pending.append((self.segment_steps - 1, rows, observation, state))
        self._value_pending()

    def _value_pending(self) -> None:
        """Write the values of all waiting observations; the memory's state stays."""
        steps = np.concatenate([np.full(len(rows), step) for step, rows, _, _ in self._pending])
        rows = np.concatenate([rows for _, rows, _, _ in self._pending])
        observation = self._tensors(concatenate_rows([entry[2] for entry in self._pending]))
        state = torch.cat([entry[3] for entry in self._pending])
        self._pending.clear()
        if len(rows) > 0:
            no_reset = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
            value = self.policy.value(self._scaled(observation), state, no_reset)
            self._bootstrap[torch.from_numpy(steps), torch.from_numpy(rows)] = value

    def _rollout(self, start: Tensor) -> TensorDict:
        """Return the segment as `[N, T, ...]` sequences."""
        arrays = {
            "reward": self._rewards,
            "terminated": self._terminated,
            "truncated": self._truncated,
            "done": self._terminated | self._truncated,
            "reset": self._resets,
        }
        entries: dict[str, Any] = {
            key: _sequences(torch.from_numpy(x)).to(self.device) for key, x in arrays.items()
        }
        for key, rows in self._rows.items():
            entries[key] = tree_map(_sequences, rows)
        bootstrap = _sequences(self._bootstrap)
        following = torch.cat([entries["value"][:, 1:], bootstrap[:, -1:]], dim=1)
        following = torch.where(entries["truncated"], bootstrap, following)
        entries["next_value"] = following.masked_fill_(entries["terminated"], 0.0)
        if self.normalizer is not None:
            raw = entries["observation"]
            entries["observation"] = self.normalizer(raw)
            self.normalizer.update(raw)
        return TensorDict({**entries, "state": start}, batch_size=[self.env.num_envs])

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything needed to go on: tensors by name, and JSON-able data."""
        tensors = {
            "state": self._state.cpu().clone(),
            "reset": torch.from_numpy(self._reset.copy()),
            "generator": self._generator.get_state(),
            **flatten_tree("observation", self._observation),
            **self.episodes.checkpoint(),
        }
        data: dict[str, Any] = {"steps": self.steps, "env": None}
        if hasattr(self.env, "get_state"):
            arrays, data["env"] = self.env.get_state()
            tensors |= flatten_tree("env", arrays)
        return tensors, data

    def restore(self, tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
        """Go on from a checkpoint, bit for bit if the environment can restore its state.

        An environment that cannot is reset with a seed that depends on the steps done; its
        unfinished episodes are lost, and a warning is logged. So it is with the draws of actions
        where the checkpoint was made on another kind of device.
        """
        self.steps = data["steps"]
        self._restore_generator(tensors["generator"].cpu())
        can_restore = data["env"] is not None and hasattr(self.env, "set_state")
        if can_restore:
            env: Any = self.env
            arrays = {k[4:]: x.numpy().copy() for k, x in tensors.items() if k.startswith("env.")}
            env.set_state(arrays, data["env"])
            self._state = tensors["state"].to(self.device, copy=True)
            self._reset = tensors["reset"].numpy().copy()
            self._observation = unflatten_tree("observation", self._observation, tensors)
        else:
            _logger.warning(
                "%s cannot restore its state: its episodes start anew with a fresh seed, and "
                "the resumed run will not equal an uninterrupted one bit for bit.",
                self.name,
            )
            self._start(self._fresh_seed())
        self.episodes.restore(tensors, unfinished=can_restore)

    def _restore_generator(self, state: Tensor) -> None:
        # The states of the CPU's generators and of the GPUs' differ in size.
        if state.shape == self._generator.get_state().shape:
            self._generator.set_state(state)
            return
        _logger.warning(
            "The checkpoint was made on another kind of device than %s: actions are drawn with a "
            "fresh seed, and the resumed run will not equal an uninterrupted one bit for bit.",
            self.device,
        )
        self._generator.manual_seed(self._fresh_seed())

    def _fresh_seed(self) -> int:
        """Return a seed that depends on the steps done."""
        return int(np.random.SeedSequence([self._seed, self.steps]).generate_state(1)[0])

    def _start(self, seed: int) -> None:
        try:
            self._observation, info = self.env.reset(seed=_reset_seed(self.env, seed))
        except Exception as error:
            raise raised(self.name, error, self._moment(-1)) from error
        self._check("an observation", self._observation, -1)
        self._reset = np.ones(self.env.num_envs, bool)
        self._state = self.policy.memory.initial_state(self.env.num_envs, self.device)
        self.episodes.begin(info)

    def _tensors(self, observation: Any) -> Observation:
        return to_tensors(observation, self.env.single_observation_space, self.device)

    def _scaled(self, observation: Observation) -> Observation:
        return observation if self.normalizer is None else self.normalizer(observation)

    def _check(self, what: str, value: Any, step: int, rows: np.ndarray | None = None) -> None:
        bad = first_non_finite(value)
        if bad is not None:
            index = bad if rows is None else int(rows[bad])
            row = tree_map(lambda leaf: leaf[bad], value)
            raise not_finite(self.name, what, row, index, self._moment(step))

    def _moment(self, step: int) -> str:
        total = self.steps // self.env.num_envs + step
        return "reset" if step < 0 else f"step {total} (step {step} of the segment)"


def raised(name: str, error: Exception, moment: str) -> EnvironmentFailure:
    """Return what to raise from an exception of the environments of that name."""
    return EnvironmentFailure(f"{name} raised {type(error).__name__} at {moment}: {error}")


def not_finite(name: str, what: str, row: Any, index: int, moment: str) -> EnvironmentFailure:
    """Return what to raise for `row`, which environment `index` gave with a NaN or an infinity."""
    return EnvironmentFailure(
        f"{name} gave {what} that is not finite, in environment {index} at {moment}: {row}. "
        "Correct the environment, or clip what it returns."
    )


def check_autoreset(env: VectorEnv) -> str:
    """Return the environment's name; raise `ValueError` unless it resets in the same step."""
    name = environment_name(env)
    mode = env.metadata.get("autoreset_mode")
    if mode != AutoresetMode.SAME_STEP:
        raise ValueError(
            f"{name} has autoreset mode {mode}; expected AutoresetMode.SAME_STEP. Build it "
            "with make_vector_env, or pass autoreset_mode=AutoresetMode.SAME_STEP to "
            "SyncVectorEnv."
        )
    return name


def own_task(env: VectorEnv) -> POMDPVectorEnv:
    """Return the environments of doxastic below all wrappers, which tell their hidden states.

    Raises:
        ValueError: If they are no environments of doxastic.
    """
    inner = env.unwrapped
    if not isinstance(inner, POMDPVectorEnv):
        raise ValueError(
            f"{environment_name(env)} does not tell its hidden state; expected a task of doxastic. "
            "Set ppo.privileged_critic to false and auxiliary.kind to another than privileged."
        )
    return inner


def environment_name(env: VectorEnv) -> str:
    """Return the Gymnasium id of the environments, or the class where there is none."""
    inner: Any = env.unwrapped
    spec = env.spec
    if spec is None and getattr(inner, "envs", None):
        spec = inner.envs[0].spec
    return type(getattr(inner, "pomdp", inner)).__name__ if spec is None else str(spec.id)


def _reset_seed(env: VectorEnv, seed: int) -> Any:
    """Return what to reset the environments with, so that no two seeds share an episode.

    Gymnasium's SyncVectorEnv and AsyncVectorEnv seed environment `i` with `seed + i`: consecutive
    seeds would share the random streams of all environments but one. They get a list of
    independent seeds instead; other vector environments draw all their streams from `seed`.
    """
    if not isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv):
        return seed
    return np.random.SeedSequence(seed).generate_state(env.num_envs).tolist()


def _sequences(buffer: Tensor) -> Tensor:
    """Return `[T, N, ...]` as a new contiguous `[N, T, ...]`."""
    return buffer.transpose(0, 1).clone(memory_format=torch.contiguous_format)
