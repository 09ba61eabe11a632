"""What a server tells: edits that have ended, and counts."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from adapedit.request import EditRequest
from adapedit.result import EditResult
from adapedit_engine.caches import CacheStats
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
    """Counts of the scheduler, and of what was found in the caches.

    trajectories: None where sources are not kept, since nobody asked for it or the runner can't replay them.
    """

    scheduler: SchedulerStats
    embeddings: CacheStats
    projections: CacheStats
    observations: CacheStats
    inversions: CacheStats
    pictures: CacheStats
    trajectories: CacheStats | None


def finished(place: int, request: EditRequest, future: Future[EditResult]) -> Finished:
    """How the edit of a request ended, from its future, which is done."""
    if future.cancelled():
        return Finished(place=place, request=request, error=AdapEditError("the edit was cancelled"))
    error = future.exception()
    if error is not None:
        return Finished(place=place, request=request, error=error)
    return Finished(place=place, request=request, result=future.result())
