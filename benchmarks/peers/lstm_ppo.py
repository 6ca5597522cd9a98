"""A plain recurrent PPO written by hand: what doxastic's trainer has to keep up with.

It knows one kind of observation, one of actions and one of memory, and is as quick as such a loop
gets without compiled code: rows are split at the resets inside them, the pieces padded to the
longest, and a minibatch costs one call of `nn.LSTM` (or `nn.GRU`), its steps in one dense tensor.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import VectorEnv
from torch import Tensor, nn
from torch.nn import functional as F

RNNName = Literal["lstm", "gru"]
State = tuple[Tensor, ...]
"""(h, c) of the LSTM or (h,) of the GRU, each `[1, B, W]`."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the loop."""

    rnn: RNNName = "lstm"
    """The recurrent layer."""
    width: int = 64
    """Width of encoder, recurrent layer and body."""
    segment_steps: int = 128
    """Steps of each environment between updates."""
    epochs: int = 4
    """Passes over the rollout per update."""
    minibatches: int = 4
    """Parts into which the environments are shuffled."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    clip: float = 0.2
    """Half width of the probability ratio's interval."""
    discount: float = 0.99
    """Discount of rewards per step."""
    gae_lambda: float = 0.95
    """Decay of the advantage estimate."""
    entropy_coefficient: float = 0.01
    """Weight of the entropy."""
    value_coefficient: float = 0.5
    """Weight of the value's squared error."""
    max_grad_norm: float = 0.5
    """Norm to which gradients are scaled down."""


