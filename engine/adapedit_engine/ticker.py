"""Advancing edits by a step: by static steps where the runner has them, and in the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adapedit_engine.layouts import Layouts
from adapedit_engine.loop import EditOutcome, EditState, alike, outcome, tick
from adapedit_engine.plan import EditPlan
from adapedit_engine.runners import Runner
from adapedit_engine.static_steps import StaticSteps, newest


class Ticker:
    """`loop.tick` for edits that stay together from step to step. runner: open while it is used."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self._layouts = runner, Layouts(runner)
        self.static = StaticSteps.of(runner)

    def is_static(self, plan: EditPlan) -> bool:
        """Whether the plan runs by static steps, in calls of its own kind."""
        return self.static is not None and self.static.takes(plan)

    def groups(self, states: Sequence[EditState]) -> list[list[int]]:
        """Places of the states that share their next call."""
        parts = []
        for group in alike(states):
            for way in (True, False):
                parts.append([place for place in group if self.is_static(states[place].plan) is way])
        return [part for part in parts if part]

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
        self.forget(state)
        now = newest(state)
        return outcome(now if now is state else replace(now, latents=now.latents.clone()), seconds)

    def forget(self, state: EditState) -> None:
        """Keep nothing of an edit that leaves."""
        self._layouts.forget([state.tables])
