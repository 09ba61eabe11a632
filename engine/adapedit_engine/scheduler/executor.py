"""What the scheduler drives: something that begins plans and advances a set of them by a step."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from adapedit_engine.loop import EditOutcome, EditState, begin
from adapedit_engine.padding import slot_for
from adapedit_engine.plan import EditPlan, plan_rows
from adapedit_engine.rows import check_plan
from adapedit_engine.runners import Runner
from adapedit_engine.scheduler.memory import CallBytes, plan_bytes
from adapedit_engine.ticker import Ticker


class Executor(Protocol):
    """Plans and states are opaque to the scheduler; states are values, so a failed tick can be tried again."""

    def check(self, plan: Any) -> None:
        """Raise where the plan can't run."""
        ...

    def rows(self, plan: Any) -> int: ...

    def kind(self, plan: Any) -> Hashable:
        """Plans of one kind can share a call."""
        ...

    def slot(self, rows: int) -> int:
        """Rows that a call of so many really takes."""
        ...

    def plan_bytes(self, plan: Any) -> int:
        """Memory that a plan holds from its beginning to its end."""
        ...

    def call_bytes(self, rows: int, kind: Any) -> int:
        """Memory that a call of so many rows of plans of this kind needs on top, while it runs."""
        ...

    def begin(self, plan: Any) -> Any: ...

    def tick(self, states: Sequence[Any]) -> list[Any]: ...

    def rows_now(self, state: Any) -> int:
        """Rows of its next step: at most those of its plan."""
        ...

    def done(self, state: Any) -> bool: ...

    def outcome(self, state: Any, seconds: float) -> Any: ...

    def drop(self, state: Any) -> None:
        """Keep nothing of an edit that goes without an outcome: cancelled, or failed."""
        ...


class EngineExecutor:
    """The engine's loop on a runner that is open.

    call_bytes: see `measure_call_bytes`; by default nothing is known of calls and only plans are counted.
    """

    def __init__(self, runner: Runner, *, call_bytes: CallBytes | None = None) -> None:
        self.runner = runner
        self._sizes: Sequence[int] | None = runner.capabilities.rows
        self._call_bytes = call_bytes
        self._ticker = Ticker(runner)

    def check(self, plan: EditPlan) -> None:
        check_plan(plan, self.runner.specs)

    def rows(self, plan: EditPlan) -> int:
        return plan_rows(plan)

    def kind(self, plan: EditPlan) -> tuple[int, ...]:
        """Channels, height and width of the latents, and tokens."""
        return (*plan.latents.shape[1:], plan.tokens)

    def slot(self, rows: int) -> int:
        return slot_for(rows, self._sizes)

    def plan_bytes(self, plan: EditPlan) -> int:
        return plan_bytes(plan, self.runner)

    def call_bytes(self, rows: int, kind: tuple[int, ...]) -> int:
        return 0 if self._call_bytes is None else self._call_bytes(self.slot(rows), (kind[1], kind[2]))

    def begin(self, plan: EditPlan) -> EditState:
        return begin(plan, self.runner)

    def tick(self, states: Sequence[EditState]) -> list[EditState]:
        return self._ticker.tick(states)

    def rows_now(self, state: EditState) -> int:
        return plan_rows(state.tables.plan)

    def done(self, state: EditState) -> bool:
        return state.done

    def outcome(self, state: EditState, seconds: float) -> EditOutcome:
        return self._ticker.outcome(state, seconds)

    def drop(self, state: EditState) -> None:
        self._ticker.forget(state)