class RecurrentPolicy(nn.Module):
    """Encoder, recurrent layer, body, and a linear head each for policy and value."""

    def __init__(self, observation_size: int, actions: int, settings: Settings) -> None:
        super().__init__()
        width = settings.width
        self.encoder = nn.Sequential(
            nn.Linear(observation_size, width), nn.SiLU(), nn.Linear(width, width)
        )
        layer = nn.LSTM if settings.rnn == "lstm" else nn.GRU
        self.rnn: nn.LSTM | nn.GRU = layer(width, width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.Tanh())
        self.policy_head = nn.Linear(width, actions)
        self.value_head = nn.Linear(width, 1)
        nn.init.orthogonal_(self.policy_head.weight, 0.01)

    def initial_state(self, batch: int) -> State:
        """Return zeros."""
        parts = 2 if isinstance(self.rnn, nn.LSTM) else 1
        return tuple(torch.zeros(1, batch, self.rnn.hidden_size) for _ in range(parts))

    def step(self, observation: Tensor, state: State, start: Tensor) -> tuple[Tensor, ...]:
        """Return logits `[B, A]`, value `[B]` and the parts of the next state.

        Args:
            observation: `[B, O]`.
            state: The state before the step.
            start: `[B]` bool; true clears it.
        """
        keep = (~start).unsqueeze(-1)
        state = tuple(part * keep for part in state)
        out, state = self._run(self.encoder(observation).unsqueeze(0), state)
        return (*self._heads(out.squeeze(0)), *state)

    def segment(self, observation: Tensor, state: State, start: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `[B, T, A]` and values `[B, T]` of whole segments.

        Args:
            observation: `[B, T, O]`.
            state: The state before the first step.
            start: `[B, T]` bool; an episode starts here.
        """
        batch, steps = start.shape
        begins = start.clone()
        begins[:, 0] = True
        begin = begins.flatten().nonzero().squeeze(1)  # [P], flat index of every piece's first step
        piece = begins.flatten().cumsum(0) - 1  # [B * T], the piece of every step
        age = torch.arange(batch * steps) - begin[piece]
        place = age * len(begin) + piece  # where the step goes in [longest, P]
        row = begin // steps
        carried = ((begin % steps == 0) & ~start[row, 0]).unsqueeze(-1)
        state = tuple(part[:, row] * carried for part in state)
        x = self.encoder(observation).flatten(0, 1)
        longest = int(age.max()) + 1
        padded = x.new_zeros(longest * len(begin), x.shape[1]).index_copy(0, place, x)
        out, _ = self._run(padded.view(longest, len(begin), -1), state)
        return self._heads(out.flatten(0, 1).index_select(0, place).view(batch, steps, -1))

    def _run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if isinstance(self.rnn, nn.LSTM):
            out, (h, c) = self.rnn(x, (state[0], state[1]))
            return out, (h, c)
        out, h = self.rnn(x, state[0])
        return out, (h,)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return self.policy_head(features), self.value_head(features).squeeze(-1)


class RecurrentPPO:
    """Collects a segment from every environment and learns from it, again and again.

    Args:
        env: Box observations `[O]`, Discrete actions, same-step autoreset.
        settings: The settings.
        seed: Seed of weights, environments, actions and minibatches.
    """

    def __init__(self, env: VectorEnv, settings: Settings, seed: int = 0) -> None:
        spaces = env.single_observation_space, env.single_action_space
        if not (isinstance(spaces[0], Box) and isinstance(spaces[1], Discrete)):
            raise ValueError(f"the spaces are {spaces}; expected a Box and a Discrete space.")
        torch.manual_seed(seed)
        self.env, self.settings = env, settings
        size, actions = spaces[0].shape[0], int(spaces[1].n)
        self.policy = RecurrentPolicy(size, actions, settings)
        self.optimizer = torch.optim.Adam(
            self.policy.parameters(), settings.learning_rate, eps=1e-5, fused=True
        )
        self.returns: deque[float] = deque(maxlen=100)
        self._observation = env.reset(seed=seed)[0]
        self._start = np.ones(env.num_envs, bool)
        self._state = self.policy.initial_state(env.num_envs)
        self._running = np.zeros(env.num_envs)
        shape = (settings.segment_steps, env.num_envs)
        self._observations = torch.zeros(*shape, size)
        self._actions = torch.zeros(shape, dtype=torch.long)
        self._log_probs, self._values = torch.zeros(shape), torch.zeros(shape)
        self._rewards = np.zeros(shape, np.float32)
        self._starts, self._dones = np.zeros(shape, bool), np.zeros(shape, bool)

    def update(self) -> None:
        """Collect a segment and learn from it."""
        state = self._state
        advantage = self._collect()
        data = (
            self._observations, self._actions, self._log_probs, torch.from_numpy(self._starts),
            advantage, advantage + self._values,
        )  # fmt: skip
        rows = tuple(x.transpose(0, 1).contiguous() for x in data)
        for _ in range(self.settings.epochs):
            for index in torch.randperm(self.env.num_envs).chunk(self.settings.minibatches):
                self._descend([x[index] for x in rows], tuple(part[:, index] for part in state))

    @torch.no_grad()
    def _collect(self) -> Tensor:
        """Fill the buffers and return the advantages `[T, B]`."""
        for t in range(self.settings.segment_steps):
            # A copy: the tensor may share the environment's memory.
            self._observations[t] = torch.from_numpy(self._observation)
            self._starts[t] = self._start
            start = torch.from_numpy(self._start)
            logits, self._values[t], *state = self.policy.step(
                self._observations[t], self._state, start
            )
            self._state = tuple(state)
            log_probs = logits.log_softmax(-1)
            action = torch.multinomial(log_probs.exp(), 1)
            self._actions[t] = action.squeeze(1)
            self._log_probs[t] = log_probs.gather(1, action).squeeze(1)
            self._step(t, self._actions[t].numpy())
        start = torch.from_numpy(self._start)
        last = self.policy.step(torch.from_numpy(self._observation), self._state, start)[1]
        return self._advantages(last.numpy())

    def _step(self, t: int, action: np.ndarray) -> None:
        """Step the environments; a truncated episode gets the value of what it did not see."""
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        self._rewards[t] = reward
        self._running += reward
        self._start = self._dones[t] = terminated | truncated
        self.returns.extend(self._running[self._start])
        self._running[self._start] = 0.0
        rows = np.flatnonzero(truncated & ~terminated)
        if len(rows) > 0:
            final = torch.from_numpy(np.stack(info["final_obs"][rows]))
            state = tuple(part[:, rows] for part in self._state)
            value = self.policy.step(final, state, torch.zeros(len(rows), dtype=torch.bool))[1]
            self._rewards[t, rows] += self.settings.discount * value.numpy()

    def _advantages(self, following: np.ndarray) -> Tensor:
        """Return the generalised advantage estimates `[T, B]` (Schulman et al., 1506.02438)."""
        values, advantage = self._values.numpy(), np.zeros_like(self._rewards)
        discount, decay = self.settings.discount, self.settings.gae_lambda
        running = np.zeros_like(following)
        for t in reversed(range(len(values))):
            going = discount * ~self._dones[t]
            error = self._rewards[t] + going * following - values[t]
            advantage[t] = running = error + decay * going * running
            following = values[t]
        return torch.from_numpy(advantage)

    def _descend(self, rows: list[Tensor], state: State) -> None:
        """Take one step on the clipped loss (Schulman et al., 1707.06347) of a minibatch."""
        observation, action, old_log_prob, start, advantage, target = rows
        settings = self.settings
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        logits, value = self.policy.segment(observation, state, start)
        log_probs = logits.log_softmax(-1)
        log_prob = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        change = (log_prob - old_log_prob).exp()
        clipped = change.clamp(1.0 - settings.clip, 1.0 + settings.clip)
        gain = torch.minimum(change * advantage, clipped * advantage).mean()
        entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
        error = F.mse_loss(value, target)
        loss = settings.value_coefficient * error - gain - settings.entropy_coefficient * entropy
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), settings.max_grad_norm)
        self.optimizer.step()
