"""EditServer: a queue, a thread that steps the scheduler, and one that decodes while the next steps run.

On the CPU the stepping thread decodes as well: the cores are those of the next steps.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from adapedit.arguments import check_count, check_seconds
from adapedit.model import EditModel
from adapedit.progress import Progress
from adapedit.request import EditRequest, check_request
from adapedit.result import EditResult
from adapedit.serving.caching import Caches, CachingModel
from adapedit.serving.edits import EditedPart, PreparedEdit, edit_passes
from adapedit.serving.inbox import first_rows, late, most_urgent, parted
from adapedit.serving.outcomes import Finished, ServerStats, as_error, fail
from adapedit.serving.painting import Painter, in_server_thread, mark_server_thread, painting_executor
from adapedit.serving.scheduling import make_scheduler
from adapedit.serving.streaming import streamed
from adapedit_engine.cache import HostCopies
from adapedit_engine.scheduler import CachedRunner, Scheduler, SchedulerStats, Ticket
from adapedit_kernels.errors import AdapEditError


class EditServer:
    """Runs edits in the background; use it in a `with` block, whose end waits for all that was submitted.

    An error or Ctrl-C in the block cancels what has not ended.

    max_rows:     rows of the UNet in flight at most (an edit takes four, two in its first pass).
    max_pending:  edits that may wait; `submit` blocks above that.
    budget_bytes: memory for edits in flight and one UNet call; None: no limit.
    cache_bytes:  for prompts, for projected keys and values, first passes, inversions, and pictures of sources: each.
    share_sources: run the common source of edits that wait at the same time once.
    join_running: False is static batching, for comparison: a batch begins when the one before has ended.
    """

    def __init__(
        self,
        model: EditModel,
        *,
        max_rows: int = 32,
        max_pending: int = 256,
        budget_bytes: int | None = None,
        cache_bytes: int = 64 * 2**20,
        share_sources: bool = True,
        join_running: bool = True,
    ) -> None:
        check_count("max_rows", max_rows)
        check_count("max_pending", max_pending)
        check_count("cache_bytes", cache_bytes, least=0)
        if budget_bytes is not None:
            check_count("budget_bytes", budget_bytes)
        self.model = CachingModel.of(model, cache_bytes)
        self._runner = CachedRunner(model.runner, cache_bytes)
        self._caches = Caches.of(cache_bytes)
        self._copies = HostCopies(model.device)
        self._painter = Painter(model=self.model, sources=self._caches.pictures, copies=self._copies)
        self._on_cpu = model.device.type == "cpu"
        self._max_rows, self._share, self._join_running = max_rows, share_sources, join_running
        self._options: dict[str, Any] = {"budget_bytes": budget_bytes, "join_running": join_running}
        self._room = threading.BoundedSemaphore(max_pending)
        self._preparing, self._wake = threading.Lock(), threading.Condition()
        self._inbox: list[PreparedEdit] = []
        self._open = self._ended = False
        self._process = os.getpid()
        self._worker: threading.Thread | None = None
        self._scheduler: Scheduler | None = None
        self._jobs: dict[Ticket, list[PreparedEdit]] = {}
        self._failure: BaseException | None = None

    # -- for users

    def submit(self, request: EditRequest, *, deadline: float | None = None) -> Future[EditResult]:
        """Queue an edit and return its future, which may be cancelled at any time before it is done.

        deadline: seconds from now within which the edit has to begin; the most urgent go first. Raises
        `AdapEditError` at once for a request that can't run. Blocks while `max_pending` edits are under way; not in a
        callback of a future, which runs in the thread that would make room: that edit is taken beyond them.
        """
        if not self._open:
            raise AdapEditError("this server is not running: submit inside `with pipe.serve() as server:`")
        if os.getpid() != self._process:
            raise AdapEditError(f"this server runs in process {self._process}: make a new one in each fork")
        check_request(request)
        check_seconds("deadline", deadline)
        until = None if deadline is None else time.monotonic() + deadline
        with self._preparing:
            edit = self._prepare(request, until)
        placed = self._room.acquire(blocking=not in_server_thread())
        return self._queue(edit, placed)

    def _queue(self, edit: PreparedEdit, placed: bool) -> Future[EditResult]:
        """Hand over an edit. placed: it takes one of the `max_pending` places, until its end."""
        if placed:
            edit.future.add_done_callback(lambda _: self._room.release())
        with self._wake:
            if not (self._ended or self._failure):
                self._inbox.append(edit)
                self._wake.notify()
                return edit.future
        # Gives its place to the next that waits, who is told the same.
        edit.future.cancel()
        if self._failure is not None:
            raise AdapEditError("the server has stopped after an error") from self._failure
        raise AdapEditError("the server has ended while the edit waited: submit before that")

    def stream(
        self,
        requests: Iterable[EditRequest],
        *,
        ahead: int | None = None,
        callback: Progress | None = None,
    ) -> Iterator[Finished]:
        """Edits as they finish, each with the place of its request. A failed one is told, and the rest goes on.

        ahead: requests taken from the iterable and not yet given back, by default enough to fill the rows
        twice. callback(done, taken): after every edit. Leaving the loop early cancels the rest.
        """
        ahead = max(2, self._max_rows // 2) if ahead is None else ahead
        return streamed(requests, self.submit, ahead=ahead, callback=callback)

    @property
    def stats(self) -> ServerStats:
        """What has happened so far."""
        return ServerStats(
            scheduler=self._scheduler.stats if self._scheduler else SchedulerStats(),
            embeddings=self.model.embeddings.stats,
            projections=self._runner.prompts.stats,
            **self._caches.stats,
        )

    def __enter__(self) -> EditServer:
        if self._worker is not None:
            raise AdapEditError("this server has been used before: make a new one")
        self._open, self._process = True, os.getpid()
        self._worker = threading.Thread(target=self._run, name="adapedit-scheduler", daemon=True)
        self._worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if os.getpid() != self._process:
            return  # A fork has neither the worker nor whoever may hold the lock.
        with self._wake:
            self._open = False
            edits = self._under_way() if kind is not None else []
            self._wake.notify()
        assert self._worker is not None
        # Callbacks run here, outside of the lock. One that raises, even to exit, leaves no edit and no thread behind.
        with ExitStack() as last:
            last.callback(self._worker.join)
            for edit in edits:
                last.callback(edit.future.cancel)
        if self._failure is not None and kind is None:
            raise self._failure

    def _prepare(self, request: EditRequest, deadline: float | None) -> PreparedEdit:
        return PreparedEdit.of(request, self.model, self._max_rows, deadline)

    # -- the worker's side

    def _run(self) -> None:
        mark_server_thread()
        try:
            with self._runner as runner, painting_executor(self._on_cpu) as painter:
                scheduler = self._scheduler = make_scheduler(
                    runner, self.model, max_rows=self._max_rows, **self._options
                )
                while self._feed(scheduler):
                    for ticket in scheduler.step():
                        if not self._parted(scheduler, ticket):
                            painter.submit(self._deliver, ticket)
        except BaseException as error:
            self._failure = error
            self._abandon(error)

    def _feed(self, scheduler: Scheduler) -> bool:
        """Wait until the scheduler may step, and move edits into it; False at the end.

        No more than it can begin: what waits out here can still find others with the same source.
        """
        with self._wake:
            while scheduler.idle and not self._inbox:
                if not self._open:
                    self._ended = True
                    return False
                self._wake.wait()
            for edit in [edit for edit in self._inbox if edit.future.cancelled()]:
                edit.future.set_running_or_notify_cancel()
                self._inbox.remove(edit)
            gone = late(self._inbox)
            self._inbox = [edit for edit in self._inbox if edit not in gone]
            for ticket, edits in list(self._jobs.items()):
                if all(edit.future.cancelled() for edit in edits):
                    ticket.future.cancel()
            room = 0 if scheduler.waiting else self._room_in(scheduler)
            while self._inbox and room > 0:
                edits = most_urgent(self._inbox, share_sources=self._share, max_rows=self._max_rows)
                self._inbox = [edit for edit in self._inbox if edit not in edits]
                room -= first_rows(edits)
                self._begin(scheduler, edits)
        for edit, error in gone.items():
            fail(edit.future, error)
        return True

    def _begin(self, scheduler: Scheduler, edits: list[PreparedEdit]) -> None:
        deadlines = [edit.deadline for edit in edits if edit.deadline is not None]
        passes = edit_passes(edits, self._caches, self._copies)
        self._jobs[scheduler.submit(passes, deadline=min(deadlines, default=None))] = edits

    def _parted(self, scheduler: Scheduler, ticket: Ticket) -> bool:
        """Whether a job has failed that is tried again in parts, so that no edit fails by its neighbours."""
        error = None if ticket.future.cancelled() else ticket.future.exception()
        parts = [] if error is None else parted(self._jobs[ticket], error)
        for edits in parts:
            self._begin(scheduler, edits)
        if parts:
            del self._jobs[ticket]
        return bool(parts)

    def _room_in(self, scheduler: Scheduler) -> int:
        """Rows that the next step has room for."""
        return scheduler.free_rows if self._join_running or scheduler.idle else 0

    def _deliver(self, ticket: Ticket) -> None:
        error = CancelledError() if ticket.future.cancelled() else ticket.future.exception()
        if error is not None:
            parts = [EditedPart(edit=edit, error=as_error(error)) for edit in self._jobs[ticket]]
        else:
            parts = ticket.future.result()
        self._painter.paint(parts)
        # Only now: as long as not all have been handed over, they are under way.
        del self._jobs[ticket]

    def _under_way(self) -> list[PreparedEdit]:
        return [*self._inbox, *(edit for edits in list(self._jobs.values()) for edit in edits)]

    def _abandon(self, error: BaseException) -> None:
        with self._wake:
            self._open = False
            edits, self._inbox, self._jobs = self._under_way(), [], {}
        for edit in edits:
            fail(edit.future, error)
