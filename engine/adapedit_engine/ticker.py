"""Advancing edits by a step, with what calls of the same edits have in common kept between them."""

from __future__ import annotations

from collections.abc import Sequence

from adapedit_engine.layouts import Layouts
from adapedit_engine.loop import EditOutcome, EditState, outcome, tick
from adapedit_engine.runners import Runner


class Ticker:
    """`loop.tick` for edits that stay together from step to step. runner: open while it is used."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self._layouts = runner, Layouts(runner)

    def tick(self, states: Sequence[EditState]) -> list[EditState]:
        """Advance every state by one step."""
        return tick(states, self._runner, self._layouts.of([state.tables for state in states]))

    def outcome(self, state: EditState, seconds: float) -> EditOutcome:
        """What an edit has come to, for good."""
        self.forget(state)
        return outcome(state, seconds)

    def forget(self, state: EditState) -> None:
        """Keep nothing of an edit that leaves."""
        self._layouts.forget([state.tables])
