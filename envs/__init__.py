"""Partially observed environments, in NumPy and PyTorch, behind Gymnasium ids."""

from doxastic.envs.batched import BatchedPOMDP, NumpyRandom, Random, TorchRandom
from doxastic.envs.cartpole import CartPole
from doxastic.envs.gymnasium import POMDPEnv, POMDPVectorEnv
from doxastic.envs.make import EnvConfig, env_state, make_vector_env
from doxastic.envs.noise import ObservationNoise
from doxastic.envs.registration import register_tasks
from doxastic.envs.sequential_test import SequentialTest
from doxastic.envs.wrappers import PreviousAction

__all__ = [
    "BatchedPOMDP",
    "CartPole",
    "EnvConfig",
    "NumpyRandom",
    "ObservationNoise",
    "POMDPEnv",
    "POMDPVectorEnv",
    "PreviousAction",
    "Random",
    "SequentialTest",
    "TorchRandom",
    "env_state",
    "make_vector_env",
    "register_tasks",
]

register_tasks()
