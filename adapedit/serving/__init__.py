"""Serving: edits that arrive when they like, through one scheduler, with results as they finish."""

from adapedit.serving.server import EditServer, Finished, ServerStats

__all__ = ["EditServer", "Finished", "ServerStats"]
