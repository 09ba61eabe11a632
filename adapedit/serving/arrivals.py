"""Edits on their way into a server: between `submit` and its queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE_SECONDS = 0.002
"""How long after an edit the next one may be announced: a caller's loop comes round in less."""


PATIENCE_SECONDS = 0.01
"""How long the worker at most leaves its cores to whoever prepares edits, from its last step and from the last edit
that has come: some time of a step of the built-in model. What takes longer to prepare is prepared beside the steps."""


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
                self._wake.notify()

    def came(self) -> None:
        """An edit is there now. One that was refused, or is still without room, is none. Called under `wake`."""
        self._last = time.monotonic()
        self._wake.notify()

    @property
    def likely(self) -> bool:
        """Whether one is being prepared, or has just come: others like it may follow."""
        return self._coming > 0 or time.monotonic() < self._last + GRACE_SECONDS

    def worth_waiting(self, since: float) -> bool:
        """Whether who could have gone on since then, on the clock of `time.monotonic`, waits for what is likely."""
        return self.likely and time.monotonic() < max(since, self._last) + PATIENCE_SECONDS
