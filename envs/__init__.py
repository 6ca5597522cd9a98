"""Partially observed environments, in NumPy and PyTorch, behind Gymnasium ids."""

from doxastic.envs.batched import BatchedPOMDP, NumpyRandom, Random, TorchRandom
from doxastic.envs.gymnasium import POMDPEnv, POMDPVectorEnv
from doxastic.envs.make import EnvConfig, env_state, make_vector_env
from doxastic.envs.noise import NOISE_KINDS, NoiseKind
from doxastic.envs.noisy_task import NoisyTask
from doxastic.envs.registration import register_tasks
from doxastic.envs.tasks.acrobot import Acrobot
from doxastic.envs.tasks.autoencode import Autoencode
from doxastic.envs.tasks.battleship import Battleship
from doxastic.envs.tasks.cartpole import CartPole
from doxastic.envs.tasks.concentration import Concentration
from doxastic.envs.tasks.copying import Copy
from doxastic.envs.tasks.count_recall import CountRecall
from doxastic.envs.tasks.higher_lower import HigherLower
from doxastic.envs.tasks.light_dark import LightDark
from doxastic.envs.tasks.linear_gaussian import LinearGaussian
from doxastic.envs.tasks.mine_sweeper import MineSweeper
from doxastic.envs.tasks.noisy_bandit import NoisyBandit
from doxastic.envs.tasks.pendulum import Pendulum
from doxastic.envs.tasks.repeat_first import RepeatFirst
from doxastic.envs.tasks.repeat_previous import RepeatPrevious
from doxastic.envs.tasks.sequential_test import SequentialTest
from doxastic.envs.tasks.t_maze import TMaze
from doxastic.envs.tasks.tiger import Tiger
from doxastic.envs.wrappers import ObservationNoise, PreviousAction, VectorObservationNoise

__all__ = [
    "NOISE_KINDS",
    "Acrobot",
    "Autoencode",
    "BatchedPOMDP",
    "Battleship",
    "CartPole",
    "Concentration",
    "Copy",
    "CountRecall",
    "EnvConfig",
    "HigherLower",
    "LightDark",
    "LinearGaussian",
    "MineSweeper",
    "NoiseKind",
    "NoisyBandit",
    "NoisyTask",
    "NumpyRandom",
    "ObservationNoise",
    "POMDPEnv",
    "POMDPVectorEnv",
    "Pendulum",
    "PreviousAction",
    "Random",
    "RepeatFirst",
    "RepeatPrevious",
    "SequentialTest",
    "TMaze",
    "Tiger",
    "TorchRandom",
    "VectorObservationNoise",
    "env_state",
    "make_vector_env",
    "register_tasks",
]

register_tasks()
