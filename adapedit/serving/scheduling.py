"""The scheduler of a server, on the model's UNet."""

from __future__ import annotations

from typing import Any

from adapedit.model import EditModel
from adapedit_engine.scheduler import (
    CachedRunner,
    EngineExecutor,
    Scheduler,
    measure_call_bytes,
)


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
