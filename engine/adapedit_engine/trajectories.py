"""Recordings of source trajectories, kept for later edits within a bound of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce

from adapedit_engine.caches import CacheStats
from adapedit_engine.plan import EditPlan
from adapedit_engine.recording import Reach, Recording, Trace
from adapedit_engine.replay import reach_of, recording_bytes, source_key
from adapedit_engine.runners import Runner


@dataclass(kw_only=True, eq=False)
class _Entry:
    recording: Recording
    bytes: int
    users: int = 0


class Trajectories:
    """What is kept and what is being recorded together never take more than `max_bytes`.

    Room is made before a recording begins, and the least recently used goes first, but never one that an edit is
    replaying. Where there is no room an edit runs as if this were not here. Thread-safe.

    runner:      of all edits; see `can_replay` for which can.
    records_all: record every source, and keep it. Otherwise those alone that a later pass of the same edit runs again,
                 until it has, and none where edits run by static steps, which those that record would have to leave.
    """

    def __init__(self, max_bytes: int, runner: Runner, *, records_all: bool = True) -> None:
        self.max_bytes, self._runner, self._records_all = max_bytes, runner, records_all
        self._can = can_replay(runner) and (records_all or not getattr(runner, "static_steps", False))
        self._kept: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._coming: dict[Hashable, _Entry] = {}
        self._lock = threading.Lock()
        self._hits = self._misses = self._evictions = 0

    @contextmanager
    def attached(self, plan: EditPlan, ahead: Sequence[EditPlan] = ()) -> Iterator[EditPlan]:
        """The plan, to be run inside: with its source replayed, recorded, or as it is.

        ahead: plans that will be run behind this one, as far as they are known. Of those with the same source, what
        they look at in it is recorded as well. Leaving the block by an error (cancellation is one) drops what was
        recorded.
        """
        # The key is a digest of the plan's tensors: not made where it could find nothing.
        useful = self._records_all or ahead or self._kept
        key = source_key(plan) if useful and self._can else None
        if key is None:
            yield plan
            return
        needs = self._reach(plan)
        later = [self._reach(other) for other in ahead if source_key(other) == key]
        reach = reduce(Reach.union, later, needs)
        with self._lock:
            trace = self._replay(key, needs, reach)
            if trace is None and (self._records_all or later):
                trace = self._record(key, needs, reach, plan)
        if trace is None:
            yield plan
            return
        whole = False
        try:
            yield replace(plan, trace=trace)
            whole = trace.recording.whole
        finally:
            with self._lock:
                self._close(key, trace, whole, last=not (self._records_all or later))

    def foreseen(self, plan: EditPlan) -> EditPlan:
        """The plan as it will be attached when what is being recorded now is there: for its number of rows."""
        key = source_key(plan) if self._coming else None
        with self._lock:
            coming = None if key is None else self._coming.get(key)
        if coming is None:
            return plan
        needs = self._reach(plan)
        if not coming.recording.reach.covers(needs):
            return plan
        return replace(plan, trace=Trace(recording=coming.recording, needs=needs, replays=True))

    @property
    def stats(self) -> CacheStats:
        """hits: edits whose source was replayed. bytes: with those that are being recorded."""
        with self._lock:
            return CacheStats(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                entries=len(self._kept),
                bytes=self._held,
            )

    def _reach(self, plan: EditPlan) -> Reach:
        return reach_of(plan, len(self._runner.specs.self_layers))

    def _replay(self, key: Hashable, needs: Reach, reach: Reach) -> Trace | None:
        entry = self._kept.get(key)
        if entry is None or not entry.recording.reach.covers(reach):
            self._misses += 1
            return None
        self._hits += 1
        self._kept.move_to_end(key)
        entry.users += 1
        return Trace(recording=entry.recording, needs=needs, replays=True)

    def _record(self, key: Hashable, needs: Reach, reach: Reach, plan: EditPlan) -> Trace | None:
        if key in self._coming:
            return None
        known = self._kept.get(key)
        reach = reach if known is None else reach.union(known.recording.reach)
        size = recording_bytes(plan, reach, self._runner.specs, self._runner.dtype)
        if not self._make_room(size):
            return None
        recording = Recording(reach=reach, length=plan.steps)
        self._coming[key] = _Entry(recording=recording, bytes=size)
        return Trace(recording=recording, needs=needs, replays=False)

    def _make_room(self, size: int) -> bool:
        free = [key for key, entry in self._kept.items() if not entry.users]
        if self._held - sum(self._kept[key].bytes for key in free) + size > self.max_bytes:
            return False
        for key in free:
            if self._held + size <= self.max_bytes:
                break
            del self._kept[key]
            self._evictions += 1
        return True

    def _close(self, key: Hashable, trace: Trace, whole: bool, last: bool) -> None:
        """last: nobody is known who would replay it again."""
        if trace.replays:
            for known, entry in list(self._kept.items()):
                if entry.recording is trace.recording:
                    entry.users -= 1
                    if last and not entry.users:
                        del self._kept[known]
            return
        del self._coming[key]
        size = trace.recording.bytes
        before = self._kept.get(key)
        if not whole or (before is not None and before.users):
            return
        # One of the same source with a smaller reach makes way.
        self._kept.pop(key, None)
        if self._held + size <= self.max_bytes:
            self._kept[key] = _Entry(recording=trace.recording, bytes=size)

    @property
    def _held(self) -> int:
        return sum(entry.bytes for entry in (*self._kept.values(), *self._coming.values()))


def can_replay(runner: Runner) -> bool:
    """Whether sources can be recorded and replayed on this runner."""
    return bool(getattr(runner, "supports_replay", False))
