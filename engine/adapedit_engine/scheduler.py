"""The scheduler: between two steps edits join, leave, fail or are cancelled; none waits for another's end."""

from __future__ import annotations

import heapq
import math
import time
import traceback
from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from adapedit_engine.batch import Batch, Seat, kind_of
from adapedit_engine.cache import ProjectionCache
from adapedit_engine.cuda_graph import CapturedSteps, RunAhead
from adapedit_engine.memory import CallBytes, CallRows, is_out_of_memory, plan_bytes
from adapedit_engine.plan import EditOutcome, EditPlan
from adapedit_engine.runners.base import Runner
from adapedit_engine.step import step
from adapedit_kernels.errors import AdapEditError

Error = TypeVar("Error", bound=BaseException)

Passes = Generator[Sequence[EditPlan], list[EditOutcome], Any]
"""A job: yields plans that may run side by side, is sent their outcomes in the same order, returns its result.

What it does between two yields holds up all others, so that should be little: where it is much, no plans are a pause,
and it goes on at the next step.
"""
Watch = Callable[[EditPlan, int, Tensor], Tensor | None]
"""Called after each step of each plan of a job with the plan, its steps done, and the latents [K, C, h, w].

What it returns takes the place of the latents. `Enough` ends the plan; what else it raises is the job's error.
"""

RETRIES = 1
"""Times that a call of one edit alone is tried again before the error counts as the edit's own."""


class Enough(Exception):
    """Raised by who watches a plan: it ends there, with the latents that it has."""


class AdmissionError(AdapEditError):
    """A job that could never run within the limits."""


class DeadlineError(AdapEditError):
    """A job whose deadline came before there was room for it."""

    @classmethod
    def by(cls, seconds: float) -> DeadlineError:
        """The error of an edit that could not begin so long after its deadline."""
        late = f"the deadline passed {seconds:.1f} s before there was room for the edit"
        return cls(f"{late}; allow more time, or send fewer at once")


@dataclass(kw_only=True, eq=False)
class Ticket:
    """A job in the scheduler's hands.

    number: of its arrival, from 0. deadline: on the scheduler's clock; earlier ones go first, and a job that has not
    begun by then fails; None: no hurry. watch: see `Watch`. steps_done: of all its plans, pauses too. future: its
    result or its own error; `future.cancel()` works at any time before the end, and the rows are free before the next
    call.

    wanted, outcomes: how many plans it wants just now, and those that are done. pauses: it wants none, and goes on at
    the next step. result (where it has ended) and error: what the future is about to be told.
    """

    number: int
    passes: Passes
    deadline: float | None
    watch: Watch | None = None
    steps_done: int = 0
    future: Future[Any] = field(default_factory=Future)
    outcomes: dict[int, EditOutcome] = field(default_factory=dict)
    wanted: int = 0
    begun: bool = False
    pauses: bool = False
    ended: bool = False
    result: Any = None
    error: BaseException | None = None

    @property
    def due(self) -> float:
        """The deadline; infinite where there is none."""
        return math.inf if self.deadline is None else self.deadline


@dataclass(kw_only=True)
class SchedulerStats:
    """Counts since the beginning.

    rows: of all calls; filled_rows: with those that sizes add. retried: calls split after an error. max_rows,
    max_bytes: the peaks that were admitted.
    """

    calls: int = 0
    rows: int = 0
    filled_rows: int = 0
    retried: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    max_rows: int = 0
    max_bytes: int = 0


@dataclass(kw_only=True, eq=False)
class _Run:
    """One plan of a job: waiting for room, or seated in a batch."""

    job: Ticket
    place: int
    plan: EditPlan
    bytes: int
    kind: Hashable
    seat: Seat | None = None

    @property
    def rows(self) -> int:
        return (self.plan if self.seat is None else self.seat.plan).rows

    @property
    def order(self) -> tuple[bool, float, int, int]:
        """Jobs that have begun, then by deadline, then by arrival."""
        return (not self.job.begun, self.job.due, self.job.number, self.place)


