"""A trained agent's belief beside the observation, for algorithms of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import Tensor

from doxastic.agents.agent import Agent
from doxastic.agents.encoders import to_tensors
from doxastic.agents.sb3.checks import check_same_observations
from doxastic.agents.sb3.runs import load_agent
from doxastic.agents.trees import concatenate_rows, tree_map

Array = np.ndarray[Any, Any]


class VecBelief(VecEnvWrapper):
    """Adds the belief of a trained agent, mean and variance of M channels, to observations.

    The agent's memory runs along with the episodes and is not trained further, so that any
    algorithm, SAC and DQN with their replay included, sees a belief instead of a moment.

    A vector `[C]` becomes `[C + 2 M]`: observation, means, variances. In a Dict the belief is the
    entry `belief`; any other observation becomes a Dict of `observation` and `belief`.

    Args:
        venv: Environments with the observations that the agent was trained on.
        run: A run folder of doxastic, or its agent.

    Raises:
        ValueError: If the observation spaces differ, or the agent's readout is `none`.
        TypeError: If the agent's memory has no belief.
    """

    def __init__(self, venv: VecEnv, run: str | Path | Agent) -> None:
        self.agent = load_agent(run)
        memory: Any = self.agent.policy.memory
        readout = getattr(memory, "readout", None)
        if readout is None:
            raise TypeError(
                f"the run's {type(memory).__name__} keeps no belief. Train one with memory.kind: "
                "belief and a readout: moments, precision or learned."
            )
        check_same_observations(venv.observation_space, self.agent)
        self._memory, self._space = memory, venv.observation_space
        super().__init__(venv, _with_belief(venv.observation_space, readout.size))
        self._state = self.agent.policy.initial_state(venv.num_envs)

    def reset(self) -> VecEnvObs:
        """Return the first observations of new episodes and the beliefs after them."""
        observation = self.venv.reset()
        return self._believe(observation, np.ones(self.num_envs, bool))

    def step_wait(self) -> VecEnvStepReturn:
        """Return what follows the actions, with the beliefs after it.

        Where an episode ended, `terminal_observation` carries the belief at its end and the
        observation the one after the first step of the next.
        """
        observation, rewards, dones, infos = self.venv.step_wait()
        rows = [row for row in np.flatnonzero(dones) if "terminal_observation" in infos[row]]
        if rows:
            finals = [infos[row]["terminal_observation"] for row in rows]
            batch = concatenate_rows([tree_map(lambda x: np.asarray(x)[None], x) for x in finals])
            beliefs, _ = self._step(
                batch, self._state[torch.tensor(rows)], np.zeros(len(rows), bool)
            )
            for row, final, belief in zip(rows, finals, beliefs, strict=True):
                infos[row]["terminal_observation"] = _joined(final, belief, self._space)
        return self._believe(observation, dones), rewards, dones, infos

    def _believe(self, observation: VecEnvObs, starts: Array) -> Any:
        """Return observations with beliefs, and carry the memory on."""
        beliefs, self._state = self._step(observation, self._state, starts)
        return _joined(observation, beliefs, self._space)

    @torch.no_grad()
    def _step(self, observation: Any, state: Tensor, starts: Array) -> tuple[Array, Tensor]:
        """Return beliefs `[N, 2 M]` and the memory's state after these observations."""
        agent = self.agent
        inputs = to_tensors(observation, self._space, agent.device)
        if agent.normalizer is not None:
            inputs = agent.normalizer(inputs)
        x = agent.policy.encoder(inputs).unsqueeze(1)
        reset = torch.from_numpy(starts).to(agent.device).unsqueeze(1)
        belief, state = self._memory.belief(x, state, reset)
        both = torch.cat((belief.mean, belief.variance), -1).squeeze(1)
        return both.cpu().numpy(), state


def _with_belief(space: gym.Space[Any], size: int) -> gym.Space[Any]:
    """Return the space of observations with the belief of `size` channels."""
    low = np.repeat(np.array([-np.inf, 0.0], np.float32), size)
    high = np.full(2 * size, np.inf, np.float32)
    if isinstance(space, spaces.Dict):
        return spaces.Dict({**space.spaces, "belief": spaces.Box(low, high)})
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        return spaces.Dict({"observation": space, "belief": spaces.Box(low, high)})
    bounds = ((space.low, low), (space.high, high))
    low, high = (np.concatenate((np.float32(a), b)) for a, b in bounds)
    return spaces.Box(low, high)


def _joined(observation: Any, belief: Array, space: gym.Space[Any]) -> Any:
    """Return an observation, or a batch of them, with its belief."""
    if isinstance(space, spaces.Dict):
        return {**observation, "belief": belief}
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        return {"observation": observation, "belief": belief}
    return np.concatenate((observation, belief), -1, dtype=np.float32)
