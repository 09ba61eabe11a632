"""The scheduler of a server, on the model's UNet."""

from __future__ import annotations

from typing import Any

from adapedit.model import EditModel
from adapedit_engine.caches import CachedRunner
from adapedit_engine.runners import Runner
from adapedit_engine.scheduler import (
    EngineExecutor,
    PaddedRunner,
    Scheduler,
    measure_call_bytes,
    slots_up_to,
)


def in_slots(runner: Runner, max_rows: int) -> Runner:
    """The runner as a server uses it: padded to slots where every number of rows would be prepared anew."""
    return PaddedRunner(runner, slots_up_to(max_rows)) if getattr(runner, "few_shapes", False) else runner


def make_scheduler(
    runner: CachedRunner, model: EditModel, *, budget_bytes: int | None, **options: Any
) -> Scheduler:
    """runner: the model's, open. options: of `Scheduler`."""
    call_bytes = None
    if budget_bytes is not None:
        side = model.latent_size
        call_bytes = measure_call_bytes(runner, size=(side, side), tokens=model.max_tokens)
    executor = EngineExecutor(runner, call_bytes=call_bytes)
    return Scheduler(executor, budget_bytes=budget_bytes, **options)
