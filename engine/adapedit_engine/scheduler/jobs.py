"""What the scheduler is given and what it gives back."""

from __future__ import annotations

import math
import traceback
from collections.abc import Generator, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from adapedit_kernels.errors import AdapEditError

Error = TypeVar("Error", bound=BaseException)

Passes = Generator[Sequence[Any], list[Any], Any]
"""A job: yields plans that may run side by side, is sent their outcomes in the same order, returns its result.

An edit with a first pass for FWT yields twice, a single-pass edit once. What it does between two yields holds
up all others, so that should be little.
"""


class AdmissionError(AdapEditError):
    """A job that could never run within the limits."""


class DeadlineError(AdapEditError):
    """A job whose deadline came before there was room for it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ticket:
    """A job in the scheduler's hands.

    number:   of its arrival, from 0.
    deadline: on the scheduler's clock; jobs with an earlier one go first, and one that has not begun by then
              fails. None: no hurry.
    future:   its result or its own error. `future.cancel()` works at any time before the end; the rows are
              freed before the next UNet call.
    """

    number: int
    passes: Passes
    deadline: float | None
    arrived: float
    future: Future[Any] = field(default_factory=Future)


@dataclass(kw_only=True)
class SchedulerStats:
    """Counts since the beginning. rows: of all UNet calls; slot_rows: with padding; retried: calls split after an
    error; most_rows, most_bytes: the peaks that were admitted."""

    calls: int = 0
    rows: int = 0
    slot_rows: int = 0
    retried: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    most_rows: int = 0
    most_bytes: int = 0


@dataclass(kw_only=True, eq=False)
class Job:
    """A ticket and how far it has come."""

    ticket: Ticket
    outcomes: dict[int, Any] = field(default_factory=dict)
    wanted: int = 0
    result: Any = None
    begun: bool = False
    ended: bool = False
    error: BaseException | None = None


@dataclass(kw_only=True, eq=False)
class Run:
    """One plan of a job: waiting for room, or in flight."""

    job: Job
    place: int
    plan: Any
    rows: int
    bytes: int
    kind: Hashable
    state: Any = None
    began: float = 0.0

    @property
    def order(self) -> tuple[bool, float, int, int]:
        """Jobs that have begun, then by deadline, then by arrival."""
        ticket = self.job.ticket
        deadline = math.inf if ticket.deadline is None else ticket.deadline
        return (not self.job.begun, deadline, ticket.number, self.place)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said


def without_traceback(error: Error) -> Error:
    """The error, and those that led to it, without their frames, which keep all tensors that were in them.

    Where it arose is kept as text, in a note (Python 3.11 on) of errors that are not the project's own.
    """
    if (
        error.__traceback__ is not None
        and not isinstance(error, AdapEditError)
        and hasattr(error, "add_note")
    ):
        error.add_note("".join(traceback.format_tb(error.__traceback__)))
    chain: list[BaseException] = [error]
    seen = set[int]()
    while chain:
        link = chain.pop()
        if id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            chain += [other for other in (link.__cause__, link.__context__) if other is not None]
    return error
