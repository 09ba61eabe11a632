"""Steps over static buffers: on CUDA one graph each, elsewhere the same without."""

from adapedit_engine.static_steps.slot import GraphWarning, newest
from adapedit_engine.static_steps.slots import StaticSteps

__all__ = ["GraphWarning", "StaticSteps", "newest"]
