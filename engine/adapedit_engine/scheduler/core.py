"""The scheduler: between two UNet calls edits join, leave, fail or are cancelled; none waits for another's end."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any

from adapedit_engine.padding import in_slots
from adapedit_engine.scheduler.executor import Executor
from adapedit_engine.scheduler.jobs import (
    DeadlineError,
    Job,
    Passes,
    Run,
    SchedulerStats,
    Ticket,
    is_out_of_memory,
    without_traceback,
)
from adapedit_engine.scheduler.limits import CallRows, check_limits, needed_bytes

RETRIES = 1
"""Times that a call of one edit alone is tried again before the error counts as the edit's own."""


class Scheduler:
    """Runs jobs on an executor. Single-threaded: whoever calls `step` does the work; `submit` only queues.

    Order: passes of jobs that have begun before new jobs, then by deadline, then by arrival; a plan that has
    to wait for room lets nobody pass, so none starves. Nothing depends on time but deadlines and reports.

    max_rows:     rows of all edits in flight.
    budget_bytes: memory for plans in flight and one call, see `memory`; None: no limit.
    join_running: False is static batching, for comparison: a new batch begins when the old one has ended.
    clock:        seconds; a simulation brings its own.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        max_rows: int = 32,
        budget_bytes: int | None = None,
        join_running: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.executor, self.max_rows, self.budget_bytes = executor, max_rows, budget_bytes
        self.stats = SchedulerStats()
        self._join_running, self._clock = join_running, clock
        self._call_rows = CallRows(max_rows)
        self._waiting: list[tuple[float, int, Ticket]] = []
        self._ready: list[Run] = []
        self._running: list[Run] = []
        self._jobs: dict[int, Job] = {}
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

    def submit(self, passes: Passes, *, deadline: float | None = None) -> Ticket:
        """Queue a job. It is begun by a later `step`."""
        ticket = Ticket(number=self._arrivals, passes=passes, deadline=deadline, arrived=self._clock())
        self._arrivals += 1
        heapq.heappush(self._waiting, (math.inf if deadline is None else deadline, ticket.number, ticket))
        return ticket

    def step(self) -> list[Ticket]:
        """Admit what fits, run every edit in flight by one step, and return the jobs that ended."""
        ended = self._drop_cancelled()
        ended += self._admit()
        for group in self._calls():
            self._tick(group)
        for job in [job for job in self._jobs.values() if job.pauses]:
            self._resume(job, [])
        for run in [run for run in self._running if self.executor.done(run.state)]:
            self._running.remove(run)
            self._finish(run)
        ended += [job.ticket for job in list(self._jobs.values()) if self._settle(job)]
        return ended

    def drain(self) -> list[Ticket]:
        """Step until idle."""
        ended = []
        while not self.idle:
            ended += self.step()
        return ended

    # -- joining and leaving

    def _drop_cancelled(self) -> list[Ticket]:
        gone = [job for job in self._jobs.values() if job.ticket.future.cancelled()]
        for job in gone:
            self._forget(job)
        waiting = [entry for entry in self._waiting if entry[2].future.cancelled()]
        if waiting:
            self._waiting = [entry for entry in self._waiting if not entry[2].future.cancelled()]
            heapq.heapify(self._waiting)
        tickets = [job.ticket for job in gone] + [ticket for _, _, ticket in waiting]
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
            deadline, number, ticket = self._waiting[0]
            if self._ready and self._ready[0].order < (True, deadline, number, 0):
                return ended
            heapq.heappop(self._waiting)
            job = self._jobs[number] = Job(ticket=ticket)
            self._refuse_late()
            if job.error is None:
                self._resume(job, None)
            if self._settle(job):
                ended.append(ticket)

    def _refuse_late(self) -> None:
        now = self._clock()
        for job in self._jobs.values():
            deadline = job.ticket.deadline
            if not job.begun and job.error is None and deadline is not None and deadline < now:
                job.error = DeadlineError.by(now - deadline)
                self._ready = [run for run in self._ready if run.job is not job]

    def _fits(self, run: Run) -> bool:
        if not self._running:
            return True
        return run.rows <= self.free_rows and (
            self.budget_bytes is None or self._needed(self._call_rows.now, run) <= self.budget_bytes
        )

    def _needed(self, call_rows: int, *more: Run) -> int:
        return needed_bytes([*self._running, *more], call_rows, self.executor)

    def _begin(self, run: Run) -> None:
        run.job.begun = True
        try:
            run.began = self._clock()
            run.state = self.executor.begin(run.plan)
        except Exception as error:
            run.job.error = error
            return
        self._running.append(run)
        self.stats.most_bytes = max(self.stats.most_bytes, self._needed(self._call_rows.now))
        self.stats.most_rows = max(self.stats.most_rows, self.max_rows - self.free_rows)

    # -- running

    def _calls(self) -> list[list[Run]]:
        """Edits in flight as calls: plans of one kind together, in the order in which they began, in slots that they
        fill."""
        self._try_larger()
        groups: list[tuple[Hashable, int, list[Run]]] = []
        for run in self._running:
            if run.job.error is not None:
                continue
            for i, (kind, rows, members) in enumerate(groups):
                if kind == run.kind and rows + run.rows <= self._call_rows.now:
                    groups[i] = (kind, rows + run.rows, [*members, run])
                    break
            else:
                groups.append((run.kind, run.rows, [run]))
        slot = self.executor.slot
        return [
            [members[i] for i in call]
            for _, _, members in groups
            for call in in_slots([run.rows for run in members], slot)
        ]

    def _try_larger(self) -> None:
        larger, budget = self._call_rows.larger, self.budget_bytes
        # More may have been admitted beside small calls than there is room for beside larger ones.
        if larger is not None and (budget is None or self._needed(larger) <= budget):
            self._call_rows.grow()

    def _tick(self, group: list[Run], retries: int = RETRIES) -> None:
        """One call. Where it fails, halves are tried: an edit answers for nothing but a call of its own."""
        rows = sum(run.rows for run in group)
        states = self._called(group)
        if isinstance(states, Exception):
            if is_out_of_memory(states):
                self._call_rows.ran_out(rows)
            self.stats.retried += 1
            if len(group) == 1 and retries == 0:
                group[0].job.error = states
                return
            middle = len(group) // 2
            for half in [group] if len(group) == 1 else [group[:middle], group[middle:]]:
                self._tick(half, retries - 1 if len(group) == 1 else retries)
            return
        self._call_rows.went_well()
        self.stats.calls += 1
        self.stats.rows += rows
        self.stats.slot_rows += self.executor.slot(rows)
        for run, state in zip(group, states, strict=True):
            run.state, run.rows = state, self.executor.rows_now(state)

    def _called(self, group: list[Run]) -> list[Any] | Exception:
        try:
            return self.executor.tick([run.state for run in group])
        except Exception as error:
            # What the failed call had made is to be gone when halves are tried: it may be what they need room for.
            return without_traceback(error)

    def _finish(self, run: Run) -> None:
        try:
            outcome = self.executor.outcome(run.state, self._clock() - run.began)
        except Exception as error:
            run.job.error = error
            return
        run.state = None
        run.job.outcomes[run.place] = outcome
        if len(run.job.outcomes) == run.job.wanted:
            self._resume(run.job, [run.job.outcomes[i] for i in range(run.job.wanted)])

    def _resume(self, job: Job, outcomes: list[Any] | None) -> None:
        """Let the job say what comes next."""
        try:
            plans = list(next(job.ticket.passes) if outcomes is None else job.ticket.passes.send(outcomes))
            runs = [self._checked(job, place, plan) for place, plan in enumerate(plans)]
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

    def _checked(self, job: Job, place: int, plan: Any) -> Run:
        self.executor.check(plan)
        run = Run(
            job=job,
            place=place,
            plan=plan,
            rows=self.executor.rows(plan),
            bytes=self.executor.plan_bytes(plan),
            kind=self.executor.kind(plan),
        )
        check_limits(run, self.max_rows, self.budget_bytes, self.executor)
        return run

    # -- ending

    def _settle(self, job: Job) -> bool:
        """Hand over the result or error of a job that has one. Whether it had."""
        if job.error is None and not job.ended:
            return False
        self._forget(job)
        future = job.ticket.future
        if not future.set_running_or_notify_cancel():
            self.stats.cancelled += 1
        elif job.error is not None:
            self.stats.failed += 1
            future.set_exception(without_traceback(job.error))
        else:
            self.stats.finished += 1
            future.set_result(job.result)
        return True

    def _forget(self, job: Job) -> None:
        del self._jobs[job.ticket.number]
        for run in self._running:
            if run.job is job:
                self.executor.drop(run.state)
        self._running = [run for run in self._running if run.job is not job]
        self._ready = [run for run in self._ready if run.job is not job]
        # What a job does in its own `finally` is no concern of the others.
        with suppress(Exception):
            job.ticket.passes.close()
