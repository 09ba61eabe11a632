"""Memory that runs out: what the failed call had made is let go, and calls get smaller, and larger again."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from adapedit_engine.scheduler import Passes, Scheduler
from adapedit_engine.scheduler.jobs import without_traceback
from adapedit_engine.scheduler.limits import GOOD_CALLS
from adapedit_kernels.errors import AdapEditError
from benchmarks.virtual_device import VirtualClock, VirtualExecutor, VirtualPlan, VirtualState


class Small(VirtualExecutor):
    """Runs out of memory above `room` rows a call."""

    def __init__(self, room: int = 32, **options):
        super().__init__(VirtualClock(), lambda rows: 1.0, **options)
        self.room = room
        self.tried: list[int] = []

    def tick(self, states: Sequence[VirtualState]) -> list[VirtualState]:
        self.tried.append(sum(state.plan.rows for state in states))
        if self.tried[-1] > self.room:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().tick(states)


def job(steps: int, **plan: int) -> Passes:
    (outcome,) = yield [VirtualPlan(rows=4, steps=steps, **plan)]
    return outcome


def scheduler(executor: VirtualExecutor, **options) -> Scheduler:
    return Scheduler(executor, clock=executor.clock, **options)


def test_a_failed_call_is_gone_before_the_next_try_and_when_its_error_is_kept():
    made: list[weakref.ref] = []
    alive: list[int] = []

    class Failing(Small):
        def tick(self, states):
            alive.append(sum(ref() is not None for ref in made))
            activation = torch.empty(4)
            made.append(weakref.ref(activation))
            try:
                raise MemoryError("of the library")
            except MemoryError as error:
                raise RuntimeError("CUDA out of memory") from error

    s = scheduler(Failing())
    tickets = [s.submit(job(1)) for _ in range(2)]
    s.drain()
    assert alive == [0] * 5
    assert not any(ref() is not None for ref in made)
    for ticket in tickets:
        with pytest.raises(RuntimeError, match="CUDA out of memory"):
            ticket.future.result()


def test_an_error_without_its_frames_says_where_it_arose():
    def failing(error: Exception) -> Exception:
        try:
            raise error
        except Exception as caught:
            return without_traceback(caught)

    unforeseen, own = failing(RuntimeError("why")), failing(AdapEditError("mend it so"))
    assert unforeseen.__traceback__ is None and own.__traceback__ is None
    if hasattr(unforeseen, "__notes__"):  # Python 3.11 on
        assert "in failing" in unforeseen.__notes__[0]
    assert not hasattr(own, "__notes__")


def test_calls_are_as_large_as_ever_once_there_is_room_again():
    executor = Small(room=8)
    s = scheduler(executor)
    for _ in range(8):
        s.submit(job(2 * GOOD_CALLS))
    s.step()
    assert executor.tried == [32, 16, 8, 8, 16, 8, 8]
    executor.room = 32  # a neighbour is gone
    s.drain()
    assert executor.tried[-1] == 32
    assert s.stats.retried == 3


def test_a_limit_that_is_really_there_is_tried_ever_less_often():
    executor = Small(room=8)
    s = scheduler(executor)
    for _ in range(8):
        s.submit(job(50 * GOOD_CALLS // 4))
    s.drain()
    tries = [place for place, rows in enumerate(executor.tried) if rows > 8][3:]
    # Two calls of 16 rows fail in a try; in 50 runs of good calls there are five: behind 1, 2, 4, 8 and 16 of them.
    assert len(tries) == 2 * 5
    pauses = [later - earlier for earlier, later in zip(tries[1::2], tries[2::2], strict=False)]
    assert all(later > 1.9 * earlier for earlier, later in pairwise(pauses))


def test_larger_calls_are_not_tried_beside_edits_that_leave_no_room_for_them():
    executor = Small(room=4, call_bytes=lambda rows: 10 * rows)
    s = scheduler(executor, max_rows=12, budget_bytes=280)
    together = [s.submit(job(3 * GOOD_CALLS, bytes=100)) for _ in range(2)]
    between = s.submit(job(GOOD_CALLS, bytes=40))
    s.step()
    # Two edits and a call of both fill the budget; beside a call of one there is room for the third.
    assert executor.tried == [8, 4, 4]
    executor.room = 12
    while not between.future.done():
        s.step()
        assert executor.tried[-1] == 4
    s.step()
    assert executor.tried[-1] == 8 and not any(ticket.future.done() for ticket in together)
