"""The one exception type that all rooms derive their user errors from."""

from __future__ import annotations

__all__ = ["AdapEditError", "ImplementationError"]


class AdapEditError(ValueError):
    """An input that can't be used; the message is one line: what was got, what was wanted, how to mend it."""


class ImplementationError(AdapEditError):
    """A named implementation that can't run here; it is never replaced by another one silently."""
