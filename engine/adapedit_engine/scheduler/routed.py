"""Plans of several models under one scheduler: each goes to its runner, and only those of one runner share calls."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from adapedit_engine.plan import EditPlan
from adapedit_engine.runners import Runner
from adapedit_engine.scheduler.executor import Executor


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutedPlan:
    """A plan for another runner than the executor's first."""

    plan: EditPlan
    runner: Runner


class RoutedExecutor:
    """An `Executor` of others: plans as they are go to `home`, those of a `RoutedPlan` to its runner's own.

    make: the executor of a runner that is met for the first time, which it opens.
    """

    def __init__(self, home: Executor, make: Callable[[Runner], Executor]) -> None:
        self.home, self._make = home, make
        self._others: dict[int, tuple[Runner, Executor]] = {}

    def check(self, plan: Any) -> None:
        executor, plan = self._route(plan)
        executor.check(plan)

    def rows(self, plan: Any) -> int:
        executor, plan = self._route(plan)
        return executor.rows(plan)

    def kind(self, plan: Any) -> Hashable:
        executor, plan = self._route(plan)
        return executor, executor.kind(plan)

    def slot(self, rows: int) -> int:
        """By `home`: the scheduler asks without saying for which plans."""
        return self.home.slot(rows)

    def plan_bytes(self, plan: Any) -> int:
        executor, plan = self._route(plan)
        return executor.plan_bytes(plan)

    def call_bytes(self, rows: int, kind: Any) -> int:
        """By `home`, whose calls were measured: the others are UNets of about its size, or smaller."""
        return self.home.call_bytes(rows, kind[1])

    def begin(self, plan: Any) -> Any:
        executor, plan = self._route(plan)
        return executor, executor.begin(plan)

    def tick(self, states: Sequence[Any]) -> list[Any]:
        executor = states[0][0]
        return [(executor, state) for state in executor.tick([state for _, state in states])]

    def rows_now(self, state: Any) -> int:
        return int(state[0].rows_now(state[1]))

    def done(self, state: Any) -> bool:
        return bool(state[0].done(state[1]))

    def outcome(self, state: Any, seconds: float) -> Any:
        return state[0].outcome(state[1], seconds)

    def drop(self, state: Any) -> None:
        state[0].drop(state[1])

    def _route(self, plan: Any) -> tuple[Executor, Any]:
        if not isinstance(plan, RoutedPlan):
            return self.home, plan
        key = id(plan.runner)
        if key not in self._others:
            # The runner is kept with its executor, so that its id stays its own.
            self._others[key] = plan.runner, self._make(plan.runner)
        return self._others[key][1], plan.plan
