"""Edits as jobs of the scheduler: a first pass where one is wanted, then source and targets together."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from PIL import Image

from adapedit.methods.context import EditContext, Method
from adapedit.methods.registry import make_method
from adapedit.model import EditModel
from adapedit.prepare import complete, make_context
from adapedit.request import EditRequest
from adapedit.result import EditResult, make_result
from adapedit.serving.caching import observation_key
from adapedit.sharing import merge, share, split
from adapedit_engine.caches import ByteCache, digest
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
            deadline=deadline,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class EditedPart:
    """One edit of a job, ready to be painted: or the error that it, and not its neighbours, ran into."""

    edit: PreparedEdit
    seen: EditOutcome | None = None
    edited: EditOutcome | None = None
    error: Exception | None = None
    seconds: float = 0.0


def edit_passes(edits: Sequence[PreparedEdit], observations: ByteCache[EditOutcome]) -> Passes:
    """A job of edits whose sources are one. Returns `EditedPart`s in the same order."""
    began = time.perf_counter()
    seen: dict[int, EditOutcome] = {}
    missing: dict[int, EditPlan] = {}
    for i, edit in enumerate(edits):
        if edit.observe is not None:
            known = None if edit.key is None else observations.find(edit.key)
            if known is None:
                missing[i] = edit.observe
            else:
                seen[i] = known
    if missing:
        places, plans = list(missing), list(missing.values())
        groups = share(plans)
        outcomes = yield [merge([plans[i] for i in group]) for group in groups]
        for group, outcome in zip(groups, outcomes, strict=True):
            for i, part in zip(group, split(outcome, [plans[i] for i in group]), strict=True):
                seen[places[i]] = part
                if (key := edits[places[i]].key) is not None:
                    observations.keep(key, part)
    parts: dict[int, EditedPart] = {}
    planned: dict[int, EditPlan] = {}
    for i, edit in enumerate(edits):
        try:
            planned[i] = edit.method.plan(edit.context, seen.get(i))
        except Exception as error:
            parts[i] = EditedPart(edit=edit, error=error)
    if planned:
        (outcome,) = yield [merge(list(planned.values()))]
        seconds = time.perf_counter() - began
        for i, edited in zip(planned, split(outcome, list(planned.values())), strict=True):
            parts[i] = EditedPart(edit=edits[i], seen=seen.get(i), edited=edited, seconds=seconds)
    return [parts[i] for i in range(len(edits))]


def paint(parts: Sequence[EditedPart], model: EditModel) -> None:
    """Decode the pictures of a job and hand over its results. A source that they share is decoded once."""
    painted: dict[bytes, Image.Image] = {}
    for part in parts:
        future = part.edit.future
        if not future.set_running_or_notify_cancel():
            continue
        try:
            result = _painted(part, model, painted)
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(result)


def _painted(part: EditedPart, model: EditModel, painted: dict[bytes, Image.Image]) -> EditResult:
    if part.error is not None or part.edited is None:
        raise part.error or RuntimeError("the edit was never run")
    edit, start = part.edit, time.perf_counter()
    edited = edit.method.finish(edit.context, part.seen, part.edited)
    images = []
    for latents in edited.latents[:2]:
        key = digest(latents)
        if key not in painted:
            pixels = model.decode(latents[None])[0].permute(1, 2, 0).mul(255).round()
            painted[key] = Image.fromarray(pixels.to(torch.uint8).numpy())
        images.append(painted[key])
    now = time.perf_counter()
    return make_result(
        request=edit.request,
        model=model.name,
        context=edit.context,
        edited=edited,
        found=edit.method.findings(edit.context, part.seen, edited),
        source_image=images[0],
        target_image=images[1],
        seconds={"edit": part.seconds, "decode": now - start, "total": now - edit.arrived},
    )
