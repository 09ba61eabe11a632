"""Edits on their way into a server: between `submit` and its queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE_SECONDS = 0.002
"""How long after an edit the next one may be announced: a caller's loop comes round in less."""


class Arrivals:
    """Counts edits that are being prepared. `wake` is told whenever one has come."""

    def __init__(self, wake: threading.Condition) -> None:
        self._wake = wake
        self._coming = 0
        self._last = -GRACE_SECONDS

    @contextmanager
    def announced(self) -> Iterator[None]:
        """While an edit is prepared. Not to be held while waiting for the server's worker."""
        with self._wake:
            self._coming += 1
        try:
            yield
        finally:
            with self._wake:
                self._coming -= 1
                self._last = time.monotonic()
                self._wake.notify()

    @property
    def likely(self) -> bool:
        """Whether one is being prepared, or has just come: others like it may follow."""
        return self._coming > 0 or time.monotonic() < self._last + GRACE_SECONDS
