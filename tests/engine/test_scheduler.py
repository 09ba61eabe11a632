"""Scheduling on a device of paper: order, limits, deadlines, cancellation, errors that stay where they arose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError

import pytest

from adapedit_engine.padding import in_slots
from adapedit_engine.scheduler import (
    AdmissionError,
    DeadlineError,
    Passes,
    Scheduler,
    Ticket,
    slot_for,
)
from benchmarks.virtual_device import VirtualClock, VirtualExecutor, VirtualPlan, VirtualState


class Recording(VirtualExecutor):
    """Keeps the rows of each call, and fails where it is told to."""

    def __init__(
        self, fails: Callable[[Sequence[VirtualState]], Exception | None] = lambda states: None, **kw
    ):
        super().__init__(VirtualClock(), lambda rows: 1.0, **kw)
        self.fails = fails
        self.calls: list[list[int]] = []

    def tick(self, states):
        error = self.fails(states)
        if error is not None:
            raise error
        self.calls.append([state.plan.rows for state in states])
        return super().tick(states)


def job(*passes: tuple[int, int], result: object = "done", **plan: int) -> Passes:
    """A job of passes of (rows, steps), one after the other."""
    for rows, steps in passes:
        (outcome,) = yield [VirtualPlan(rows=rows, steps=steps, **plan)]
        assert outcome.step_index == steps
    return result


def scheduler(executor: VirtualExecutor | None = None, **options) -> Scheduler:
    executor = executor or Recording()
    return Scheduler(executor, clock=executor.clock, **options)


def calls(of: Scheduler) -> list[list[int]]:
    assert isinstance(of.executor, Recording)
    return of.executor.calls


def test_edits_join_and_leave_between_steps():
    s = scheduler(max_rows=8)
    first = s.submit(job((2, 1), (4, 2)))
    s.step()
    second = s.submit(job((2, 1), (4, 2)))
    s.drain()
    assert first.future.result() == second.future.result() == "done"
    # The first's edit pass runs beside the second's first pass: nobody waits for a batch to end.
    assert calls(s) == [[2], [4, 2], [4, 4], [4]]


def test_rows_that_fill_no_slot_take_two_calls_where_that_is_cheaper():
    executor = Recording(slot_sizes=(1, 2, 4, 8, 16, 32))
    s = scheduler(executor, max_rows=32)
    tickets = [s.submit(job((rows, 2))) for rows in (4, 2, 4)]
    s.drain()
    # 8 and 2 rows, not 16 with 6 of them padding.
    assert calls(s) == [[4, 4], [2]] * 2
    assert s.stats.slot_rows == s.stats.rows == 20
    assert all(ticket.future.result() == "done" for ticket in tickets)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([4, 4, 2], [[0, 1], [2]]),
        ([4, 2, 4], [[0, 2], [1]]),
        ([6, 8], [[0, 1]]),  # 8 and 8 rows would be as many as 16, in two calls
        ([6], [[0]]),  # an edit's own rows are never separated
        ([16, 4, 2], [[0], [1, 2]]),
        ([8, 8, 4, 4], [[0, 1], [2, 3]]),
        ([], []),
    ],
)
def test_calls_that_fill_slots(rows, expected):
    assert in_slots(rows, lambda wanted: slot_for(wanted, (1, 2, 4, 8, 16, 32))) == expected
    assert in_slots(rows, lambda wanted: wanted) == ([list(range(len(rows)))] if rows else [])


def test_static_batching_waits_for_the_batch():
    s = scheduler(max_rows=8, join_running=False)
    s.submit(job((4, 2)))
    s.step()
    s.submit(job((4, 1)))
    s.drain()
    assert calls(s) == [[4], [4], [4]]


def test_plans_of_one_job_run_side_by_side_and_come_back_in_order():
    def several() -> Passes:
        plans = [VirtualPlan(rows=2, steps=steps) for steps in (3, 1, 2)]
        outcomes = yield plans
        return [outcome.plan.steps for outcome in outcomes]

    s = scheduler()
    ticket = s.submit(several())
    s.drain()
    assert ticket.future.result() == [3, 1, 2]
    assert calls(s) == [[2, 2, 2], [2, 2], [2]]


def test_a_job_that_pauses_holds_up_nobody_and_goes_on_at_the_next_step():
    def searching(pauses: int) -> Passes:
        yield [VirtualPlan(rows=2, steps=1)]
        for _ in range(pauses):
            assert (yield []) == []
        return "found"

    s = scheduler()
    search, other, given_up = s.submit(searching(3)), s.submit(job((2, 4))), s.submit(searching(2000))
    done = []
    for _ in range(4):
        s.step()
        done.append(search.future.done())
    assert done == [False, False, False, True] and other.future.result() == "done"
    assert calls(s) == [[2, 2, 2], [2], [2], [2]]
    # It may be cancelled in a pause, and is no longer one that a deadline refuses.
    assert not s.waiting and given_up.future.cancel()
    s.step()
    assert s.idle


def test_rows_never_exceed_the_limit_and_nobody_starves():
    s = scheduler(max_rows=8)
    tickets = [s.submit(job((rows, 2))) for rows in (6, 8, 2, 2, 4)]
    order = [ticket.number for ticket in s.drain()]
    assert all(sum(call) <= 8 for call in calls(s))
    # The small ones behind the 8 could have gone beside the 6; letting them pass could starve the 8.
    assert order == [0, 1, 2, 3, 4]
    assert all(ticket.future.done() for ticket in tickets)
    assert s.stats.most_rows == 8


def test_plans_of_different_kinds_do_not_share_calls():
    s = scheduler()
    s.submit(job((2, 1), kind=1))
    s.submit(job((4, 1), kind=2))
    s.submit(job((2, 1), kind=1))
    s.drain()
    assert calls(s) == [[2, 2], [4]]


def test_earlier_deadlines_go_first_and_late_jobs_fail_alone():
    s = scheduler(max_rows=4)
    s.submit(job((4, 3), result="running"))
    s.step()
    relaxed, hurried, hopeless = (s.submit(job((4, 1)), deadline=deadline) for deadline in (None, 10.0, 1.5))
    order = s.drain()
    assert order[1:] == [hopeless, hurried, relaxed]
    with pytest.raises(DeadlineError, match="deadline passed 0.5 s before"):
        hopeless.future.result()


def test_a_job_that_could_never_run_is_refused_and_says_how_to_mend_it():
    s = scheduler(max_rows=4, budget_bytes=2**20)
    wide, heavy, fine = s.submit(job((6, 1))), s.submit(job((4, 1), bytes=2**21)), s.submit(job((4, 1)))
    s.drain()
    with pytest.raises(AdmissionError, match="takes 6 rows, max_rows is 4: raise it"):
        wide.future.result()
    with pytest.raises(AdmissionError, match=r"needs 2.0 MiB alone, the budget is 1.0 MiB: raise it"):
        heavy.future.result()
    assert fine.future.result() == "done"


def test_memory_is_never_more_than_the_budget():
    executor = Recording(call_bytes=lambda rows: 10 * rows)
    s = scheduler(executor, budget_bytes=300)
    tickets = [s.submit(job((4, 2), bytes=100)) for _ in range(5)]
    s.drain()
    assert calls(s) == [[4, 4], [4, 4], [4, 4], [4, 4], [4], [4]]
    assert s.stats.most_bytes == 280 <= 300
    assert all(ticket.future.result() == "done" for ticket in tickets)


def test_cancelling_frees_the_rows_before_the_next_call():
    s = scheduler(max_rows=8)
    running, staying, waiting = s.submit(job((4, 9))), s.submit(job((4, 2))), s.submit(job((4, 1)))
    s.step()
    assert running.future.cancel() and waiting.future.cancel()
    assert {ticket.number for ticket in s.step()} == {0, 1, 2}
    assert calls(s) == [[4, 4], [4]]
    assert s.idle and s.stats.cancelled == 2
    with pytest.raises(CancelledError):
        running.future.result()
    assert staying.future.result() == "done"
    assert not staying.future.cancel()


def bad(states: Sequence[VirtualState]) -> Exception | None:
    return RuntimeError("it was me") if any(state.plan.bytes == 13 for state in states) else None


def test_an_error_is_the_guilty_edits_own():
    s = scheduler(Recording(bad))
    tickets = [s.submit(job((4, 2), bytes=13 if i == 2 else 0)) for i in range(5)]
    s.drain()
    for ticket in tickets:
        if ticket.number == 2:
            with pytest.raises(RuntimeError, match="it was me"):
                ticket.future.result()
        else:
            assert ticket.future.result() == "done"
    assert (s.stats.finished, s.stats.failed) == (4, 1)


def test_an_error_that_passes_costs_nobody_the_edit():
    errors = [RuntimeError("a hiccup")]
    s = scheduler(Recording(lambda states: errors.pop() if errors else None))
    ticket = s.submit(job((4, 2)))
    s.drain()
    assert ticket.future.result() == "done"
    assert s.stats.retried == 1


def test_calls_get_smaller_when_memory_runs_out():
    def too_many(states: Sequence[VirtualState]) -> Exception | None:
        return MemoryError() if sum(state.plan.rows for state in states) > 8 else None

    s = scheduler(Recording(too_many), max_rows=32)
    tickets = [s.submit(job((4, 3))) for _ in range(8)]
    s.drain()
    assert all(ticket.future.result() == "done" for ticket in tickets)
    assert max(sum(call) for call in calls(s)) == 8
    # Learned in the first step: 32, 16, 16 failed and the next steps go straight to calls that fit.
    assert s.stats.retried == 3


def test_what_a_job_raises_is_its_own():
    def broken() -> Passes:
        yield [VirtualPlan(rows=2, steps=1)]
        raise ValueError("no picture")

    s = scheduler()
    broken_one, other = s.submit(broken()), s.submit(job((2, 2)))
    s.drain()
    with pytest.raises(ValueError, match="no picture"):
        broken_one.future.result()
    assert other.future.result() == "done"


def test_the_same_submissions_give_the_same_calls():
    def run() -> tuple[list[list[int]], list[int]]:
        s = scheduler(max_rows=12)
        order: list[Ticket] = []
        for i in range(30):
            s.submit(job((2, 1 + i % 4), (4, 2 + i % 3)), deadline=100.0 - i if i % 5 == 0 else None)
            order += s.step()
        return calls(s), [ticket.number for ticket in order + s.drain()]

    assert run() == run()


def test_a_long_run_keeps_nothing():
    s = scheduler(max_rows=8)
    for _ in range(500):
        s.submit(job((2, 1), (4, 1)))
        s.step()
    s.drain()
    assert not any((s._jobs, s._ready, s._running, s._waiting))
    assert s.stats.finished == 500