class Scheduler:
    """Runs jobs on a runner that is open. Single-threaded: whoever calls `step` does the work; `submit` only queues.

    Order: passes of jobs that have begun before new jobs, then by deadline, then by arrival; a plan that has to wait
    for room lets nobody pass, so none starves. Nothing depends on time but deadlines and reports.

    max_rows:     rows of all edits in flight.
    budget_bytes: memory for plans in flight and one call; None: no limit. call_bytes: of calls, see `memory`.
    capture:      run each step as one CUDA graph; None: where the runner allows it, on CUDA.
    projections:  what keeps those of the runner; None: prompts are projected at every join.
    join_running: False is static batching, for comparison: a new batch begins when the old one has ended.
    clock:        seconds.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_rows: int = 32,
        budget_bytes: int | None = None,
        call_bytes: CallBytes | None = None,
        capture: bool | None = None,
        projections: ProjectionCache | None = None,
        join_running: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runner, self.max_rows, self.budget_bytes = runner, max_rows, budget_bytes
        self.stats = SchedulerStats()
        may = runner.capabilities.capture == "step" and runner.device.type == "cuda"
        if capture and not may:
            raise AdapEditError(
                f"capture was asked for, and runner {runner.name!r} on {runner.device} can't be captured: leave it out"
            )
        self._capture = may if capture is None else capture
        self._call_bytes, self._projections = call_bytes, projections
        self._join_running, self._clock = join_running, clock
        self._call_rows, self._ahead = CallRows(max_rows), RunAhead(runner.device)
        self._batches: dict[Hashable, tuple[Batch, CapturedSteps | None]] = {}
        self._waiting: list[tuple[float, int, Ticket]] = []
        self._ready: list[_Run] = []
        self._running: list[_Run] = []
        self._jobs: dict[int, Ticket] = {}
        self._arrivals = 0

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not (self._waiting or self._jobs)

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._waiting) + sum(not job.begun for job in self._jobs.values())

    @property
    def free_rows(self) -> int:
        """Rows that could be in flight beside those that are."""
        return self.max_rows - sum(run.rows for run in self._running)

    def submit(self, passes: Passes, *, deadline: float | None = None, watch: Watch | None = None) -> Ticket:
        """Queue a job. It is begun by a later `step`."""
        ticket = Ticket(number=self._arrivals, passes=passes, deadline=deadline, watch=watch)
        self._arrivals += 1
        heapq.heappush(self._waiting, (ticket.due, ticket.number, ticket))
        return ticket

    def step(self) -> list[Ticket]:
        """Admit what fits, run every edit in flight by one step, and return the jobs that ended.

        Last it waits until the next step may be launched, so that who calls decides late what that step is of.
        """
        ended = self._drop_cancelled()
        for batch, _ in self._batches.values():
            for seat in [seat for seat in batch.seats if seat.stops_guidance]:
                self._run_of(seat).seat = batch.stop_guidance(seat)
        ended += self._admit()
        if self._call_rows.larger is not None and self._within_budget(self._call_rows.larger):
            self._call_rows.grow()
        for batch, captured in list(self._batches.values()):
            for seats in self._calls(batch):
                self._run(batch, captured, seats)
        for job in [job for job in self._jobs.values() if job.pauses]:
            job.steps_done += 1
            self._resume(job, [])
        for run in [run for run in self._running if run.seat is not None and run.seat.done]:
            self._finish(run)
        ended += [job for job in list(self._jobs.values()) if self._settle(job)]
        if not self._capture:  # captured steps keep their buffers, for edits to come
            self._batches = {kind: entry for kind, entry in self._batches.items() if entry[0].seats}
        self._ahead.launched()
        return ended

    def drain(self) -> list[Ticket]:
        """Step until idle."""
        ended = []
        while not self.idle:
            ended += self.step()
        return ended

    def close(self) -> None:
        """End all jobs as cancelled, and let go of everything."""
        for job in list(self._jobs.values()):
            job.future.cancel()
        for _, _, ticket in self._waiting:
            ticket.future.cancel()
        self._drop_cancelled()
        self._batches = {}

    # -- joining and leaving

    def _drop_cancelled(self) -> list[Ticket]:
        gone = [job for job in self._jobs.values() if job.future.cancelled()]
        for job in gone:
            self._forget(job)
        waiting = [entry for entry in self._waiting if entry[2].future.cancelled()]
        if waiting:
            self._waiting = [entry for entry in self._waiting if not entry[2].future.cancelled()]
            heapq.heapify(self._waiting)
        tickets = gone + [ticket for _, _, ticket in waiting]
        for ticket in tickets:
            ticket.future.set_running_or_notify_cancel()
        self.stats.cancelled += len(tickets)
        return tickets

    def _admit(self) -> list[Ticket]:
        ended: list[Ticket] = []
        may_begin = self._join_running or not any(job.begun for job in self._jobs.values())
        self._refuse_late()
        while True:
            while self._ready and (may_begin or self._ready[0].job.begun) and self._fits(self._ready[0]):
                self._begin(self._ready.pop(0))
            if not self._waiting or not may_begin:
                return ended
            deadline, number, job = self._waiting[0]
            if self._ready and self._ready[0].order < (True, deadline, number, 0):
                return ended
            heapq.heappop(self._waiting)
            self._jobs[number] = job
            self._refuse_late()
            if job.error is None:
                self._resume(job, None)
            if self._settle(job):
                ended.append(job)

    def _refuse_late(self) -> None:
        now = self._clock()
        for job in self._jobs.values():
            if not job.begun and job.error is None and job.due < now:
                job.error = DeadlineError.by(now - job.due)
                self._ready = [run for run in self._ready if run.job is not job]

    def _fits(self, run: _Run) -> bool:
        if not self._running:
            return True
        return run.rows <= self.free_rows and self._within_budget(self._call_rows.now, run)

    def _within_budget(self, call_rows: int, *more: _Run) -> bool:
        return self.budget_bytes is None or self._needed(call_rows, *more) <= self.budget_bytes

    def _needed(self, call_rows: int, *more: _Run) -> int:
        """Bytes of edits in flight together: what their plans hold, and the dearest of their calls."""
        runs = [*self._running, *more]
        rows: dict[Any, list[int]] = {}
        for run in runs:
            rows.setdefault(run.kind, []).append(run.rows)
        calls = {kind: min(sum(each), max(call_rows, *each)) for kind, each in rows.items()}
        dearest = max((self._bytes_of_call(most, kind) for kind, most in calls.items()), default=0)
        return sum(run.bytes for run in runs) + dearest

    def _bytes_of_call(self, rows: int, kind: Any) -> int:
        return 0 if self._call_bytes is None else self._call_bytes(rows, (kind[1], kind[2]))

    def _begin(self, run: _Run) -> None:
        run.job.begun = True
        try:
            batch = self._batch(run.kind)
            seat = batch.join(run.plan)
            run.seat = batch.stop_guidance(seat) if seat.stops_guidance else seat
        except Exception as error:
            run.job.error = error
            return
        self._running.append(run)
        self.stats.max_bytes = max(self.stats.max_bytes, self._needed(self._call_rows.now))
        self.stats.max_rows = max(self.stats.max_rows, self.max_rows - self.free_rows)

    def _batch(self, kind: Hashable) -> Batch:
        if kind not in self._batches:
            batch = Batch(self.runner, self.max_rows, projections=self._projections, whole=self._capture)
            self._batches[kind] = batch, CapturedSteps(batch) if self._capture else None
        return self._batches[kind][0]

    def _run_of(self, seat: Seat) -> _Run:
        return next(run for run in self._running if run.seat is seat)

    # -- running

    def _calls(self, batch: Batch) -> list[list[Seat]]:
        """The edits of a batch as calls of at most so many rows as memory holds, in the order in which they sit."""
        calls: list[list[Seat]] = []
        rows = 0
        for seat in batch.seats:
            if not calls or rows + seat.plan.rows > self._call_rows.now:
                calls.append([])
                rows = 0
            calls[-1].append(seat)
            rows += seat.plan.rows
        return calls

    def _run(
        self, batch: Batch, captured: CapturedSteps | None, seats: Sequence[Seat], retries: int = RETRIES
    ) -> None:
        """One call. Where it fails, halves are tried: an edit answers for nothing but a call of its own."""
        rows = sum(seat.plan.rows for seat in seats)
        try:
            if captured is None:
                step(batch, seats)
            else:
                captured.step(seats)
        except Exception as raised:
            # What the failed call had made is to be gone when halves are tried: it may be what they need room for.
            error = without_traceback(raised)
        else:
            self._call_rows.went_well()
            self.stats.calls += 1
            self.stats.rows += rows
            self.stats.filled_rows += batch.filled(rows)
            for seat in seats:
                self._count(batch, seat)
            return
        if is_out_of_memory(error):
            self._call_rows.ran_out(rows)
        self.stats.retried += 1
        if len(seats) == 1:
            if retries == 0:
                self._run_of(seats[0]).job.error = error
            else:
                self._run(batch, captured, seats, retries - 1)
            return
        middle = len(seats) // 2
        for half in (seats[:middle], seats[middle:]):
            self._run(batch, captured, half, retries)

    def _count(self, batch: Batch, seat: Seat) -> None:
        run = self._run_of(seat)
        job = run.job
        job.steps_done += 1
        if job.watch is not None and job.error is None:
            try:
                changed = job.watch(run.plan, seat.step, batch.latents(seat))
                if changed is not None:
                    batch.set_latents(seat, changed)
            except Enough:
                seat.ended = True
            except Exception as error:
                job.error = error

    def _finish(self, run: _Run) -> None:
        assert run.seat is not None
        self._running.remove(run)
        run.job.outcomes[run.place] = self._batch(run.kind).leave(run.seat)
        run.seat = None
        if len(run.job.outcomes) == run.job.wanted and run.job.error is None:
            self._resume(run.job, [run.job.outcomes[i] for i in range(run.job.wanted)])

    def _resume(self, job: Ticket, outcomes: list[EditOutcome] | None) -> None:
        """Let the job say what comes next."""
        try:
            plans = list(next(job.passes) if outcomes is None else job.passes.send(outcomes))
            runs = [self._checked_run(job, place, plan) for place, plan in enumerate(plans)]
        except StopIteration as end:
            job.result, job.ended = end.value, True
            return
        except Exception as error:
            job.error = error
            return
        job.outcomes, job.wanted, job.pauses = {}, len(runs), not runs
        job.begun |= job.pauses
        self._ready += runs
        # Arrival decides among equals, whatever order they were asked for in.
        self._ready.sort(key=lambda run: run.order)

    def _checked_run(self, job: Ticket, place: int, plan: EditPlan) -> _Run:
        plan.check_model(self.runner.specs)
        kind, needed = kind_of(plan), plan_bytes(plan, self.runner)
        run = _Run(job=job, place=place, plan=plan, bytes=needed, kind=kind)
        if run.rows > self.max_rows:
            raise AdmissionError(f"the edit takes {run.rows} rows, max_rows is {self.max_rows}: raise it")
        alone, budget = needed + self._bytes_of_call(run.rows, kind), self.budget_bytes
        if budget is not None and alone > budget:
            raise AdmissionError(
                f"the edit needs {alone / 2**20:.1f} MiB alone, the budget is {budget / 2**20:.1f} MiB: "
                "raise it, or ask for a smaller picture"
            )
        return run

    # -- ending

    def _settle(self, job: Ticket) -> bool:
        """Hand over the result or error of a job that has one. Whether it had."""
        if job.error is None and not job.ended:
            return False
        self._forget(job)
        future = job.future
        if not future.set_running_or_notify_cancel():
            self.stats.cancelled += 1
        elif job.error is not None:
            self.stats.failed += 1
            future.set_exception(without_traceback(job.error))
        else:
            self.stats.finished += 1
            future.set_result(job.result)
        return True

    def _forget(self, job: Ticket) -> None:
        del self._jobs[job.number]
        job.outcomes = {}
        for run in self._running:
            if run.job is job and run.seat is not None:
                self._batch(run.kind).drop(run.seat)
        self._running = [run for run in self._running if run.job is not job]
        self._ready = [run for run in self._ready if run.job is not job]
        # What a job does in its own `finally` is no concern of the others.
        with suppress(Exception):
            job.passes.close()


def denoise(plans: Sequence[EditPlan], runner: Runner, *, max_rows: int | None = None) -> list[EditOutcome]:
    """Run plans to their ends on a runner that is open, and return their outcomes in the same order.

    max_rows: of one call; None: as many as there are. Raises `PlanError` where a plan does not fit the model.
    """
    scheduler = Scheduler(runner, max_rows=max_rows or max(1, sum(plan.rows for plan in plans)))
    tickets = [scheduler.submit(_alone(plan)) for plan in plans]
    scheduler.drain()
    return [ticket.future.result() for ticket in tickets]


def _alone(plan: EditPlan) -> Passes:
    (outcome,) = yield [plan]
    return outcome


def without_traceback(error: Error) -> Error:
    """The error, and those that led to it, without their frames, which keep all tensors that were in them.

    Where it arose is kept as text, in a note (Python 3.11 on) of errors that are not the project's own.
    """
    frames = error.__traceback__
    if frames is not None and not isinstance(error, AdapEditError) and hasattr(error, "add_note"):
        error.add_note("".join(traceback.format_tb(frames)))
    chain: list[BaseException] = [error]
    seen = set[int]()
    while chain:
        link = chain.pop()
        if id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            chain += [other for other in (link.__cause__, link.__context__) if other is not None]
    return error
