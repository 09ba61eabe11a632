"""EditServer: a queue, a thread that steps the scheduler, and one that decodes while the next steps run."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from adapedit.edit import Edit, Edited, finish, passes, prepare
from adapedit.model import EditModel
from adapedit.request import (
    EditRequest,
    check_callback,
    check_count,
    check_preview,
    check_request,
    check_requests,
    check_seconds,
)
from adapedit.result import EditResult
from adapedit.sharing import CACHE_BYTES, Caches, share
from adapedit.watching import Preview, Watching
from adapedit_engine.cache import CacheStats, HostCopies
from adapedit_engine.memory import CallBytes, measure_call_bytes
from adapedit_engine.scheduler import DeadlineError, Scheduler, SchedulerStats, Ticket
from adapedit_kernels.errors import AdapEditError

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """An edit of a stream that has ended, well or not. place: of its request, from 0."""

    place: int
    request: EditRequest
    result: EditResult | None = None
    error: BaseException | None = None

    @classmethod
    def of(cls, place: int, request: EditRequest, future: Future[EditResult]) -> Finished:
        """How the edit of a request ended, from its future, which is done."""
        if future.cancelled():
            return cls(place=place, request=request, error=AdapEditError("the edit was cancelled"))
        error = future.exception()
        result = future.result() if error is None else None
        return cls(place=place, request=request, result=result, error=error)


@dataclass(frozen=True, kw_only=True)
class ServerStats:
    """Counts of the scheduler, and of what was found in the caches."""

    scheduler: SchedulerStats
    caches: dict[str, CacheStats]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting:
    """An edit with the future of its result. deadline: on the clock of `time.monotonic`."""

    edit: Edit
    deadline: float | None
    progress: Progress | None = None
    preview: Preview | None = None
    future: Future[EditResult] = field(default_factory=Future)


class EditServer:
    """Runs edits in the background; use it in a `with` block, whose end waits for all that was submitted.

    An error or Ctrl-C in the block cancels what has not ended.

    max_rows:     rows of the model in flight at most (an edit takes four, two in its first pass).
    max_pending:  edits that may wait; `submit` blocks above that.
    budget_bytes: memory for edits in flight and one call; None: no limit.
    cache_bytes:  for prompts, for projected keys and values, first passes, inversions, and pictures of sources: each.
    share_sources: run the common source of edits that wait at the same time once.
    capture:      run each step as one CUDA graph; None: where the runner allows it.
    join_running: False is static batching, for comparison: a batch begins when the one before has ended.
    """

    def __init__(
        self,
        model: EditModel,
        *,
        max_rows: int = 32,
        max_pending: int = 256,
        budget_bytes: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        share_sources: bool = True,
        capture: bool | None = None,
        join_running: bool = True,
    ) -> None:
        check_count("max_rows", max_rows)
        check_count("max_pending", max_pending)
        check_count("cache_bytes", cache_bytes, least=0)
        if budget_bytes is not None:
            check_count("budget_bytes", budget_bytes)
        self.model, self.caches = model, Caches.of(model.runner, cache_bytes)
        self._copies, self._encoding = HostCopies(model.device), HostCopies(model.device)
        self._max_rows, self._share, self._join_running = max_rows, share_sources, join_running
        self._budget, self._capture = budget_bytes, capture
        self.call_bytes: CallBytes | None = None
        """What calls take; None: with a budget, on CUDA, measured when the block begins."""
        self._room = threading.BoundedSemaphore(max_pending)
        self._preparing, self._wake = threading.Lock(), threading.Condition()
        self._inbox: list[_Waiting] = []
        self._open = self._ended = False
        self._process = os.getpid()
        self._worker: threading.Thread | None = None
        self._scheduler: Scheduler | None = None
        self._jobs: dict[Ticket, list[_Waiting]] = {}
        self._failure: BaseException | None = None
        self._decoder: ThreadPoolExecutor | None = None

    # -- for users

    def submit(
        self,
        request: EditRequest,
        *,
        deadline: float | None = None,
        progress: Progress | None = None,
        preview: Preview | None = None,
    ) -> Future[EditResult]:
        """Queue an edit and return its future, which may be cancelled at any time before it is done.

        deadline: seconds from now within which the edit has to begin; the most urgent go first. progress(done, total):
        called after each of its steps, in the server's thread, which it holds up; raising in it ends the edit.
        preview(step, picture): called every `preview_every` steps of the request with a small picture of the target, in
        the thread that decodes. Raises
        `AdapEditError` at once for a request that can't run. Blocks while `max_pending` edits are under way; not in a
        callback of a future, which runs in the thread that would make room: that edit is taken beyond them.
        """
        if not self._open:
            raise AdapEditError("this server is not running: submit inside `with pipe.serve() as server:`")
        if os.getpid() != self._process:
            raise AdapEditError(f"this server runs in process {self._process}: make a new one in each fork")
        check_request(request)
        check_seconds("deadline", deadline)
        check_callback(progress)
        check_preview(preview, request.preview_every)
        until = None if deadline is None else time.monotonic() + deadline
        one = replace(self._prepare(request, until), progress=progress, preview=preview)
        return self._queue(one, placed=self._room.acquire(blocking=not _in_server_thread()))

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
        check_requests(requests)
        check_count("ahead", ahead)
        check_callback(callback)
        return self._streamed(requests, ahead, callback)

    @property
    def running(self) -> bool:
        """Whether it takes edits: between the beginning of its block and the end, unless an error has stopped it."""
        return self._open and not self._ended and self._failure is None

    @property
    def stats(self) -> ServerStats:
        """What has happened so far."""
        scheduler = self._scheduler.stats if self._scheduler else SchedulerStats()
        return ServerStats(scheduler=scheduler, caches=self.caches.stats)

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
            waiting = self._under_way() if kind is not None else []
            self._wake.notify()
        assert self._worker is not None
        # Callbacks run here, outside of the lock. One that raises, even to exit, leaves no edit and no thread behind.
        with ExitStack() as last:
            last.callback(self._worker.join)
            for one in waiting:
                last.callback(one.future.cancel)
        if self._failure is not None and kind is None:
            raise self._failure

    def _prepare(self, request: EditRequest, deadline: float | None) -> _Waiting:
        with self._preparing, self._encoding.beside():
            edit = prepare(request, self.model, self.caches, max_rows=self._max_rows)
        return _Waiting(edit=edit, deadline=deadline)

    def _queue(self, one: _Waiting, placed: bool) -> Future[EditResult]:
        """Hand over an edit. placed: it takes one of the `max_pending` places, until its end."""
        if placed:
            one.future.add_done_callback(lambda _: self._room.release())
        with self._wake:
            if not (self._ended or self._failure):
                self._inbox.append(one)
                self._wake.notify()
                return one.future
        # Gives its place to the next that waits, who is told the same.
        one.future.cancel()
        if self._failure is not None:
            raise AdapEditError("the server has stopped after an error") from self._failure
        raise AdapEditError("the server has ended while the edit waited: submit before that")

    def _streamed(
        self, requests: Iterable[EditRequest], ahead: int, callback: Progress | None
    ) -> Iterator[Finished]:
        source, more, taken, done = iter(enumerate(requests)), True, 0, 0
        flying: dict[Future[EditResult], tuple[int, EditRequest]] = {}
        try:
            while more or flying:
                refused: list[Finished] = []
                while more and len(flying) < ahead and not refused:
                    try:
                        place, request = next(source)
                    except StopIteration:
                        more = False
                        break
                    taken += 1
                    try:
                        flying[self.submit(request)] = (place, request)
                    except Exception as error:
                        refused = [Finished(place=place, request=request, error=error)]
                ended = set() if refused or not flying else wait(flying, return_when=FIRST_COMPLETED)[0]
                futures = sorted(ended, key=lambda future: flying[future][0])
                for finished in [*refused, *(Finished.of(*flying.pop(f), f) for f in futures)]:
                    done += 1
                    if callback is not None:
                        callback(done, taken)
                    yield finished
        finally:
            for future in flying:
                future.cancel()

    # -- the worker's side

    def _run(self) -> None:
        _mark.of_a_server = True
        try:
            with (
                self.model.runner as runner,
                ThreadPoolExecutor(
                    1, "adapedit-decode", initializer=lambda: setattr(_mark, "of_a_server", True)
                ) as decoder,
            ):
                self._decoder = decoder
                scheduler = self._scheduler = self._make_scheduler(runner)
                while self._feed(scheduler):
                    for ticket in scheduler.step():
                        if not self._tried_in_parts(scheduler, ticket):
                            decoder.submit(self._deliver, ticket)
        except BaseException as error:
            self._failure = error
            self._abandon(error)

    def _make_scheduler(self, runner: Any) -> Scheduler:
        call_bytes = self.call_bytes
        if call_bytes is None and self._budget is not None and runner.device.type == "cuda":
            side = self.model.latent_size
            call_bytes = measure_call_bytes(runner, size=(side, side), tokens=self.model.max_tokens)
        return Scheduler(
            runner,
            max_rows=self._max_rows,
            budget_bytes=self._budget,
            call_bytes=call_bytes,
            capture=self._capture,
            projections=self.caches.projections,
            join_running=self._join_running,
        )

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
            for one in [one for one in self._inbox if one.future.cancelled()]:
                one.future.set_running_or_notify_cancel()
                self._inbox.remove(one)
            gone = _late(self._inbox)
            self._inbox = [one for one in self._inbox if one not in gone]
            for ticket, edits in list(self._jobs.items()):
                if all(one.future.cancelled() for one in edits):
                    ticket.future.cancel()
            room = 0 if scheduler.waiting else scheduler.free_rows
            if not (self._join_running or scheduler.idle):
                room = 0
            while self._inbox and room > 0:
                job = _most_urgent(self._inbox, share_sources=self._share, max_rows=self._max_rows)
                self._inbox = [one for one in self._inbox if one not in job]
                room -= sum((one.edit.observe or one.edit.draft).rows for one in job)
                self._begin(scheduler, job)
        for one, error in gone.items():
            _fail(one.future, error)
        return True

    def _begin(self, scheduler: Scheduler, job: list[_Waiting]) -> None:
        deadlines = [one.deadline for one in job if one.deadline is not None]
        edits = [one.edit for one in job]
        told = [one.progress for one in job if one.progress is not None]
        # Edits that share a source run the steps of one.
        total = max(edit.steps for edit in edits)

        def tell() -> None:
            for progress in told:
                progress(min(ticket.steps_done, total), total)

        watching = Watching(
            model=self.model,
            edits=edits,
            previews=[one.preview for one in job],
            progress=tell if told else None,
            begin=self._show,
        )
        work = passes(edits, self.model, self.caches, self._copies, watching.last)
        watch = watching if watching.wanted else None
        ticket = scheduler.submit(work, deadline=min(deadlines, default=None), watch=watch)
        self._jobs[ticket] = job

    def _show(self, show: Callable[..., None], *arguments: Any) -> None:
        """Have a preview decoded and shown, in the thread beside the next steps."""

        def shown() -> None:
            try:
                with self._copies.beside():
                    show(*arguments)
            except Exception:
                logging.getLogger(__name__).exception("a preview could not be shown; the edit goes on")

        assert self._decoder is not None
        self._decoder.submit(shown)

    def _tried_in_parts(self, scheduler: Scheduler, ticket: Ticket) -> bool:
        """Whether a job has failed that is tried again in parts, so that no edit fails by its neighbours."""
        error = None if ticket.future.cancelled() else ticket.future.exception()
        parts = [] if error is None else _parts(self._jobs[ticket], error)
        for job in parts:
            self._begin(scheduler, job)
        if parts:
            del self._jobs[ticket]
        return bool(parts)

    def _deliver(self, ticket: Ticket) -> None:
        """Decode the pictures of a job and hand over its results. In a thread beside the next steps."""
        error = CancelledError() if ticket.future.cancelled() else ticket.future.exception()
        job = self._jobs[ticket]
        if error is None:
            ended = ticket.future.result()
        else:
            ended = [Edited(edit=one.edit, error=_as_error(error)) for one in job]
        for one, edited in zip(job, ended, strict=True):
            if not one.future.set_running_or_notify_cancel():
                continue
            try:
                with self._copies.beside():
                    result = finish(edited, self.model, self.caches)
            except BaseException as failure:
                _hand_over(one.future.set_exception, _as_error(failure))
            else:
                _hand_over(one.future.set_result, result)
        # Only now: as long as not all have been handed over, they are under way.
        del self._jobs[ticket]

    def _under_way(self) -> list[_Waiting]:
        return [*self._inbox, *(one for job in list(self._jobs.values()) for one in job)]

    def _abandon(self, error: BaseException) -> None:
        with self._wake:
            self._open = False
            waiting, self._inbox, self._jobs = self._under_way(), [], {}
        for one in waiting:
            _fail(one.future, error)


def _most_urgent(waiting: Sequence[_Waiting], *, share_sources: bool, max_rows: int) -> list[_Waiting]:
    """The edit with the first deadline, or that came first, and those with the same source."""
    first = min(
        waiting, key=lambda one: (float("inf") if one.deadline is None else one.deadline, one.edit.began)
    )
    if not share_sources:
        return [first]
    candidates = [first, *(one for one in waiting if one is not first)]
    group = share([one.edit.draft for one in candidates], max_rows=max_rows)[0]
    return [candidates[place] for place in group]


def _late(waiting: Sequence[_Waiting]) -> dict[_Waiting, DeadlineError]:
    """Those whose deadline has passed, and what to tell them."""
    now = time.monotonic()
    dated = {one: one.deadline for one in waiting if one.deadline is not None}
    return {one: DeadlineError.by(now - deadline) for one, deadline in dated.items() if deadline < now}


def _parts(job: Sequence[_Waiting], error: BaseException) -> list[list[_Waiting]]:
    """Jobs to try in the place of one that failed: the error may be one edit's own, or come of being together.

    Halves; or those that are late, and the others. None where the error is that of each.
    """
    if len(job) == 1:
        return []
    if isinstance(error, DeadlineError):
        gone = _late(job)
        rest = [one for one in job if one not in gone]
        return [[*gone], rest] if gone and rest else []
    middle = len(job) // 2
    return [list(job[:middle]), list(job[middle:])]


def _hand_over(end: Callable[[Any], object], value: object) -> None:
    """Call a future's `set_result` or `set_exception`. Callbacks that raise, even to exit, end no thread of the server.

    What `Exception`s they raise, the future itself reports; what else, this does.
    """
    try:
        end(value)
    except BaseException:
        logging.getLogger(__name__).exception("a callback of an edit's future raised; the server goes on")


def _fail(future: Future[EditResult], error: BaseException) -> None:
    """The error as the end of an edit that waits or runs; one that was cancelled is told so."""
    if future.done() and not future.cancelled():
        return
    if future.running() or future.set_running_or_notify_cancel():
        _hand_over(future.set_exception, _as_error(error))


def _as_error(error: BaseException) -> Exception:
    """What a future may give to whoever asks for its result: nothing that ends their thread."""
    return error if isinstance(error, Exception) else RuntimeError(f"the server stopped: {error!r}")


class _Mark(threading.local):
    of_a_server = False


_mark = _Mark()


def _in_server_thread() -> bool:
    """Whether this is a callback of a future, during which the server can't go on: it must not wait for one."""
    return _mark.of_a_server
