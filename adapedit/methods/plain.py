"""Plain generation of both prompts from one seed."""

from __future__ import annotations

from dataclasses import dataclass

from adapedit.methods.context import EditContext, Findings, Method
from adapedit.methods.settings import Plain
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan


@dataclass(frozen=True)
class PlainMethod(Method):
    """No row takes anything from another."""

    settings: Plain

    def plan(self, context: EditContext, observed: EditOutcome | None) -> EditPlan:
        return context.plan((context.source, context.target), collect=True)

    def findings(self, context: EditContext, observed: EditOutcome | None, edited: EditOutcome) -> Findings:
        return Findings()
