"""Serving: edits that arrive when they like, through one scheduler, with results as they finish."""

from adapedit.serving.outcomes import Finished, ServerStats
from adapedit.serving.server import EditServer

__all__ = ["EditServer", "Finished", "ServerStats"]
