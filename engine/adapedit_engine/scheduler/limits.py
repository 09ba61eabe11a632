"""What calls may take: so many rows since memory ran out, so many bytes within a budget."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from adapedit_engine.scheduler.executor import Executor
from adapedit_engine.scheduler.jobs import AdmissionError, Run

GOOD_CALLS, MOST_PATIENCE = 128, 64
"""Calls that must go well before larger ones are tried; by how much that grows at most."""


class CallRows:
    """The rows that one call may have: fewer once memory ran out, and more again after a run of good calls.

    What took the memory may have been a neighbour's, or one large edit's, and a server lives long. Twice as many rows
    are tried then; where memory runs out again, it takes twice as many good calls until the next try, so that a limit
    that is really there costs ever fewer calls.
    """

    def __init__(self, most: int) -> None:
        self.most = self.now = most
        self._good, self._patience, self._trying = 0, 1, False

    def ran_out(self, rows: int) -> None:
        """Memory ran out in a call of so many rows."""
        self.now = max(1, min(self.now, rows // 2))
        if self._trying:  # one try, however many calls of it fail
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._good, self._trying = 0, False

    def went_well(self) -> None:
        """A call ended without an error."""
        self._good += 1

    @property
    def larger(self) -> int | None:
        """The rows to be tried next; None while it is too early, or where there are no more."""
        due = self.now < self.most and self._good >= GOOD_CALLS * self._patience
        return min(2 * self.now, self.most) if due else None

    def grow(self) -> None:
        """Try `larger`."""
        self.now = self.larger or self.now
        self._good, self._trying = 0, True


def needed_bytes(runs: Sequence[Run], call_rows: int, executor: Executor) -> int:
    """Memory for edits in flight together: what their plans hold, and the dearest of their calls.

    call_rows: that a call may have; a single edit's are not separated.
    """
    rows: dict[Hashable, list[int]] = {}
    for run in runs:
        rows.setdefault(run.kind, []).append(run.rows)
    calls = [executor.call_bytes(min(sum(each), max(call_rows, *each)), kind) for kind, each in rows.items()]
    return sum(run.bytes for run in runs) + max(calls, default=0)


def check_limits(run: Run, max_rows: int, budget_bytes: int | None, executor: Executor) -> None:
    """Raise `AdmissionError` for one that does not fit when it is alone."""
    if run.rows > max_rows:
        raise AdmissionError(f"the edit takes {run.rows} rows, max_rows is {max_rows}: raise it")
    needed = needed_bytes([run], run.rows, executor)
    if budget_bytes is not None and needed > budget_bytes:
        raise AdmissionError(
            f"the edit needs {needed / 2**20:.1f} MiB alone, the budget is {budget_bytes / 2**20:.1f} MiB: "
            "raise it, or ask for a smaller picture"
        )
