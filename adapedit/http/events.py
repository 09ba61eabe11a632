"""What happens to an edit, told to whoever listens: from the server's threads into the event loop, and as text."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

LOOK = 1.0
"""Seconds after which somebody who listens is looked for."""
KEEPALIVE = 15.0
MAX_PREVIEWS = 4

Event = tuple[str, dict[str, Any]]


class Mailbox:
    """Events of one edit for one listener. Who reads slowly misses steps and older previews, and takes no memory."""

    def __init__(self) -> None:
        self._loop, self._waiting = asyncio.get_running_loop(), asyncio.Event()
        self._events: dict[str, Event] = {}

    def put(self, name: str, data: dict[str, Any]) -> None:
        """From any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._put, name, data)

    def _put(self, name: str, data: dict[str, Any]) -> None:
        key = f"{name} {data['step']}" if name == "preview" else name
        self._events.pop(key, None)
        self._events[key] = name, data
        previews = [key for key, event in self._events.items() if event[0] == "preview"]
        for old in previews[:-MAX_PREVIEWS]:
            del self._events[old]
        self._waiting.set()

    async def take(self, seconds: float) -> list[Event]:
        """What came since the last call; waits so long for it at most."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._waiting.wait(), seconds)
        self._waiting.clear()
        found, self._events = list(self._events.values()), {}
        return found


async def listen(box: Mailbox, gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[Event | None]:
    """Events up to the last one; None where there was none for a while. Ends early when the listener is gone."""
    told, looked = time.monotonic(), -LOOK
    while True:
        if (now := time.monotonic()) >= looked + LOOK:
            if await gone():
                return
            looked = now
        found = await box.take(LOOK)
        if found:
            told = time.monotonic()
        elif time.monotonic() >= told + KEEPALIVE:
            told = time.monotonic()
            yield None
        for event in found:
            yield event
            if event[0] in ("completed", "failed", "cancelled"):
                return


def sse(event: Event | None) -> str:
    """As server-sent; None is a comment that keeps the connection."""
    if event is None:
        return ": still here\n\n"
    name, data = event
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n"


SSE_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
