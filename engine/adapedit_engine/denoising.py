"""Running plans to their ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from adapedit_engine.loop import EditOutcome, begin
from adapedit_engine.plan import EditPlan, PlanError, plan_rows
from adapedit_engine.rows import check_plan
from adapedit_engine.runners import Runner
from adapedit_engine.ticker import Ticker

Progress = Callable[[int, int], None]


def denoise(
    plans: Sequence[EditPlan],
    runner: Runner,
    *,
    callback: Progress | None = None,
    max_rows: int | None = None,
) -> list[EditOutcome]:
    """Run plans to their ends and return their outcomes in the same order.

    Unrelated plans share UNet calls, of at most `max_rows` rows where that is given; a plan's rows are never
    separated. `callback(done, total)` is called after every tick; raising in it cancels, and leaves nothing
    behind. Raises `PlanError` before any work where a plan does not fit the model or the limit.
    """
    for plan in plans:
        check_plan(plan, runner.specs)
    groups = group_plans(plans, max_rows)
    total = sum(max(plans[i].steps for i in group) for group in groups)
    outcomes: dict[int, EditOutcome] = {}
    done = 0
    for group in groups:
        start = time.perf_counter()
        running = {i: begin(plans[i], runner) for i in group}
        ticker = Ticker(runner)
        try:
            while running:
                running = dict(zip(running, ticker.tick(list(running.values())), strict=True))
                done += 1
                for i in [i for i, state in running.items() if state.done]:
                    outcomes[i] = ticker.outcome(running.pop(i), time.perf_counter() - start)
                if callback is not None:
                    callback(done, total)
        finally:
            for state in running.values():
                ticker.forget(state)
    return [outcomes[i] for i in range(len(plans))]


def group_plans(plans: Sequence[EditPlan], max_rows: int | None) -> list[list[int]]:
    """Indices of the plans that run together: first fit in the order given, plans of one shape only."""
    groups: list[tuple[tuple[int, ...], int, list[int]]] = []
    for i, plan in enumerate(plans):
        rows, kind = plan_rows(plan), (*plan.latents.shape[1:], plan.tokens)
        if max_rows is not None and rows > max_rows:
            raise PlanError(
                f"an edit of {plan.tracks} tracks takes {rows} rows, max_rows is {max_rows}: raise it"
            )
        for place, (other, used, members) in enumerate(groups):
            if other == kind and (max_rows is None or used + rows <= max_rows):
                groups[place] = (kind, used + rows, [*members, i])
                break
        else:
            groups.append((kind, rows, [i]))
    return [members for _, _, members in groups]
