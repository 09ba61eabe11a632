"""Inversions of a batch or a job: each that is wanted is run once, whoever wants it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from adapedit.inversion.base import Inverted, Passes
from adapedit.inversion.registry import inversion_key, make_inversion, together
from adapedit.methods.context import EditContext
from adapedit.model import EditModel
from adapedit_engine.cache import ByteCache, tensor_bytes
from adapedit_engine.denoising import denoise
from adapedit_engine.loop import EditOutcome
from adapedit_engine.plan import EditPlan
from adapedit_engine.runners import Runner


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """A picture's context before its inversion, with the settings and the seed of that."""

    context: EditContext
    settings: Any
    seed: int

    @property
    def key(self) -> str:
        return inversion_key(self.context, self.settings, self.seed)


ContextPasses = Generator[list[EditPlan], list[EditOutcome], list[EditContext]]


def inversion_passes(
    wanted: Sequence[Wanted], model: EditModel, kept: ByteCache[Inverted] | None = None
) -> ContextPasses:
    """The contexts after their inversions, in the same order. kept: those of earlier jobs."""
    keys = [one.key for one in wanted]
    found: dict[str, Inverted] = {}
    missing: dict[str, Passes] = {}
    for key, one in zip(keys, wanted, strict=True):
        known = None if kept is None or key in found or key in missing else kept.find(key)
        if known is not None:
            found[key] = known
        elif key not in found and key not in missing:
            missing[key] = make_inversion(one.settings).passes(one.context, model, one.seed)
    fresh = yield from together(list(missing.values()))
    for key, inverted in zip(missing, fresh, strict=True):
        found[key] = inverted
        if kept is not None:
            kept.keep(key, inverted)
    return [found[key].into(one.context) for key, one in zip(keys, wanted, strict=True)]


def invert(
    wanted: Sequence[Wanted],
    model: EditModel,
    runner: Runner,
    *,
    max_rows: int | None = None,
    callback: Callable[[], None] | None = None,
) -> list[EditContext]:
    """Run them on an open runner. callback: after every UNet call and every step of an optimisation; may raise."""
    passes = inversion_passes(wanted, model)
    answer: Any = None
    told = None if callback is None else lambda done, total: callback()
    try:
        while True:
            plans = passes.send(answer)
            answer = denoise(plans, runner, max_rows=max_rows, callback=told) if plans else []
            if callback is not None and not plans:
                callback()
    except StopIteration as end:
        contexts: list[EditContext] = end.value
        return contexts
    finally:
        passes.close()


def expected_calls(wanted: Sequence[Wanted]) -> int:
    """About how often `invert` will call back."""
    from adapedit.inversion.settings import NullText

    steps = max((len(one.context.schedule) for one in wanted), default=0)
    searches = {one.key for one in wanted if isinstance(one.settings, NullText)}
    return steps * (2 if searches else 1)


def inverted_bytes(inverted: Inverted) -> int:
    """Bytes of its tensors."""
    values = (getattr(inverted, field.name) for field in fields(inverted))
    return tensor_bytes([value for value in values if isinstance(value, Tensor)])
