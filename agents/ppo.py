"""Proximal policy optimisation over whole segments of memory."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDict
from torch import Tensor

from doxastic.agents.collector import Collector
from doxastic.agents.config import PPOConfig
from doxastic.agents.losses import build_loss, estimate_advantages
from doxastic.agents.normalization import ObservationNormalizer, value_statistics
from doxastic.agents.optimization import (
    FlatAdam,
    TrainingDiverged,
    non_finite_gradients,
    schedule,
)
from doxastic.agents.policy import ActorCritic

MEASURED = (
    "loss_policy",
    "loss_value",
    "entropy",
    "approx_kl",
    "clip_fraction",
    "grad_norm",
)


class PPO:
    """Trains a policy with memory: one `update` collects a segment and learns from it.

    The memory runs once per minibatch, over whole segments from their stored state; the loss
    and the advantages are TorchRL's (see `losses`), computed from the features by the two heads.

    Args:
        policy: What is trained, in place.
        env: A vector environment with SAME_STEP autoreset.
        config: The settings.
        total_steps: Environment steps of the whole run, over which the schedules reach 0.
        seed: Seed of the environments, the actions and the minibatches.
        device: Where the policy is trained; it is moved there.
    """

    def __init__(
        self,
        policy: ActorCritic,
        env: VectorEnv,
        config: PPOConfig,
        total_steps: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if env.num_envs < config.minibatches:
            raise ValueError(
                f"There are {env.num_envs} environments and {config.minibatches} minibatches; "
                "expected at least one environment in each. Raise env.num_envs or lower "
                "ppo.minibatches."
            )
        if total_steps < 1:
            raise ValueError(f"total_steps is {total_steps}; expected at least 1.")
        self.config, self.device = config, torch.device(device)
        self.policy = policy.to(self.device)
        self.total_updates = math.ceil(total_steps / (config.segment_steps * env.num_envs))
        self.updates = 0
        self.observation_normalizer: ObservationNormalizer | None = None
        if config.normalize_observation:
            space = env.single_observation_space
            self.observation_normalizer = ObservationNormalizer(space).to(self.device)
        self.value_statistics = value_statistics().to(self.device)
        self.collector = Collector(
            self.policy,
            env,
            config.segment_steps,
            seed=seed,
            device=self.device,
            normalizer=self.observation_normalizer,
        )
        self.optimizer = FlatAdam(self.policy)
        self._learning_rate = config.learning_rate
        self._entropy_coefficient = config.entropy_coefficient
        self._generator = torch.Generator().manual_seed(seed)
        self._loss = build_loss(
            self.policy,
            clip=config.clip,
            value_coefficient=config.value_coefficient,
            clip_value=config.clip_value,
        )

    @property
    def steps(self) -> int:
        """Environment steps collected so far."""
        return self.collector.steps

    def update(self) -> dict[str, float]:
        """Collect one segment, learn from it, and return what was measured.

        The mean return and length are over the last 100 finished episodes, NaN before the
        first has finished. Losses and gradient norm are means over the minibatches.

        Raises:
            TrainingDiverged: A loss or gradient was not finite; the weights did not take it.
            EnvironmentFailure: An environment raised, or gave a NaN or an infinity.
        """
        config = self.config
        start = time.perf_counter()
        rollout = self.collector.collect()
        collected = time.perf_counter()
        learning_rate = config.learning_rate * schedule(
            self.updates,
            self.total_updates,
            warmup=config.warmup_updates,
            anneal=config.anneal_learning_rate,
        )
        self._learning_rate = learning_rate
        fall = schedule(self.updates, self.total_updates, anneal=config.anneal_entropy)
        self._entropy_coefficient = config.entropy_coefficient * fall
        measured = self._learn(rollout)
        self.updates += 1
        episodes = self.collector.episodes
        return {
            "update": self.updates,
            "steps": self.steps,
            "episodes": episodes.finished,
            "return_mean": _mean(episodes.returns),
            "length_mean": _mean(episodes.lengths),
            **measured,
            "learning_rate": learning_rate,
            "seconds_rollout": collected - start,
            "seconds_update": time.perf_counter() - collected,
        }

    def _learn(self, rollout: TensorDict) -> dict[str, float]:
        """Run the epochs over one rollout."""
        rollout, explained_variance = self._with_targets(rollout)
        rows: list[list[float]] = []
        for minibatch in self._minibatches(rollout):
            row, stop = self._step(minibatch)
            rows.append(row)
            if stop:
                break
        means = np.mean(rows, axis=0).tolist()
        return {
            **dict(zip(MEASURED, means, strict=True)),
            "minibatches": len(rows),
            "explained_variance": explained_variance,
        }

    def _with_targets(self, rollout: TensorDict) -> tuple[TensorDict, float]:
        """Return what the minibatches need, and the variance the values explained."""
        config = self.config
        advantage, target = estimate_advantages(rollout, config.discount, config.gae_lambda)
        if not target.isfinite().all():
            raise self._diverged("the value targets are")
        unexplained = (target - rollout["value"]).var() / target.var().clamp_min(1e-8)
        if config.normalize_value:
            self.value_statistics.update(target)
            self.policy.normalize_value_head(self.value_statistics.mean, self.value_statistics.std)
        if config.normalize_advantage:
            advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        kept = rollout.select("observation", "state", "reset", "action", "action_log_prob")
        kept["advantage"] = advantage.unsqueeze(-1)
        kept["value_target"] = self._head_units(target)
        kept["state_value"] = self._head_units(rollout["value"])
        return kept, 1.0 - float(unexplained)

    def _head_units(self, value: Tensor) -> Tensor:
        """Return values `[B, T]` as the value head gives them, `[B, T, 1]`."""
        return ((value - self.policy.value_shift) / self.policy.value_scale).unsqueeze(-1)

    def _minibatches(self, rollout: TensorDict) -> Iterator[TensorDict]:
        """Yield the environments in random parts, each with all its time, for all epochs."""
        number = rollout.batch_size[0]
        ends = [number * part // self.config.minibatches for part in range(self.config.minibatches)]
        for _ in range(self.config.epochs):
            order = torch.randperm(number, generator=self._generator).to(self.device)
            shuffled = rollout[order]
            for start, end in zip(ends, [*ends[1:], number], strict=True):
                yield shuffled[start:end]

    def _step(self, minibatch: TensorDict) -> tuple[list[float], bool]:
        """Descend once; return the values named in MEASURED, and whether to stop instead."""
        observation = minibatch["observation"]
        if not isinstance(observation, Tensor):
            observation = observation.to_dict()
        features, _ = self.policy.features(observation, minibatch["state"], minibatch["reset"])
        losses = self._loss(features, minibatch, self._entropy_coefficient)
        self.optimizer.zero_grad()
        losses.total.backward()
        norm = self.optimizer.gradient_norm()
        row: list[float] = torch.stack([*losses[1:], norm]).tolist()
        self._require_finite(row)
        if self.config.target_kl is not None and row[3] > self.config.target_kl:
            return row, True
        self.optimizer.step(self._learning_rate, norm, self.config.max_grad_norm)
        return row, False

    def _require_finite(self, row: list[float]) -> None:
        """Raise `TrainingDiverged`, naming what is not finite, before a step takes it in."""
        if all(map(math.isfinite, row)):
            return
        bad = [name for name, value in zip(MEASURED, row, strict=True) if not math.isfinite(value)]
        where = non_finite_gradients(self.policy)
        parameters = ", ".join(where[:3]) + (", ..." if len(where) > 3 else "")
        raise self._diverged(f"{', '.join(bad)} (gradients of {parameters or 'no parameter'}) is")

    def _diverged(self, what: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"Update {self.updates + 1}: {what} not finite. The weights are those before this "
            "step. Lower ppo.learning_rate or ppo.max_grad_norm, or raise ppo.warmup_updates, and "
            "resume from the last checkpoint."
        )

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything needed to go on: tensors by name, and JSON-able data."""
        tensors, collector = self.collector.checkpoint()
        groups = {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.tensors(),
            "value_statistics": self.value_statistics.state_dict(),
            "collector": tensors,
        }
        if self.observation_normalizer is not None:
            groups["observation_normalizer"] = self.observation_normalizer.state_dict()
        flat = {
            f"{group}/{name}": value.detach().cpu().clone()
            for group, entries in groups.items()
            for name, value in entries.items()
        }
        flat["minibatches/generator"] = self._generator.get_state()
        return flat, {"updates": self.updates, "collector": collector}

    def restore(self, tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
        """Go on from `checkpoint`: bit for bit where the environment restores its state."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = value
        self.updates = data["updates"]
        self.policy.load_state_dict(groups["policy"])
        self.optimizer.restore(groups.get("optimizer", {}))
        self.value_statistics.load_state_dict(groups["value_statistics"])
        if self.observation_normalizer is not None:
            self.observation_normalizer.load_state_dict(groups["observation_normalizer"])
        self._generator.set_state(groups["minibatches"]["generator"].cpu())
        self.collector.restore(groups["collector"], data["collector"])


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values) if values else math.nan
