"""Rollout buffers for BeliefRecurrentPPO: few states, and minibatches that are not padded."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from sb3_contrib.common.recurrent.buffers import (
    RecurrentDictRolloutBuffer,
    RecurrentRolloutBuffer,
)
from sb3_contrib.common.recurrent.type_aliases import (
    RecurrentDictRolloutBufferSamples,
    RecurrentRolloutBufferSamples,
    RNNStates,
)
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from torch import Tensor

from doxastic.agents.sb3.states import StateStore

_ARRAYS = ("actions", "values", "log_probs", "advantages", "returns", "episode_starts")


class _BeliefBuffer(RolloutBuffer):
    """What both buffers share: the plan of an update, and its minibatches."""

    store: StateStore | None = None

    def plan(self, batch_size: int, epochs: int, *, shared: bool) -> None:
        """Draw where the minibatches of the next update will start; before every rollout."""
        splits = self.store.splits if self.store else ()
        self.store = StateStore(
            self.buffer_size, self.n_envs, batch_size, epochs, shared=shared, splits=splits
        )

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored, the memory's states included."""
        observations: Any = self.observations
        arrays = list(observations.values()) if isinstance(observations, dict) else [observations]
        arrays += [getattr(self, name) for name in (*_ARRAYS, "rewards")]
        return sum(array.nbytes for array in arrays) + (self.store.nbytes if self.store else 0)

    def _planned(self) -> StateStore:
        if self.store is None:
            raise RuntimeError(
                "the buffer does not know yet where its minibatches will start. Collect with "
                "BeliefRecurrentPPO, or call plan() before the rollout."
            )
        return self.store

    def _minibatches(self, batch_size: int | None) -> Generator[dict[str, Any], None, None]:
        """Yield one epoch: stretches of the rollout from the next split on, all the way round."""
        store, total = self._planned(), self.buffer_size * self.n_envs
        if not self.full:
            raise RuntimeError(f"the buffer holds {self.pos} of {self.buffer_size} steps.")
        if (batch_size or total) != store.batch_size or not store.splits:
            raise ValueError(
                f"an epoch in minibatches of {batch_size or total} was asked for; planned were "
                f"{len(store.splits)} more of {store.batch_size}. Change batch_size and n_epochs "
                "before a rollout is collected, not after it."
            )
        self._lay_out()
        split = store.splits.pop(0)
        for begin in range(split, split + total, store.batch_size):
            length = min(store.batch_size, split + total - begin)
            yield self._minibatch(store, begin % total, length)

    def _minibatch(self, store: StateStore, begin: int, length: int) -> dict[str, Any]:
        """Return the fields of sb3-contrib's samples, for `length` steps from `begin` on."""
        take = lambda array: self._stretch(array, begin, length)  # noqa: E731
        observations: Any = self.observations
        is_dict = isinstance(observations, dict)
        return {
            "observations": (
                {key: take(part) for key, part in observations.items()}
                if is_dict
                else take(observations)
            ),
            "actions": take(self.actions),
            "old_values": take(self.values).flatten(),
            "old_log_prob": take(self.log_probs).flatten(),
            "advantages": take(self.advantages).flatten(),
            "returns": take(self.returns).flatten(),
            "lstm_states": store.pieces(begin, length),
            "episode_starts": take(self.episode_starts).flatten(),
            "mask": torch.ones(length, device=self.device),
        }

    def _stretch(self, array: np.ndarray[Any, Any], begin: int, length: int) -> Tensor:
        """Return a copy of `length` entries from `begin` on, going round at the end."""
        part = array[begin : begin + length]
        if len(part) < length:
            part = np.concatenate((part, array[: length - len(part)]))
        return self.to_torch(part)

    def _lay_out(self) -> None:
        """Put the steps of an environment one after the other, `[N * T, ...]`."""
        if self.generator_ready:
            return
        observations: Any = self.observations
        if isinstance(observations, dict):
            for key, part in observations.items():
                observations[key] = self.swap_and_flatten(part)
        else:
            self.observations = self.swap_and_flatten(observations)
        for name in _ARRAYS:
            setattr(self, name, self.swap_and_flatten(getattr(self, name)))
        self.generator_ready = True


class BeliefRolloutBuffer(_BeliefBuffer, RecurrentRolloutBuffer):
    """sb3-contrib's rollout buffer with few states; see `doxastic.agents.sb3.states`."""

    def add(  # type: ignore[override]
        self, *args: Any, lstm_states: RNNStates, **kwargs: Any
    ) -> None:
        """Store a step, and the states before it if a minibatch will start there."""
        self._planned().add(self.pos, lstm_states)
        RolloutBuffer.add(self, *args, **kwargs)

    def get(  # type: ignore[override]
        self, batch_size: int | None = None
    ) -> Generator[RecurrentRolloutBufferSamples, None, None]:
        """Yield the minibatches of one epoch, in sb3-contrib's order."""
        for fields in self._minibatches(batch_size):
            yield RecurrentRolloutBufferSamples(**fields)


class BeliefDictRolloutBuffer(_BeliefBuffer, RecurrentDictRolloutBuffer):
    """The same for Dict observations."""

    def add(  # type: ignore[override]
        self, *args: Any, lstm_states: RNNStates, **kwargs: Any
    ) -> None:
        """Store a step, and the states before it if a minibatch will start there."""
        self._planned().add(self.pos, lstm_states)
        DictRolloutBuffer.add(self, *args, **kwargs)

    def get(  # type: ignore[override]
        self, batch_size: int | None = None
    ) -> Generator[RecurrentDictRolloutBufferSamples, None, None]:
        """Yield the minibatches of one epoch, in sb3-contrib's order."""
        for fields in self._minibatches(batch_size):
            yield RecurrentDictRolloutBufferSamples(**fields)
