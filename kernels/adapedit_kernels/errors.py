"""The exception types that all rooms derive their user errors from.

A module of its own, so that catching an error costs no import of torch.
"""

from __future__ import annotations


class AdapEditError(ValueError):
    """An input that can't be used; the message is one line: what was got, what was wanted, how to mend it."""


class ImplementationError(AdapEditError):
    """A named implementation that can't run here; it is never replaced by another one silently."""
