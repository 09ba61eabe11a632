"""From settings to the inversion, and several inversions together."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor

from adapedit.inversion.base import Inversion, Inverted, Passes
from adapedit.inversion.ddim import DDIMInversion
from adapedit.inversion.direct import DirectInversion
from adapedit.inversion.edit_friendly import EditFriendlyInversion
from adapedit.inversion.null_text import NullTextInversion
from adapedit.inversion.settings import DDIM, Direct, EditFriendly, NullText
from adapedit.methods.context import EditContext
from adapedit_engine.cache import digest
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan

_KINDS: dict[type, Any] = {
    DDIM: DDIMInversion,
    NullText: NullTextInversion,
    Direct: DirectInversion,
    EditFriendly: EditFriendlyInversion,
}


def make_inversion(settings: Any) -> Inversion:
    """The inversion of these settings."""
    inversion: Inversion = _KINDS[type(settings)](settings)
    return inversion


def inversion_key(context: EditContext, settings: Any, seed: int) -> str:
    """64 hexadecimal digits of all that an inversion depends on, but the model's weights."""
    content = hashlib.sha256(repr(settings).encode())
    content.update(repr((context.guidance_scale, context.guidance_until)).encode())
    if make_inversion(settings).uses_seed:
        content.update(str(seed).encode())
    tables = [getattr(context.schedule, field.name) for field in fields(context.schedule)]
    for value in (context.image_latents, context.source, context.unconditional, context.levels, *tables):
        content.update(digest(value) if isinstance(value, Tensor) else repr(value).encode())
    return content.hexdigest()


def together(jobs: Sequence[Passes]) -> Generator[list[EditPlan], list[EditOutcome], list[Inverted]]:
    """Several inversions in step: what they want at the same time is asked for at once."""
    found: dict[int, Inverted] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(jobs)))
    try:
        while answers:
            wanted: dict[int, list[EditPlan]] = {}
            for i, answer in answers.items():
                try:
                    wanted[i] = jobs[i].send(answer)
                except StopIteration as end:
                    found[i] = end.value
            if not wanted:
                break
            outcomes = iter((yield [plan for plans in wanted.values() for plan in plans]))
            answers = {i: [next(outcomes) for _ in plans] for i, plans in wanted.items()}
    finally:
        for job in jobs:
            job.close()
    return [found[i] for i in range(len(jobs))]
