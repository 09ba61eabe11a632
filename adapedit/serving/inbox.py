"""Edits that wait in a server for room: which of them come next, together."""

from __future__ import annotations

import time
from collections.abc import Sequence

from adapedit.serving.edits import PreparedEdit
from adapedit.sharing import share
from adapedit_engine.plan import plan_rows
from adapedit_engine.scheduler import DeadlineError

AHEAD_SECONDS = 0.02
"""By how much an edit counts as having come earlier, for each of its steps; some time of a step.

What is long and begins last runs on alone when all others are done, with few rows a call, which cost the most each:
64 edits of 2 to 16 steps that came together were done 1.7 % sooner by simulation. It passes only those that came
so little before it, and no deadline gives way.
"""


def most_urgent(waiting: Sequence[PreparedEdit], *, share_sources: bool, max_rows: int) -> list[PreparedEdit]:
    """The edit with the first deadline, or that came first (see `AHEAD_SECONDS`), and those with the same source."""
    first = min(waiting, key=_urgency)
    if not share_sources:
        return [first]
    others = [edit for edit in waiting if edit is not first and _alike(edit, first)]
    group = share([edit.draft for edit in (first, *others)], max_rows=max_rows)[0]
    return [(first, *others)[place] for place in group]


def first_rows(edits: Sequence[PreparedEdit]) -> int:
    """Rows of the passes that they begin with."""
    return sum(plan_rows(edit.observe or edit.draft) for edit in edits)


def late(edits: Sequence[PreparedEdit]) -> dict[PreparedEdit, DeadlineError]:
    """Those whose deadline has passed, and what to tell them."""
    now = time.monotonic()
    dated = {edit: edit.deadline for edit in edits if edit.deadline is not None}
    return {edit: DeadlineError.by(now - deadline) for edit, deadline in dated.items() if deadline < now}


def parted(edits: Sequence[PreparedEdit], error: BaseException) -> list[list[PreparedEdit]]:
    """Jobs to try in the place of one that failed: the error may be one edit's own, or come of being together.

    Halves; or those that are late, and the others. None where the error is that of each.
    """
    if len(edits) == 1:
        return []
    if isinstance(error, DeadlineError):
        gone = late(edits)
        rest = [edit for edit in edits if edit not in gone]
        return [[*gone], rest] if gone and rest else []
    middle = len(edits) // 2
    return [list(edits[:middle]), list(edits[middle:])]


def _urgency(edit: PreparedEdit) -> tuple[float, float]:
    steps = edit.draft.steps + (0 if edit.observe is None else edit.observe.steps)
    return float("inf") if edit.deadline is None else edit.deadline, edit.arrived - AHEAD_SECONDS * steps


def _alike(one: PreparedEdit, other: PreparedEdit) -> bool:
    a, b = one.request, other.request
    names = ("source_prompt", "seed", "num_inference_steps", "image", "inversion")
    return all(getattr(a, name) == getattr(b, name) for name in names)
