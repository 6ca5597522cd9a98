"""Doxastic's own trainer with the settings that all arms share."""

from __future__ import annotations

from gymnasium.vector import VectorEnv

from doxastic.agents.encoders import EncoderConfig
from doxastic.agents.policy import PolicyConfig
from doxastic.agents.ppo import PPO, PPOConfig
from doxastic.experiment import Experiment, build_agent
from doxastic.memory.build import MemoryConfig


def build_trainer(env: VectorEnv, memory: MemoryConfig, segment_steps: int) -> PPO:
    """Return a trainer without schedules, encoder and body as wide as the memory.

    Args:
        env: What to train on.
        memory: The memory.
        segment_steps: Steps of each environment between updates.
    """
    experiment = Experiment(
        encoder=EncoderConfig(width=memory.width),
        memory=memory,
        policy=PolicyConfig(hidden_size=memory.width),
        ppo=PPOConfig(
            learning_rate=1e-3,
            anneal_learning_rate=False,
            warmup_updates=0,
            segment_steps=segment_steps,
            epochs=4,
            minibatches=4,
            entropy_coefficient=0.01,
            anneal_entropy=False,
        ),
    )
    network = build_agent(experiment, env.single_observation_space, env.single_action_space)
    return PPO(network, env, experiment.ppo, total_steps=1)
