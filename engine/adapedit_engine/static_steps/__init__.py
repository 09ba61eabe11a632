"""Steps over static buffers: on CUDA one graph each, elsewhere the same without."""

from adapedit_engine.static_steps.slot import leave, newest
from adapedit_engine.static_steps.slots import GraphWarning, StaticSteps

__all__ = ["GraphWarning", "StaticSteps", "leave", "newest"]
