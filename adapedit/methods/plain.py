"""Plain generation of both prompts from one seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapedit.methods.base import Context, Method

if TYPE_CHECKING:
    from adapedit_engine.plan import EditOutcome, EditPlan


class Plain(Method, name="plain"):
    """No edit at all: two prompts from one seed. The baseline that shows what a seed alone keeps."""

    def plan(self, context: Context, observed: EditOutcome | None) -> EditPlan:
        if context.mask is not None:
            return context.plan()  # by which the target knows its source
        return context.plan(("source", "target"))
