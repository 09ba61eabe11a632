"""A device that exists on paper: calls cost what a measurement or a statement says, on a clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from adapedit_engine.scheduler import slot_for


@dataclass(frozen=True, kw_only=True)
class VirtualPlan:
    """rows of the UNet for so many steps; `bytes` of memory; `kind`: plans of other kinds can't share a call."""

    rows: int
    steps: int
    bytes: int = 0
    kind: Hashable = 0


@dataclass(frozen=True, kw_only=True)
class VirtualState:
    plan: VirtualPlan
    step_index: int = 0


class VirtualClock:
    """Seconds that pass only when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class VirtualExecutor:
    """See `adapedit_engine.scheduler.Executor`.

    seconds: of a call by its number of rows, padding included.
    """

    def __init__(
        self,
        clock: VirtualClock,
        seconds: Callable[[int], float],
        *,
        slot_sizes: Sequence[int] | None = None,
        call_bytes: Callable[[int], int] = lambda rows: 0,
    ) -> None:
        self.clock, self.seconds, self.slot_sizes, self._call_bytes = clock, seconds, slot_sizes, call_bytes
        self.busy = 0.0

    def check(self, plan: VirtualPlan) -> None:
        slot_for(plan.rows, self.slot_sizes)

    def rows(self, plan: VirtualPlan) -> int:
        return plan.rows

    def kind(self, plan: VirtualPlan) -> Hashable:
        return plan.kind

    def slot(self, rows: int) -> int:
        return slot_for(rows, self.slot_sizes)

    def plan_bytes(self, plan: VirtualPlan) -> int:
        return plan.bytes

    def call_bytes(self, rows: int, kind: Hashable) -> int:
        return self._call_bytes(self.slot(rows))

    def begin(self, plan: VirtualPlan) -> VirtualState:
        return VirtualState(plan=plan)

    def tick(self, states: Sequence[VirtualState]) -> list[VirtualState]:
        seconds = self.seconds(self.slot(sum(state.plan.rows for state in states)))
        self.clock.now += seconds
        self.busy += seconds
        return [replace(state, step_index=state.step_index + 1) for state in states]

    def rows_now(self, state: VirtualState) -> int:
        return state.plan.rows

    def done(self, state: VirtualState) -> bool:
        return state.step_index >= state.plan.steps

    def outcome(self, state: VirtualState, seconds: float) -> VirtualState:
        return state

    def drop(self, state: VirtualState) -> None:
        """A state holds nothing."""
