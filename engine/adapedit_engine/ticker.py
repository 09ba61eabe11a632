"""Advancing edits by a step: by static steps where the runner has them, and in the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adapedit_engine.layouts import Layouts
from adapedit_engine.loop import EditOutcome, EditState, alike, findings, outcome, tick
from adapedit_engine.padding import in_slots
from adapedit_engine.plan import EditPlan
from adapedit_engine.runners import Runner
from adapedit_engine.static_steps import StaticSteps, leave, newest


class Ticker:
    """`loop.tick` for edits that stay together from step to step.

    runner: open while it is used. splits: part calls of static steps where that saves padding; for whoever does so
    himself, and tries a call again that failed, no.
    """

    def __init__(self, runner: Runner, *, splits: bool = True) -> None:
        self._runner, self._layouts, self._splits = runner, Layouts(runner), splits
        self.static = StaticSteps.of(runner)

    def is_static(self, plan: EditPlan) -> bool:
        """Whether the plan runs by static steps, in calls of its own kind."""
        return self.static is not None and self.static.takes(plan)

    def groups(self, states: Sequence[EditState]) -> list[list[int]]:
        """Places of the states that share their next call."""
        groups = []
        for group in alike(states):
            static = [place for place in group if self.is_static(states[place].plan)]
            rest = [place for place in group if place not in static]
            if self.static is not None and self._splits:
                parts = in_slots([states[place].tables.rows for place in static], self.static.slot)
                groups += [[static[i] for i in part] for part in parts]
            elif static:
                groups.append(static)
            if rest:
                groups.append(rest)
        return groups

    def tick(self, states: Sequence[EditState]) -> list[EditState]:
        """Advance every state by one step, in as many calls as there are groups."""
        after: dict[int, EditState] = {}
        for places in self.groups(states):
            group = [states[place] for place in places]
            if self.static is not None and self.is_static(group[0].plan):
                advanced = self.static.tick(group)
            else:
                layout = self._layouts.of([state.tables for state in group])
                advanced = tick(group, self._runner, layout)
            after.update(zip(places, advanced, strict=True))
        return [after[place] for place in range(len(states))]

    def outcome(self, state: EditState, seconds: float) -> EditOutcome:
        """What an edit has come to, for good: nothing that a later step writes over."""
        now = newest(state)
        if now is not state:
            now = replace(now, latents=now.latents.clone(), found=findings(now))
        result = outcome(now, seconds)
        self.forget(state)
        return result

    def forget(self, state: EditState) -> None:
        """Keep nothing of an edit that leaves. Its states can't go on."""
        self._layouts.forget([state.tables])
        leave(state)
