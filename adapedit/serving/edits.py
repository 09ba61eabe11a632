"""Edits as jobs of the scheduler: a first pass where one is wanted, then source and targets together."""

from __future__ import annotations

import time
from collections.abc import Generator, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import cast

from adapedit.inversion.base import Inverted
from adapedit.inversion.run import Wanted, inversion_passes
from adapedit.methods.context import EditContext, Method
from adapedit.methods.registry import make_method
from adapedit.model import EditModel
from adapedit.prepare import complete, make_context
from adapedit.request import EditRequest
from adapedit.result import EditResult
from adapedit.serving.caching import Caches
from adapedit.sharing import merge, observation_key, share, split
from adapedit_engine.cache import ByteCache, HostCopies, HostCopy
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan, plan_rows
from adapedit_engine.rows import check_plan
from adapedit_engine.scheduler import AdmissionError, Passes


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedEdit:
    """A request that was checked, aligned and encoded, and the future of its result.

    observe: the first pass, if there is one; key: what to find its outcome by.
    draft: the plan as far as it is known before the first pass: all but values.
    deadline: on the clock of `time.monotonic`.
    """

    request: EditRequest
    context: EditContext
    method: Method
    observe: EditPlan | None
    key: Hashable
    draft: EditPlan
    model: EditModel
    deadline: float | None = None
    arrived: float = field(default_factory=time.perf_counter)
    future: Future[EditResult] = field(default_factory=Future)

    @classmethod
    def of(
        cls, request: EditRequest, model: EditModel, max_rows: int, deadline: float | None
    ) -> PreparedEdit:
        """Raises `AdapEditError` for anything that could not run."""
        request = complete(request, model)
        context, method = make_context(request, model), make_method(request.method, model.facts)
        draft = method.plan(context, None)
        check_plan(draft, model.runner.specs)
        if plan_rows(draft) > max_rows:
            raise AdmissionError(f"an edit takes {plan_rows(draft)} rows, max_rows is {max_rows}: raise it")
        observe = method.observe(context)
        return cls(
            request=request,
            context=context,
            method=method,
            observe=observe,
            key=None if observe is None else observation_key(observe),
            draft=draft,
            model=model,
            deadline=deadline,
        )

    def begun(self, context: EditContext) -> PreparedEdit:
        """The same from its inverted picture."""
        observe = self.method.observe(context)
        key = None if observe is None else observation_key(observe)
        return replace(self, context=context, observe=observe, key=key)


@dataclass(frozen=True, kw_only=True, eq=False)
class EditedPart:
    """One edit of a job, ready to be painted: or the error that it, and not its neighbours, ran into."""

    edit: PreparedEdit
    seen: EditOutcome | None = None
    edited: HostCopy | None = None
    error: Exception | None = None
    seconds: float = 0.0


def edit_passes(edits: Sequence[PreparedEdit], caches: Caches, copies: HostCopies) -> Passes:
    """A job of edits whose sources are one. Returns `EditedPart`s in the same order."""
    began = time.perf_counter()
    edits = yield from _begun(edits, caches.inversions)
    seen: dict[int, EditOutcome] = {}
    missing: dict[Hashable, list[int]] = {}
    for i, edit in enumerate(edits):
        if edit.observe is not None:
            known = None if edit.key is None else caches.observations.find(edit.key)
            if known is None:
                missing.setdefault(i if edit.key is None else edit.key, []).append(i)
            else:
                seen[i] = known
    if missing:
        # Of passes that are the same, as those of one edit with other knobs are, one is run.
        alike = list(missing.values())
        plans = [cast(EditPlan, edits[places[0]].observe) for places in alike]
        groups = share(plans)
        outcomes = yield [merge([plans[k] for k in group]) for group in groups]
        for group, outcome in zip(groups, outcomes, strict=True):
            for k, part in zip(group, split(outcome, [plans[k] for k in group]), strict=True):
                seen |= dict.fromkeys(alike[k], part)
                if (key := edits[alike[k][0]].key) is not None:
                    caches.observations.keep(key, part)
    parts: dict[int, EditedPart] = {}
    planned: dict[int, EditPlan] = {}
    for i, edit in enumerate(edits):
        try:
            planned[i] = edit.method.plan(edit.context, seen.get(i))
        except Exception as error:
            parts[i] = EditedPart(edit=edit, error=error)
    # What the drafts had in common, an inversion or a first pass may have told apart.
    places, plans = list(planned), list(planned.values())
    groups = share(plans)
    outcomes = yield [merge([plans[i] for i in group]) for group in groups]
    seconds = time.perf_counter() - began
    for group, outcome in zip(groups, outcomes, strict=True):
        for i, edited in zip(group, split(outcome, [plans[i] for i in group]), strict=True):
            place = places[i]
            parts[place] = EditedPart(
                edit=edits[place], seen=seen.get(place), edited=copies.begin(edited), seconds=seconds
            )
    return [parts[i] for i in range(len(edits))]


def _begun(
    edits: Sequence[PreparedEdit], inversions: ByteCache[Inverted] | None
) -> Generator[list[EditPlan], list[EditOutcome], list[PreparedEdit]]:
    places = [i for i, edit in enumerate(edits) if edit.request.inversion is not None]
    begun = list(edits)
    if places:
        wanted = [
            Wanted(context=edits[i].context, settings=edits[i].request.inversion, seed=edits[i].request.seed)
            for i in places
        ]
        # The model that prepared an edit also runs what of its inversion is no plan.
        contexts = yield from inversion_passes(wanted, edits[places[0]].model, inversions)
        for i, context in zip(places, contexts, strict=True):
            begun[i] = edits[i].begun(context)
    return begun
