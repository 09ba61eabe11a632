"""What a server tells: edits that have ended, and counts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from adapedit.request import EditRequest
from adapedit.result import EditResult
from adapedit_engine.cache import CacheStats
from adapedit_engine.scheduler import SchedulerStats
from adapedit_kernels.errors import AdapEditError


@dataclass(frozen=True, kw_only=True)
class Finished:
    """An edit of a stream that has ended, well or not. place: of its request, from 0."""

    place: int
    request: EditRequest
    result: EditResult | None = None
    error: BaseException | None = None


@dataclass(frozen=True, kw_only=True)
class ServerStats:
    """Counts of the scheduler, and of what was found in the caches."""

    scheduler: SchedulerStats
    embeddings: CacheStats
    projections: CacheStats
    observations: CacheStats
    inversions: CacheStats
    pictures: CacheStats


def finished(place: int, request: EditRequest, future: Future[EditResult]) -> Finished:
    """How the edit of a request ended, from its future, which is done."""
    if future.cancelled():
        return Finished(place=place, request=request, error=AdapEditError("the edit was cancelled"))
    error = future.exception()
    if error is not None:
        return Finished(place=place, request=request, error=error)
    return Finished(place=place, request=request, result=future.result())


def hand_over(end: Callable[[Any], object], value: object) -> None:
    """Call a future's `set_result` or `set_exception`. Callbacks that raise, even to exit, end no thread of the server.

    What `Exception`s they raise, the future itself reports; what else, this does.
    """
    try:
        end(value)
    except BaseException:
        logging.getLogger(__name__).exception("a callback of an edit's future raised; the server goes on")


def fail(future: Future[EditResult], error: BaseException) -> None:
    """The error as the end of an edit that waits or runs; one that was cancelled is told so."""
    if future.done() and not future.cancelled():
        return
    if future.running() or future.set_running_or_notify_cancel():
        hand_over(future.set_exception, as_error(error))


def as_error(error: BaseException) -> Exception:
    """What a future may give to whoever asks for its result: nothing that ends their thread."""
    return error if isinstance(error, Exception) else RuntimeError(f"the server stopped: {error!r}")
