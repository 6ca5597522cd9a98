"""Any memory, and any trained agent, in stock TorchRL scripts: see docs/torchrl.md."""

from doxastic.agents.torchrl.memory_module import MemoryModule
from doxastic.agents.torchrl.networks import policy_module, value_module
from doxastic.agents.torchrl.observations import ObservationEncoder
from doxastic.agents.torchrl.restarts import mark_next_restarts
from doxastic.agents.torchrl.segments import to_segments

__all__ = [
    "MemoryModule",
    "ObservationEncoder",
    "mark_next_restarts",
    "policy_module",
    "to_segments",
    "value_module",
]
