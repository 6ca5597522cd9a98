"""A memory inside algorithms that have none: run anew over the last steps at every step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from torch import Tensor

from doxastic.agents.config import EncoderConfig
from doxastic.agents.encoders import VectorEncoder, is_image
from doxastic.agents.sb3.memories import MemoryChoice, chosen_memory

Array = np.ndarray[Any, Any]


class VecWindow(VecEnvWrapper):
    """Shows the last observations of the running episode, `[window, C + 1]`, the newest last.

    The last channel is 1 at steps of the episode and 0, beside zeros, before its start: unlike
    with `VecFrameStack`, an observation of zeros is not mistaken for none. The
    `terminal_observation` is the window that ends with it.

    Args:
        venv: Environments with vectors for observations, `[C]` or of more dimensions.
        window: Steps seen at once.

    Raises:
        ValueError: If the observations are no vectors, or the window has no step.
    """

    def __init__(self, venv: VecEnv, window: int = 16) -> None:
        space = venv.observation_space
        if not isinstance(space, spaces.Box) or is_image(space):
            raise ValueError(
                f"VecWindow cannot take the observation space {space}; expected a Box of numbers. "
                "Wrap the environments in gymnasium.wrappers.FlattenObservation, or use VecBelief."
            )
        if window < 1:
            raise ValueError(f"window is {window}; expected at least 1 step.")
        low, high = (bound.astype(np.float32).ravel() for bound in (space.low, space.high))
        # Before the start of an episode all is zero.
        low = np.append(np.minimum(low, 0.0), np.float32(0.0))
        high = np.append(np.maximum(high, 0.0), np.float32(1.0))
        shape = (window, len(low))
        super().__init__(
            venv, spaces.Box(np.broadcast_to(low, shape), np.broadcast_to(high, shape), shape)
        )
        self._windows = np.zeros((venv.num_envs, *shape), np.float32)

    def reset(self) -> VecEnvObs:
        """Return windows that hold the first observation of new episodes."""
        observation = self.venv.reset()
        self._windows[:] = 0.0
        return self._push(observation)

    def step_wait(self) -> VecEnvStepReturn:
        """Return what follows the actions; where an episode ended, the window of the next."""
        observation, rewards, dones, infos = self.venv.step_wait()
        for row in np.flatnonzero(dones):
            final = infos[row].get("terminal_observation")
            if final is not None:
                infos[row]["terminal_observation"] = _pushed(self._windows[row : row + 1], final)[0]
        self._windows[dones] = 0.0
        return self._push(observation), rewards, dones, infos

    def _push(self, observation: VecEnvObs) -> Array:
        self._windows = _pushed(self._windows, observation)
        return self._windows.copy()


def _pushed(windows: Array, observation: Any) -> Array:
    """Return the windows `[N, window, C + 1]` after one more observation each."""
    newest = np.ones((len(windows), 1, windows.shape[2]), np.float32)
    newest[:, 0, :-1] = np.asarray(observation).reshape(len(windows), -1)
    return np.concatenate((windows[:, 1:], newest), 1)


class BeliefExtractor(BaseFeaturesExtractor):
    """A features extractor for PPO, A2C, SAC, TD3 and DQN: a memory over the window of `VecWindow`.

    ```python
    SAC("MlpPolicy", VecWindow(env, 16), policy_kwargs={
        "features_extractor_class": BeliefExtractor,
        "features_extractor_kwargs": {"memory": "belief", "width": 64},
    })
    ```

    Args:
        observation_space: Windows, `[window, C + 1]`.
        memory: As in `BeliefPolicy`.
        width: Width of the encoder and of a memory that is given by name.

    Raises:
        ValueError: If the observations are not windows.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        memory: MemoryChoice = "belief",
        width: int = 64,
    ) -> None:
        shape = observation_space.shape or ()
        if not isinstance(observation_space, spaces.Box) or len(shape) != 2 or shape[1] < 2:
            raise ValueError(
                f"BeliefExtractor cannot take the observation space {observation_space}; expected "
                "windows of observations, [window, C + 1]. Wrap the environments in VecWindow."
            )
        built = chosen_memory(memory, width, width, max(2, shape[0]))
        super().__init__(observation_space, built.feature_size)
        self.encoder = VectorEncoder((shape[1] - 1,), EncoderConfig(width=width))
        self.memory = built

    def forward(self, observations: Tensor) -> Tensor:
        """Return the memory's features `[B, F]` after the last step of windows."""
        valid = observations[..., -1] > 0.5
        # What lies before the episode is forgotten where it starts.
        start = valid.clone()
        start[:, 1:] &= ~valid[:, :-1]
        start[:, 0] = True
        x = self.encoder(observations[..., :-1])
        features, _ = self.memory(x, self.memory.initial_state(len(x)), start)
        last: Tensor = features[:, -1]
        return last
