"""Doxastic's memories inside Stable-Baselines3 and sb3-contrib."""

from doxastic.agents.sb3.policy import BeliefPolicy, CnnBeliefPolicy, MultiInputBeliefPolicy
from doxastic.agents.sb3.ppo import BeliefRecurrentPPO
from doxastic.agents.sb3.vec_belief import VecBelief
from doxastic.agents.sb3.window import BeliefExtractor, VecWindow

__all__ = [
    "BeliefExtractor",
    "BeliefPolicy",
    "BeliefRecurrentPPO",
    "CnnBeliefPolicy",
    "MultiInputBeliefPolicy",
    "VecBelief",
    "VecWindow",
]
