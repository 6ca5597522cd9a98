"""RecurrentPPO with a rollout buffer that keeps few states."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv

from doxastic.agents.sb3.buffers import BeliefDictRolloutBuffer, BeliefRolloutBuffer
from doxastic.agents.sb3.policy import BeliefPolicy, CnnBeliefPolicy, MultiInputBeliefPolicy
from doxastic.memory.baselines import WindowMemory


class BeliefRecurrentPPO(RecurrentPPO):
    """sb3-contrib's RecurrentPPO with a lean rollout buffer, for doxastic's policies.

    Arguments, minibatches and results are those of `RecurrentPPO`, from the same seed the same up
    to rounding. The memory's state is stored where a segment or a minibatch starts instead
    of for every step, and minibatches are not padded.

    ```python
    BeliefRecurrentPPO("BeliefPolicy", env, policy_kwargs={"memory": "belief"}).learn(100_000)
    ```

    Raises:
        ValueError: If the policy is none of doxastic's, or its window longer than a rollout.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "BeliefPolicy": BeliefPolicy,
        "CnnBeliefPolicy": CnnBeliefPolicy,
        "MultiInputBeliefPolicy": MultiInputBeliefPolicy,
    }

    def _setup_model(self) -> None:
        if not issubclass(self.policy_class, BeliefPolicy):
            raise ValueError(
                f"policy is {self.policy_class.__name__}; expected one of "
                f"{', '.join(self.policy_aliases)}. Train other recurrent policies with "
                "sb3_contrib.RecurrentPPO."
            )
        super()._setup_model()
        recurrent: Any = self.policy.lstm_actor
        memory = recurrent.memory
        if isinstance(memory, WindowMemory) and memory.window > self.n_steps:
            raise ValueError(
                f"the memory's window is {memory.window} but n_steps is {self.n_steps}: what lies "
                "before a rollout reaches the encoder with no gradient. Raise n_steps or "
                "shorten the window."
            )
        # Whole states, of which the buffer keeps few, instead of handles.
        zeros = (torch.zeros(1, self.n_envs, recurrent.half_size, device=self.device),) * 2
        states: Any = RNNStates(zeros, zeros)
        self._last_lstm_states = states
        is_dict = isinstance(self.observation_space, spaces.Dict)
        buffer: Any = BeliefDictRolloutBuffer if is_dict else BeliefRolloutBuffer
        self.rollout_buffer = buffer(
            self.n_steps,
            self.observation_space,
            self.action_space,
            # The arrays of sb3-contrib's buffer stay empty.
            (0, 0, 0, 0),
            self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
        )

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Plan the minibatches, then collect; false if a callback ended the training."""
        buffer: Any = rollout_buffer
        batch_size = self.batch_size or self.n_steps * self.n_envs
        buffer.plan(batch_size, self.n_epochs, shared=self.policy.lstm_critic is None)
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
