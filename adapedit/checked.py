"""Checked requests: what is known of an edit before its first UNet call, and the inversions of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapedit.inversion.run import Wanted, expected_calls, invert
from adapedit.methods.context import EditContext, Method
from adapedit.methods.registry import make_method
from adapedit.model import EditModel
from adapedit.prepare import complete, make_context
from adapedit.progress import Progress, count_ticks
from adapedit.request import EditRequest
from adapedit_engine.plan import EditPlan, plan_rows
from adapedit_engine.rows import check_plan


@dataclass(frozen=True, kw_only=True)
class CheckedEdit:
    """A checked request. `draft` is its plan as far as it is known before the observing pass: all but values."""

    request: EditRequest
    context: EditContext
    method: Method
    observe: EditPlan | None
    draft: EditPlan

    @classmethod
    def of(cls, request: EditRequest, model: EditModel) -> CheckedEdit:
        request = complete(request, model)
        context, method = make_context(request, model), make_method(request.method, model.facts)
        draft = method.plan(context, None)
        check_plan(draft, model.runner.specs)
        return cls(
            request=request,
            context=context,
            method=method,
            observe=method.observe(context),
            draft=draft,
        )

    @property
    def wanted(self) -> Wanted:
        """The inversion of its picture."""
        return Wanted(context=self.context, settings=self.request.inversion, seed=self.request.seed)

    def begun(self, context: EditContext) -> CheckedEdit:
        """The same from its inverted picture."""
        method = self.method
        return replace(
            self, context=context, observe=method.observe(context), draft=method.plan(context, None)
        )


def row_steps(request: EditRequest, model: EditModel) -> int:
    """Rows of the UNet that an edit takes alone, over all steps of its passes, its inversion aside."""
    request = complete(request, model)
    context, method = make_context(request, model), make_method(request.method, model.facts)
    observe, draft = method.observe(context), method.plan(context, None)
    return sum(plan_rows(plan) * plan.steps for plan in (observe, draft) if plan is not None)


def inverted_edits(
    edits: Sequence[CheckedEdit], model: EditModel, max_rows: int | None, callback: Progress | None
) -> tuple[list[CheckedEdit], int]:
    """The edits after the inversions of their pictures, and how many calls those are counted as."""
    places = [i for i, edit in enumerate(edits) if edit.request.inversion is not None]
    wanted = [edits[i].wanted for i in places]
    if not wanted:
        return list(edits), 0
    expected = expected_calls(wanted)
    total = expected + count_ticks([edit.draft for edit in edits], max_rows)
    done = 0

    def called() -> None:
        nonlocal done
        done = min(done + 1, expected)
        if callback is not None:
            callback(done, total)

    with model.runner as runner:
        contexts = invert(wanted, model, runner, max_rows=max_rows, callback=called)
    begun = list(edits)
    for i, context in zip(places, contexts, strict=True):
        begun[i] = edits[i].begun(context)
    return begun, expected
