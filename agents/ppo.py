"""Proximal policy optimisation over whole segments of memory."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from tensordict import TensorDict
from torch import Tensor

from doxastic.agents.auxiliary import build_auxiliary
from doxastic.agents.collector import Collector, own_task
from doxastic.agents.config import AuxiliaryConfig, PPOConfig
from doxastic.agents.critic import PrivilegedCritic
from doxastic.agents.losses import build_loss, estimate_advantages
from doxastic.agents.normalization import (
    ObservationNormalizer,
    rescale_outputs,
    value_statistics,
)
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

# A minibatch's gradient is summed over parts of at most so many environment steps on the CPU:
# what a part keeps for its backward pass, some 3 kB a step, stays in the processor's caches.
PART_STEPS = 4096


class PPO:
    """Trains a policy with memory: one `update` collects a segment and learns from it.

    The memory runs once per minibatch, over whole segments from their stored state; the loss
    and the advantages are TorchRL's (see `losses`), computed from the features by the two heads.
    An auxiliary likelihood reads the memory's features of the same run; its parameters have an
    optimiser of their own, under the same clipping.

    Args:
        policy: What is trained, in place.
        env: A vector environment with SAME_STEP autoreset.
        config: The settings.
        total_steps: Environment steps of the whole run, over which the schedules reach 0.
        seed: Seed of the environments, the actions and the minibatches.
        device: Where the policy is trained; it is moved there.
        auxiliary: The auxiliary likelihood; None for none.
    """

    def __init__(
        self,
        policy: ActorCritic,
        env: VectorEnv,
        config: PPOConfig,
        total_steps: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        auxiliary: AuxiliaryConfig | None = None,
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
        self._update_steps = config.segment_steps * env.num_envs
        self.total_updates = math.ceil(total_steps / self._update_steps)
        self.updates = 0
        self.observation_normalizer: ObservationNormalizer | None = None
        if config.normalize_observation:
            space = env.single_observation_space
            self.observation_normalizer = ObservationNormalizer(space).to(self.device)
        self.value_statistics = value_statistics().to(self.device)
        self.auxiliary = build_auxiliary(auxiliary or AuxiliaryConfig(), self.policy, env, seed)
        reads = None if self.auxiliary is None else self.auxiliary.reads
        self.critic = self._build_critic(env, seed) if config.privileged_critic else None
        self.collector = Collector(
            self.policy,
            env,
            config.segment_steps,
            seed=seed,
            device=self.device,
            normalizer=self.observation_normalizer,
            with_hidden=reads == "hidden" or config.privileged_critic,
            with_next_observation=reads == "next_observation",
        )
        self.optimizer = FlatAdam(self.policy)
        self._optimizers = {"optimizer": self.optimizer}
        self._measured: tuple[str, ...] = MEASURED
        if self.auxiliary is not None:
            self._optimizers["auxiliary_optimizer"] = FlatAdam(self.auxiliary)
            self._measured += ("loss_auxiliary",)
        if self.critic is not None:
            # Its gradient is clipped by itself: no other parameter shares its loss.
            self._critic_optimizer = FlatAdam(self.critic)
        self._learning_rate = config.learning_rate
        self._entropy_coefficient = config.entropy_coefficient
        self._generator = torch.Generator().manual_seed(seed)
        self._loss = build_loss(
            self.policy,
            clip=config.clip,
            value_coefficient=config.value_coefficient,
            clip_value=config.clip_value,
        )

    def _build_critic(self, env: VectorEnv, seed: int) -> PrivilegedCritic:
        """Return a critic; all else is drawn as without it."""
        names = own_task(env).pomdp.hidden_names
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            critic = PrivilegedCritic(self.policy.memory.feature_size, names)
        return critic.to(self.device)

    @property
    def steps(self) -> int:
        """Environment steps collected so far."""
        return self.collector.steps

    @property
    def _position(self) -> float:
        """Where the schedules stand: updates of the present size in the steps collected so far.

        `updates`, but for a run that was continued with other `segment_steps`.
        """
        return self.steps / self._update_steps

    def update(self) -> dict[str, float]:
        """Collect one segment, learn from it, and return what was measured.

        The mean return and length are over the last 100 finished episodes, NaN before the
        first has finished. Losses and gradient norm are means over the minibatches.

        Raises:
            TrainingDiverged: A loss or gradient was not finite; the weights did not take it.
            EnvironmentFailure: An environment raised, or gave a NaN or an infinity.
        """
        config, position = self.config, self._position
        start = time.perf_counter()
        rollout = self.collector.collect()
        collected = time.perf_counter()
        learning_rate = config.learning_rate * schedule(
            position,
            self.total_updates,
            warmup=config.warmup_updates,
            anneal=config.anneal_learning_rate,
        )
        self._learning_rate = learning_rate
        fall = schedule(position, self.total_updates, anneal=config.anneal_entropy)
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
            **dict(zip(self._measured, means, strict=True)),
            "minibatches": len(rows),
            "explained_variance": explained_variance,
        }

    def _with_targets(self, rollout: TensorDict) -> tuple[TensorDict, float]:
        """Return what the minibatches need, and the variance the values explained."""
        config = self.config
        own_value = rollout["value"]
        if self.critic is not None:
            rollout = self._privileged(rollout, self.critic)
        advantage, target = estimate_advantages(rollout, config.discount, config.gae_lambda)
        if not target.isfinite().all():
            raise self._diverged("the value targets are")
        unexplained = (target - rollout["value"]).var() / target.var().clamp_min(1e-8)
        if config.normalize_value:
            self._change_units(target)
        if config.normalize_advantage:
            advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        kept = rollout.select("observation", "state", "reset", "action", "action_log_prob")
        kept["advantage"] = advantage.unsqueeze(-1)
        kept["value_target"] = self._head_units(target)
        kept["state_value"] = self._head_units(own_value)
        if self.auxiliary is not None:
            kept.update(self.auxiliary.targets(rollout))
        if self.critic is not None:
            kept["hidden"] = rollout["hidden"]
        return kept, 1.0 - float(unexplained)

    @torch.no_grad()
    def _privileged(self, rollout: TensorDict, critic: PrivilegedCritic) -> TensorDict:
        """Return the rollout with the critic's values.

        What follows the segment, and truncated episodes, stay valued by the policy's own head,
        which needs no hidden state: its value is the mean of the critic's over what is hidden.
        """
        critic.scale.update(rollout["hidden"])
        features, _ = self.policy.memory_features(*self._sequence(rollout))
        value = critic(features, rollout["hidden"]).squeeze(-1)
        value = torch.addcmul(self.policy.value_shift, value, self.policy.value_scale)
        following = torch.cat([value[:, 1:], rollout["next_value"][:, -1:]], dim=1)
        following = torch.where(rollout["truncated"], rollout["next_value"], following)
        following = following.masked_fill(rollout["terminated"], 0.0)
        return rollout.update({"value": value, "next_value": following})

    def _change_units(self, target: Tensor) -> None:
        """Take value targets into the statistics that are the units of the value heads."""
        statistics, policy = self.value_statistics, self.policy
        old = policy.value_shift.clone(), policy.value_scale.clone()
        statistics.update(target)
        policy.normalize_value_head(statistics.mean, statistics.std)
        if self.critic is not None:
            rescale_outputs(self.critic.head, old, (policy.value_shift, policy.value_scale))

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
        """Descend once; return the values named in `_measured`, and whether to stop instead."""
        for optimizer in self._optimizers.values():
            optimizer.zero_grad()
        if self.critic is not None:
            self._critic_optimizer.zero_grad()
        parts = [self._accumulate(part, share) for part, share in self._parts(minibatch)]
        norm = self._gradient_norm()
        first, *auxiliary = torch.stack(parts).sum(0).split(len(MEASURED) - 1)
        row: list[float] = torch.cat([first, norm.view(1), *auxiliary]).tolist()
        self._require_finite(row)
        if self.config.target_kl is not None and row[3] > self.config.target_kl:
            return row, True
        for optimizer in self._optimizers.values():
            optimizer.step(self._learning_rate, norm, self.config.max_grad_norm)
        if self.critic is not None:
            norm = self._critic_optimizer.gradient_norm()
            self._require_finite([norm.item()], ("gradient of the privileged critic",))
            self._critic_optimizer.step(self._learning_rate, norm, self.config.max_grad_norm)
        return row, False

    def _parts(self, minibatch: TensorDict) -> Iterator[tuple[TensorDict, float]]:
        """Yield the minibatch in parts of whole segments, each with its share of the whole."""
        number, time_steps = minibatch["reset"].shape
        size = max(1, PART_STEPS // time_steps) if self.device.type == "cpu" else number
        count = math.ceil(number / size)
        ends = [number * part // count for part in range(count + 1)]
        for start, end in itertools.pairwise(ends):
            yield minibatch[start:end], (end - start) / number

    def _accumulate(self, part: TensorDict, share: float) -> Tensor:
        """Add the gradients of a part, times its share; return its share of what is measured."""
        memory_features, _ = self.policy.memory_features(*self._sequence(part))
        features = self.policy.policy_body(memory_features)
        losses = self._loss(features, part, self._entropy_coefficient)
        total, measured = losses.total, list(losses[1:])
        if self.auxiliary is not None:
            likelihood = self.auxiliary.loss(memory_features, part)
            total = total + self.auxiliary.coefficient * likelihood
            measured.append(likelihood.detach())
        (total * share).backward()
        if self.critic is not None:
            error = self.critic.loss(memory_features, part["hidden"], part["value_target"])
            (error * share).backward()
        return torch.stack(measured) * share

    def _sequence(self, rollout: TensorDict) -> tuple[Any, Tensor, Tensor]:
        """Return the arguments of `ActorCritic.features` from a rollout or a part of one."""
        observation = rollout["observation"]
        if not isinstance(observation, Tensor):
            observation = observation.to_dict()
        return observation, rollout["state"], rollout["reset"]

    def _gradient_norm(self) -> Tensor:
        """Return the norm over all gradients, those of the auxiliary likelihood included."""
        norms = [optimizer.gradient_norm() for optimizer in self._optimizers.values()]
        return norms[0] if len(norms) == 1 else torch.stack(norms).norm()

    def _require_finite(self, row: list[float], names: tuple[str, ...] | None = None) -> None:
        """Raise `TrainingDiverged`, naming what is not finite, before a step takes it in."""
        if all(map(math.isfinite, row)):
            return
        pairs = zip(names or self._measured, row, strict=True)
        bad = [name for name, value in pairs if not math.isfinite(value)]
        where = non_finite_gradients(self.policy)
        if self.auxiliary is not None:
            where += [f"auxiliary.{name}" for name in non_finite_gradients(self.auxiliary)]
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
            "value_statistics": self.value_statistics.state_dict(),
            "collector": tensors,
            **{name: optimizer.tensors() for name, optimizer in self._optimizers.items()},
        }
        if self.observation_normalizer is not None:
            groups["observation_normalizer"] = self.observation_normalizer.state_dict()
        if self.auxiliary is not None:
            groups["auxiliary"] = self.auxiliary.state_dict()
        if self.critic is not None:
            groups["critic"] = self.critic.state_dict()
            groups["critic_optimizer"] = self._critic_optimizer.tensors()
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
        for name, optimizer in self._optimizers.items():
            optimizer.restore(groups.get(name, {}))
        self.value_statistics.load_state_dict(groups["value_statistics"])
        if self.observation_normalizer is not None:
            self.observation_normalizer.load_state_dict(groups["observation_normalizer"])
        if self.auxiliary is not None:
            self.auxiliary.load_state_dict(groups["auxiliary"])
        if self.critic is not None:
            self.critic.load_state_dict(groups["critic"])
            self._critic_optimizer.restore(groups.get("critic_optimizer", {}))
        self._generator.set_state(groups["minibatches"]["generator"].cpu())
        self.collector.restore(groups["collector"], data["collector"])


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values) if values else math.nan
