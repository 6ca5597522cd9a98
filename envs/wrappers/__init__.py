"""Wrappers that make any Gymnasium environment, or N of them, fit for agents with a memory."""

from doxastic.envs.wrappers.copy_data import CopyData
from doxastic.envs.wrappers.delay import Delay, VectorDelay
from doxastic.envs.wrappers.elapsed_time import ElapsedTime, VectorElapsedTime
from doxastic.envs.wrappers.flicker import Flicker, VectorFlicker
from doxastic.envs.wrappers.mask import Mask, VectorMask
from doxastic.envs.wrappers.numeric_entries import NumericEntries
from doxastic.envs.wrappers.observation_noise import ObservationNoise, VectorObservationNoise
from doxastic.envs.wrappers.previous_action import PreviousAction, VectorPreviousAction
from doxastic.envs.wrappers.previous_reward import PreviousReward, VectorPreviousReward

__all__ = [
    "CopyData",
    "Delay",
    "ElapsedTime",
    "Flicker",
    "Mask",
    "NumericEntries",
    "ObservationNoise",
    "PreviousAction",
    "PreviousReward",
    "VectorDelay",
    "VectorElapsedTime",
    "VectorFlicker",
    "VectorMask",
    "VectorObservationNoise",
    "VectorPreviousAction",
    "VectorPreviousReward",
]
